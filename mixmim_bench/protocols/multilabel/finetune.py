"""`finetune` for multilabel tasks: train all weights of the backbone with one binary classifier per class."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mixmim_bench.protocols.classification.finetune import Finetune
from mixmim_bench.protocols.contract import Protocol

if TYPE_CHECKING:
    import numpy as np

    from mixmim_bench.protocols.workbench import Workbench
    from mixmim_bench.training.contract import Objective


@dataclass(frozen=True, kw_only=True)
class FinetuneMultilabel(Finetune):
    """The recipe of `finetune` for classification, with binary cross-entropy of each class.

    Unknown labels (VOC's difficult objects) have no loss. Labels are not smoothed, and mixed as the images
    are.
    """

    kind: ClassVar[str] = "multilabel"
    version: ClassVar[int] = 1
    learnt: ClassVar[str] = "average_precision"

    smoothing: float = 0.0

    def _objective(self, bench: "Workbench") -> "Objective":
        from mixmim_bench.training.objectives import ClassifyingEach

        return ClassifyingEach(self._mixup(bench.num_classes, 0.0), self.smoothing)

    def _probe(self) -> Protocol:
        from mixmim_bench.protocols.multilabel.linear import LinearMultilabel

        return LinearMultilabel()

    def _check(self, y: "np.ndarray", logits: "np.ndarray", labels: "np.ndarray") -> tuple[float, str]:
        """Return the average precision over all known labels of the images, and a note if it is at chance."""
        from sklearn.metrics import average_precision_score

        known = y >= 0
        by_class = (labels == 1).sum(0) / (labels >= 0).sum(0).clip(1)  # knowing only how frequent each is
        guess = float(average_precision_score(y[known], by_class[None].repeat(len(y), 0)[known]))
        reached = float(average_precision_score(y[known], logits[known]))
        if reached > guess + (1.0 - guess) * 0.05:
            return reached, ""
        return reached, (
            f"average precision on {len(y)} images of train, {100 * reached:.1f} %, is hardly above that of "
            f"the frequencies of the classes, {100 * guess:.1f} %: too few steps, or an unsuitable recipe"
        )


PROTOCOL = FinetuneMultilabel
