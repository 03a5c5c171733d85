"""Networks that predict label maps: linear ones on a frozen pyramid, and UperNet."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixmim_bench.models.pyramid import Pyramid, neck_of
from mixmim_bench.seeding import generator

AUXILIARY_STAGE = 2  # of four, with a stride of 16
AUXILIARY_WIDTH = 256
INIT_STD = 0.01  # of classifiers

Maps = Sequence[Tensor] | Mapping[int, Tensor]  # by stage


class UperHead(nn.Module):
    """What is behind the backbone of a UperNet: segmentation-models-pytorch's decoder, and a classifier."""

    def __init__(self, pyramid: Pyramid, num_classes: int, width: int, dropout: float) -> None:
        super().__init__()
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

        # the decoder normalises maps itself
        self.neck: nn.Module = neck_of(pyramid) if pyramid.plain else nn.Identity()
        self.widths = list(self.neck.widths) if pyramid.plain else pyramid.widths  # type: ignore[arg-type]
        self.decoder = UPerNetDecoder([3, 0, *self.widths], decoder_channels=width)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)
        _initialise_classifier(self.classifier)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Map four maps to logits (B, K, h, w) at the stride 4."""
        return self.of_neck(self.neck(maps))

    def of_neck(self, maps: Sequence[Tensor]) -> Tensor:
        """Map what the neck made to logits."""
        return self.classifier(self.dropout(self.decoder([None, None, *maps])))


class UperNet(nn.Module):
    """UperNet (arXiv 1807.10221) on the four maps of a backbone, with segmentation-models-pytorch's decoder.

    A second, convolutional head on the map of stride 16 takes part in training, as in mmsegmentation.
    """

    def __init__(
        self, pyramid: Pyramid, num_classes: int, *, width: int, dropout: float, auxiliary: bool, seed: int
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.pyramid = pyramid
            self.head = UperHead(pyramid, num_classes, width, dropout)
            of_stage = self.head.widths[AUXILIARY_STAGE]
            self.auxiliary = _convolutional(of_stage, num_classes, dropout) if auxiliary else None

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Map images (B, 3, h, w) to logits (B, K, h, w); in training to two, before they are enlarged."""
        maps = self.head.neck(self.pyramid(images))
        logits = self.head.of_neck(maps)
        if self.training:
            second = logits if self.auxiliary is None else self.auxiliary(maps[AUXILIARY_STAGE])
            return logits, second
        return enlarged(logits, self.pyramid.padded(images.shape[-2:]), images.shape[-2:])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations of the backbone in the backward pass."""
        self.pyramid.set_grad_checkpointing(enable)


def _convolutional(width: int, num_classes: int, dropout: float) -> nn.Sequential:
    head = nn.Sequential(
        nn.Conv2d(width, AUXILIARY_WIDTH, 3, padding=1, bias=False),
        nn.BatchNorm2d(AUXILIARY_WIDTH),
        nn.ReLU(),
        nn.Dropout2d(dropout),
        nn.Conv2d(AUXILIARY_WIDTH, num_classes, 1),
    )
    _initialise_classifier(head[-1])
    return head


def _initialise_classifier(layer: Any) -> None:
    nn.init.normal_(layer.weight, std=INIT_STD)
    nn.init.zeros_(layer.bias)


def enlarged(logits: Tensor, padded: Sequence[int], size: Sequence[int]) -> Tensor:
    """Enlarge logits (B, K, h, w) bilinearly to the padded images, and cut these to their size."""
    grown = F.interpolate(logits.float(), tuple(padded), mode="bilinear", align_corners=False)
    return grown[..., : size[0], : size[1]]


class LinearMaps(nn.Module):
    """Linear classifiers of pixels: batch norm and a 1 x 1 convolution on one map or several.

    The logits of several maps are enlarged to the finest one and summed, which is one convolution on all of
    them side by side, since enlarging is linear. `stages`: of each head, by place.
    """

    def __init__(
        self, widths: Sequence[int], stages: Sequence[Sequence[int]], num_classes: int, seed: int
    ) -> None:
        super().__init__()
        self.stages = [list(each) for each in stages]
        self.heads = nn.ModuleList()
        draws = generator(seed)
        for chosen in self.stages:
            convolutions = [
                nn.Conv2d(widths[stage], num_classes, 1, bias=place == 0)
                for place, stage in enumerate(chosen)
            ]
            for each in convolutions:
                nn.init.normal_(each.weight, std=INIT_STD, generator=draws)
                if each.bias is not None:
                    nn.init.zeros_(each.bias)
            norms = [nn.BatchNorm2d(widths[stage]) for stage in chosen]
            self.heads.append(
                nn.ModuleDict({"norms": nn.ModuleList(norms), "maps": nn.ModuleList(convolutions)})
            )

    def forward(self, maps: Maps) -> list[Tensor]:
        """Map the maps of a pyramid, by stage, to the logits (B, K, h, w) of each head."""
        return [self.of_head(place, maps) for place in range(len(self.heads))]

    def of_head(self, place: int, maps: Maps) -> Tensor:
        """Return the logits of one head at the resolution of its finest map."""
        head: Any = self.heads[place]
        logits = [
            convolve(norm(maps[stage]))
            for stage, norm, convolve in zip(self.stages[place], head["norms"], head["maps"], strict=True)
        ]
        size = logits[0].shape[-2:]
        same = [
            each
            if each.shape[-2:] == size
            else F.interpolate(each, size, mode="bilinear", align_corners=False)
            for each in logits
        ]
        return torch.stack(same).sum(0)


class LinearSegmenter(nn.Module):
    """A frozen pyramid, or its stored maps, with linear heads.

    Stored maps are rows (B, D) with the values of all maps, in the order of `shapes`.
    """

    def __init__(self, pyramid: Pyramid, heads: LinearMaps, size: tuple[int, int]) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.heads = heads
        self.used = sorted({stage for stages in heads.stages for stage in stages})
        shapes = pyramid.shapes(size)
        self.shapes: Mapping[int, tuple[int, ...]] = {stage: shapes[stage] for stage in self.used}

    def maps(self, images: Tensor) -> dict[int, Tensor]:
        """Return the maps that the heads read, by stage, of images or of stored maps."""
        if images.ndim == 4:
            every = self.pyramid(images)  # rounded as stored maps are
            return {stage: every[stage].half().float() for stage in self.used}
        found, start = {}, 0
        for stage, shape in self.shapes.items():
            stop = start + math.prod(shape)
            found[stage] = images[:, start:stop].reshape(-1, *shape).float()
            start = stop
        return found

    @property
    def stored_width(self) -> int:
        """The number of values that are stored for an image."""
        return sum(map(math.prod, self.shapes.values()))

    def stored(self, images: Tensor) -> Tensor:
        """Return the maps of images as rows (B, D) in float16."""
        return torch.cat([each.flatten(1) for each in self.maps(images).values()], dim=1).half()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the logits (B, K, h, w) of each head."""
        return self.heads(self.maps(images))

    def of_head(self, place: int, images: Tensor) -> Tensor:
        """Return the logits of one head for each pixel of images (B, 3, h, w)."""
        logits = self.heads.of_head(place, self.maps(images))
        return enlarged(logits, self.pyramid.padded(images.shape[-2:]), images.shape[-2:])
