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

    def __init__(self, num_classes: int, mixup: Mixup | None = None, smoothing: float = 0.0) -> None:
        self.num_classes = num_classes
        self.smoothing = smoothing
        self.mixup = mixup

    def prepare(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images (B, 3, H, W); the targets are probabilities of the classes (B, K)."""
        target = mixup_target(labels, self.num_classes, 1.0, self.smoothing)
        even = len(images) // 2 * 2
        if self.mixup is not None and even:
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


class ClassifyingEach:
    """Binary cross-entropy of each class, of labels (B, K) that are 1, 0 or -1 where unknown.

    With mixup, the labels of a mixture are mixed as the images are; a class is known if it is in both.
    """

    together = 1

    def __init__(self, mixup: Mixup | None = None, smoothing: float = 0.0) -> None:
        self.mixup = mixup
        self.smoothing = smoothing

    def prepare(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images (B, 3, H, W); the targets (B, 2, K) are probabilities, and whether they are known."""
        targets = torch.stack([labels == 1, labels >= 0], dim=1).float()
        even = len(images) // 2 * 2
        if self.mixup is not None and even:
            self.mixup.num_classes = even
            # each image as a class of its own: the targets are the shares of the images in each mixture
            own = torch.arange(even, device=images.device)
            mixed, shares = self.mixup(images[:even].clone(), own)
            images = torch.cat([mixed, images[even:]])
            targets = torch.cat([torch.einsum("ij,jtk->itk", shares, targets[:even]), targets[even:]])
        targets[:, 0] = targets[:, 0] * (1.0 - self.smoothing) + self.smoothing / 2
        targets[:, 1] = (targets[:, 1] > 1.0 - 1e-3).float()
        return images, targets

    def weight(self, targets: Tensor) -> float:
        """Count known labels."""
        return float(targets[:, 1].sum())

    def loss(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over known labels, computed in float32."""
        return _binary(network(images), targets)


def _binary(logits: Tensor, targets: Tensor) -> Tensor:
    wanted, known = targets[:, 0], targets[:, 1]
    losses = F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1.0)


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


class Segmenting:
    """Cross-entropy of pixels, over those that are not ignored, with a share of a second head's.

    The network returns the logits of both heads (B, K, h, w) at a lower resolution; they are enlarged.
    `auxiliary`: the weight of the second.
    """

    together = 1

    def __init__(self, ignored: int, auxiliary: float) -> None:
        self.ignored = ignored
        self.auxiliary = auxiliary

    def prepare(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, H, W) and labels (B, H, W) unchanged."""
        return images, labels

    def weight(self, targets: Tensor) -> float:
        """Count the pixels that are not ignored."""
        return float((targets != self.ignored).sum())

    def loss(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over pixels, computed in float32."""
        first, second = network(images)
        loss = self._of_pixels(first, targets)
        return loss + self.auxiliary * self._of_pixels(second, targets) if self.auxiliary else loss

    def _of_pixels(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits = F.interpolate(logits.float(), targets.shape[-2:], mode="bilinear", align_corners=False)
        return F.cross_entropy(logits, targets.long(), ignore_index=self.ignored)


class SegmentingByHeads(Segmenting):
    """Cross-entropy of pixels, summed over several independent heads."""

    def loss(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over heads of their means, in float32."""
        return torch.stack([self._of_pixels(logits, targets) for logits in network(images)]).sum()


class Detecting:
    """The sum of the losses of a `models.detector.Detector`, each averaged over images."""

    together = 1

    def prepare(self, images: Tensor, targets: Any) -> tuple[Tensor, Any]:
        """Return images (B, 3, S, S) and their objects unchanged."""
        return images, targets

    def weight(self, targets: Any) -> float:
        """Count images."""
        return len(targets)

    def loss(self, network: nn.Module, images: Tensor, targets: Any) -> Tensor:
        """Return the sum of all losses."""
        return torch.stack(list(network(images, targets).values())).sum()


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


class ClassifyingEachByHeads(ClassifyingEach):
    """Binary cross-entropy of each class, summed over several independent heads."""

    def loss(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over heads of their mean over known labels, in float32."""
        return torch.stack([_binary(logits, targets) for logits in network(images)]).sum()
