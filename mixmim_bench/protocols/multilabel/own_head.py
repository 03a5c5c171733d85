"""`own-head` for several labels per image: the classifier that the weights come with; nothing is trained."""

from dataclasses import dataclass
from typing import ClassVar

from mixmim_bench.protocols.classification.own_head import OwnHead as OfOneLabel


@dataclass(frozen=True, kw_only=True)
class OwnHead(OfOneLabel):
    """As for classification; a best class is right if it is one of the image's labels (`top1`, `top5`)."""

    kind: ClassVar[str] = "multilabel"


PROTOCOL = OwnHead
