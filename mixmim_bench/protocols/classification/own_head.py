"""`own-head` for classification: the classifier that the weights come with; nothing is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mixmim_bench.protocols.contract import Fitted, Protocol, Workload

if TYPE_CHECKING:
    from mixmim_bench.data.dataset import Split
    from mixmim_bench.protocols.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class OwnHead(Protocol):
    """The weights' own classifier on test, as in timm's `validate.py` and OpenMMLab's `tools/test.py`.

    Where a task has some of the classifier's classes, as ImageNet-A, only these are compared. The expected
    calibration error is scored as `ece`. Needs the test images only.
    """

    name: ClassVar[str] = "own-head"
    title: ClassVar[str] = "own classifier"
    kind: ClassVar[str] = "classification"
    version: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False
    roles: ClassVar[tuple[str, ...]] = ("test",)
    uses_classifier: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}}

    def images(self, counts: Mapping[str, int]) -> Workload:
        return Workload(forward=counts["test"])

    def frozen_layers(self) -> tuple[str, ...]:
        return ("logits",)

    def fit_on(self, bench: "Workbench", splits: "Mapping[str, Split]") -> Fitted:
        """Return the classifier as it is."""
        from mixmim_bench.protocols.classifier import fit_own_head

        del splits
        return fit_own_head(bench)


PROTOCOL = OwnHead
