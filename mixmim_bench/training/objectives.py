"""Training objectives."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import Tensor, nn


class Classifying:
    """Cross-entropy of class labels, with timm's mixup, cutmix and label smoothing.

    `prepare` mixes the batch with its reverse, so its size should be even; the last image of an odd batch is
    not mixed.
    """

    together = 1

    def __init__(self, num_classes: int, mixup: float, cutmix: float, smoothing: float) -> None:
        self.num_classes = num_classes
        self.smoothing = smoothing
        self.mixup = None
        if mixup > 0.0 or cutmix > 0.0:
            self.mixup = Mixup(
                mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=smoothing, num_classes=num_classes
            )

    def prepare(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images (B, 3, H, W); the targets are probabilities of the classes (B, K)."""
        target = mixup_target(labels, self.num_classes, 1.0, self.smoothing)
        if self.mixup is not None:
            even = len(images) // 2 * 2
            if even:
                mixed, mixed_target = self.mixup(images[:even].clone(), labels[:even])
                images, target = torch.cat([mixed, images[even:]]), torch.cat([mixed_target, target[even:]])
        return images, target

    def weight(self, targets: Tensor) -> float:
        """Count images."""
        return len(targets)

    def loss(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy, computed in float32."""
        logits = network(images).float()
        return -(targets * logits.log_softmax(dim=-1)).sum(dim=-1).mean()


class Reconstructing:
    """MixMIM's loss: images mixed in pairs, both reconstructed (arXiv 2205.13137).

    The partner of an image is the one at the other end of the images that pass at a time; the mask is shared
    by these. mask_ratio: the share of exchanged cells, drawn between two bounds.
    """

    together = 2

    def __init__(self, mask_ratio: Sequence[float]) -> None:
        self.low, self.high = mask_ratio[0], mask_ratio[-1]

    def prepare(self, images: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
        """Drop the last image of an odd number, which would be its own partner."""
        del targets
        images = images[: len(images) // 2 * 2]
        return images, images

    def weight(self, targets: Tensor) -> float:
        """Count images."""
        return len(targets)

    def loss(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error of a `MixMIMPretraining`."""
        del targets
        ratio = self.low
        if self.high > self.low:
            ratio += (self.high - self.low) * float(torch.rand(()))
        return network(images, ratio=ratio).loss


class ClassifyingByHeads:
    """Cross-entropy of class labels, summed over several independent heads."""

    together = 1

    def prepare(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, H, W) and labels (B,) unchanged."""
        return images, labels

    def weight(self, targets: Tensor) -> float:
        """Count images."""
        return len(targets)

    def loss(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over heads of their mean cross-entropy, in float32."""
        return torch.stack([F.cross_entropy(logits.float(), targets) for logits in network(images)]).sum()
