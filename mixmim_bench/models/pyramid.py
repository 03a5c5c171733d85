"""Backbones as pyramids of feature maps, for dense tasks: any network of timm with intermediate maps."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn

from mixmim_bench.errors import BenchError
from mixmim_bench.models.build import build, create, own_size, timm_config
from mixmim_bench.models.objects import device_to_count
from mixmim_bench.specs import ModelSpec, Weights

STRIDES = (4, 8, 16, 32)
MULTIPLE = max(STRIDES)  # of which image sides are padded to a multiple
PLAIN_STRIDE = 16  # of networks with one resolution, unless their patches are smaller
# arguments by which networks built for one image size accept others, in the order they are tried
ANY_SIZE: tuple[Mapping[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})


def dense_arguments(model: ModelSpec) -> dict[str, Any]:
    """Return the keyword arguments by which a network accepts images of any size; empty if it has none."""
    if not timm_config(model).get("fixed_input_size"):
        return {}
    for arguments in ANY_SIZE:
        with device_to_count(model.arch):
            try:
                network: Any = create(model, own_size(model), **arguments).eval()
                side = 2 * math.lcm(32, *(info["reduction"] for info in network.feature_info))
                network.forward_features(torch.empty(1, 3, side, 2 * side))
            except (BenchError, ValueError, AssertionError, TypeError, RuntimeError):
                continue
        return dict(arguments)
    return {}


class Pyramid(nn.Module):
    """The feature maps of a backbone at the strides 4, 8, 16 and 32, or of four blocks at one stride.

    Networks with one resolution (ViT) are read after blocks at 1/4, 1/2, 3/4 and all of their depth; if
    their patches do not have 16 (or 8) pixels, images are resized so that the maps have a stride of 16.
    Images are padded at the right and the bottom to a multiple of 32, or to the only size that a network
    accepts.

    Attributes:
        widths: channels of the maps.
        strides: pixels of the image per cell of each map.
        plain: whether the network has one resolution.
    """

    def __init__(
        self, backbone: nn.Module, size: tuple[int, int] | None = None, frozen: bool = False
    ) -> None:
        """Wrap a network.

        Args:
            backbone: of timm, without a classifier.
            size: the only image size (h, w) it accepts; None: any.
            frozen: it is not trained, and stays in evaluation mode.

        Raises:
            BenchError: the network yields no feature maps of these strides.
        """
        super().__init__()
        self.backbone: Any = backbone
        self.size = size
        self.frozen = frozen
        info = list(backbone.feature_info)  # type: ignore[arg-type]
        reductions = [each["reduction"] for each in info]
        self.plain = len(set(reductions)) == 1
        if not hasattr(backbone, "forward_intermediates"):
            raise BenchError(f"{type(backbone).__name__} yields no intermediate feature maps in timm")
        if self.plain:
            depth = len(info)
            self.indices = [math.ceil(depth * quarter / 4) - 1 for quarter in (1, 2, 3, 4)]
            stride = _plain_stride(reductions[0])
            self.scale = reductions[0] / stride
            self.strides = [stride] * 4
        else:
            missing = [stride for stride in STRIDES if stride not in reductions]
            if missing:
                raise BenchError(
                    f"{type(backbone).__name__} has feature maps with strides {sorted(set(reductions))}, and "
                    f"dense tasks need {', '.join(map(str, STRIDES))}"
                )
            # the last map of each resolution
            self.indices = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES]
            self.scale = 1.0
            self.strides = list(STRIDES)
        self.widths = [info[index]["num_chs"] for index in self.indices]
        if hasattr(backbone, "prune_intermediate_layers"):  # of parameters that no map depends on
            self.indices = list(backbone.prune_intermediate_layers(self.indices, prune_norm=False))  # type: ignore[operator]
        self.normed = True  # by the network's final norm, where it has one for all maps
        if frozen:
            self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Pyramid":
        """Set the mode; a frozen backbone stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def padded(self, size: Sequence[int]) -> tuple[int, int]:
        """Return the size that images (h, w) are padded to; raises BenchError for too large ones."""
        height, width = size
        if self.size is None:
            return height + -height % MULTIPLE, width + -width % MULTIPLE
        if height > self.size[0] or width > self.size[1]:
            raise BenchError(
                f"{type(self.backbone).__name__} accepts only images of {self.size[0]} x {self.size[1]} "
                f"pixels, not {height} x {width}"
            )
        return self.size

    def pad(self, images: Tensor) -> Tensor:
        """Pad images (B, 3, h, w) with zeros to a size that the network accepts; raises BenchError."""
        height, width = self.padded(images.shape[-2:])
        return F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))

    def shapes(self, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """Return the shapes (C, H, W) of the maps of images of a size (h, w)."""
        height, width = self.padded(size)
        return [
            (channels, height // stride, width // stride)
            for channels, stride in zip(self.widths, self.strides, strict=True)
        ]

    def computed_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Return the size (h, w) that the network computes for images of a size."""
        height, width = (round(side * self.scale) for side in self.padded(size))
        return height, width

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (B, 3, h, w) to four maps (B, C, H/s, W/s) of the padded images (B, 3, H, W)."""
        images = self.pad(images)
        if self.scale != 1.0:
            size = self.computed_size(images.shape[-2:])
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.backbone.forward_intermediates(
                images, self.indices, norm=self.normed, output_fmt="NCHW", intermediates_only=True
            )
        return [each.contiguous() for each in maps]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass."""
        if not self.frozen:
            self.backbone.set_grad_checkpointing(enable)


def build_pyramid(
    model: ModelSpec,
    weights: Weights,
    size: tuple[int, int],
    seed: int,
    *,
    arguments: Mapping[str, Any],
    frozen: bool = False,
    freeze_batch_norm: bool = False,
    **kwargs: Any,
) -> Pyramid:
    """Build a backbone with its weights as a pyramid.

    Args:
        model: the backbone.
        weights: its weights.
        size: of the images (h, w), which matters for networks that accept one size only.
        seed: of random weights.
        arguments: those of `dense_arguments`.
        frozen: it is not trained.
        freeze_batch_norm: keep the statistics of batch norm, as is usual for detection.
        **kwargs: further arguments of the network, such as `drop_path_rate`.

    Raises:
        BenchError: the network cannot be built, or yields no feature maps.
    """
    built_at, only = _sizes(model, size, arguments)
    backbone = build(model, weights, built_at, seed, **arguments, **kwargs)
    if freeze_batch_norm:
        backbone = freeze_batch_norm_2d(backbone)
    pyramid = Pyramid(backbone, only, frozen)
    _check(model, pyramid, size)
    return pyramid


def size_computed(model: ModelSpec, size: tuple[int, int], arguments: Mapping[str, Any]) -> tuple[int, int]:
    """Return the size that a network computes for images of a size; raises BenchError without a pyramid."""
    built_at, only = _sizes(model, size, arguments)
    with device_to_count(model.arch):
        pyramid = Pyramid(create(model, built_at, **arguments), only)
    _check(model, pyramid, size)
    return pyramid.computed_size(size)


def _sizes(
    model: ModelSpec, size: tuple[int, int], arguments: Mapping[str, Any]
) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Return the size a network is built for, and the only one it accepts, None if it accepts any."""
    if not timm_config(model).get("fixed_input_size") or arguments:
        return own_size(model), None
    with device_to_count(model.arch):
        network: Any = create(model, own_size(model))
    reductions = {info["reduction"] for info in network.feature_info}
    height, width = (side + -side % MULTIPLE for side in size)
    if len(reductions) > 1:
        return (height, width), (height, width)
    (patch,) = reductions
    scale = patch / _plain_stride(patch)
    return (round(height * scale), round(width * scale)), (height, width)


def _plain_stride(patch: int) -> int:
    """Return the stride of the maps of a plain network, in pixels of the image that it is given."""
    return patch if patch in STRIDES[:3] else PLAIN_STRIDE


def _check(model: ModelSpec, pyramid: Pyramid, size: tuple[int, int]) -> None:
    """Check the shapes of the maps on the meta device; raises BenchError."""
    twin = copy.deepcopy(pyramid).to("meta").eval()
    images = torch.empty(2, 3, *size, device="meta")
    try:
        try:
            maps = twin(images)
        except AssertionError as error:  # of networks without a norm for maps
            if "normalization" not in str(error):
                raise
            twin.normed = pyramid.normed = False
            maps = twin(images)
    except (ValueError, AssertionError, TypeError, RuntimeError, IndexError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BenchError(
            f"{model.name} yields no feature maps of images of {size[0]} x {size[1]} pixels: {reason}"
        ) from error
    for each, wanted in zip(maps, pyramid.shapes(size), strict=True):
        if tuple(each.shape[1:]) != wanted:
            raise BenchError(f"{model.name}: a feature map is {tuple(each.shape[1:])} instead of {wanted}")


class SimplePyramid(nn.Module):
    """Maps of the strides 4, 8, 16 and 32 from the last one of a plain network (ViTDet, arXiv 2203.16527).

    Deconvolutions enlarge it and max-pooling reduces it, as in detectron2's `SimpleFeaturePyramid`; its 1 x 1
    and 3 x 3 convolutions are those of the head.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.widths = []
        scales = []
        for wanted in STRIDES:
            steps: list[nn.Module] = []
            channels, at = width, stride
            while at > wanted:
                if len(steps) > 0:
                    steps += [LayerNorm2d(channels), nn.GELU()]
                steps.append(nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))
                channels, at = channels // 2, at // 2
            while at < wanted:
                steps.append(nn.MaxPool2d(2))
                at *= 2
            scales.append(nn.Sequential(*steps))
            self.widths.append(channels)
        self.scales = nn.ModuleList(scales)
        self.norms = nn.ModuleList(LayerNorm2d(channels) for channels in self.widths)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map the maps of a plain network to four maps (B, C, H/s, W/s)."""
        return [norm(scale(maps[-1])) for scale, norm in zip(self.scales, self.norms, strict=True)]


class StageNorms(nn.Module):
    """A layer norm for each map, as Swin's dense networks have; none behind batch norm."""

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.widths = list(pyramid.widths)
        normed = any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) or "BatchNorm" in type(module).__name__
            for module in pyramid.modules()
        )
        self.norms = nn.ModuleList(nn.Identity() if normed else LayerNorm2d(width) for width in self.widths)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Normalise maps (B, C, H/s, W/s)."""
        return [norm(each) for norm, each in zip(self.norms, maps, strict=True)]


def neck_of(pyramid: Pyramid) -> SimplePyramid | StageNorms:
    """Return what makes maps of four strides of a backbone's; `widths` are their channels."""
    return SimplePyramid(pyramid.widths[-1], pyramid.strides[-1]) if pyramid.plain else StageNorms(pyramid)
