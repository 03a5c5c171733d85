"""`frozen` for detection: a detector trained on a frozen backbone."""

from dataclasses import dataclass
from typing import ClassVar

from mixmim_bench.protocols.detection.finetune import FinetuneDetection


@dataclass(frozen=True, kw_only=True)
class FrozenDetection(FinetuneDetection):
    """The detector of `finetune` and its recipe, with a backbone that is not trained.

    The detector has convolutions and linear layers of its own, so this is no linear probe; it takes the place
    of one where `linear` is asked for.
    """

    name: ClassVar[str] = "frozen"
    title: ClassVar[str] = "frozen backbone (Mask R-CNN)"
    version: ClassVar[int] = 1
    frozen: ClassVar[bool] = True
    in_place_of: ClassVar[str] = "linear"


PROTOCOL = FrozenDetection
