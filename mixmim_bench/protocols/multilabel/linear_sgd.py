"""`linear-sgd` for multilabel tasks: binary classifiers trained on augmented images, the backbone frozen."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mixmim_bench.protocols.classification.linear_sgd import LinearSGD

if TYPE_CHECKING:
    from mixmim_bench.training.contract import Objective


@dataclass(frozen=True, kw_only=True)
class LinearSGDMultilabel(LinearSGD):
    """The recipe of `linear-sgd` for classification, with binary cross-entropy of each class."""

    kind: ClassVar[str] = "multilabel"
    version: ClassVar[int] = 1

    def _objective(self) -> "Objective":
        from mixmim_bench.training.objectives import ClassifyingEachByHeads

        return ClassifyingEachByHeads()


PROTOCOL = LinearSGDMultilabel
