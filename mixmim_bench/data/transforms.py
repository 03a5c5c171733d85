"""Picklable transforms, built by timm from a model's preprocessing."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import MaybeToTensor
from torchvision import transforms

from mixmim_bench.data import FUSED
from mixmim_bench.specs import Preprocessing

Transform = Callable[[Image.Image], torch.Tensor]
# of an image and its target together, like torchvision's v2 transforms of `tv_tensors`
JointTransform = Callable[[Image.Image, Any], tuple[torch.Tensor, Any]]


class ImageOnly:
    """Transforms images and leaves their targets unchanged."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image, target: Any) -> tuple[torch.Tensor, Any]:
        return self.transform(image), target


def eval_transform(preprocessing: Preprocessing) -> Transform:
    """Create a transform that resizes, center-crops and normalises an image to (3, H, W).

    With `resize="fused"` in the preprocessing, only the cropped pixels are computed; they differ from those
    of separate steps by at most 2/255.
    """
    steps = create_transform(
        input_size=(3, *preprocessing.size),
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        is_training=False,
    ).transforms
    *geometry, to_tensor, normalize = steps
    assert isinstance(to_tensor, MaybeToTensor) and isinstance(normalize, transforms.Normalize)
    plain = [type(step) for step in geometry] == [transforms.Resize, transforms.CenterCrop]
    if preprocessing.resize == FUSED and plain and isinstance(geometry[0].size, int):
        geometry = [ResizeAndCrop(geometry[0].size, geometry[1].size, geometry[0].interpolation)]
    return transforms.Compose([*geometry, ToNormalised(normalize.mean, normalize.std)])


class ToNormalised:
    """Converts an RGB image to a normalised tensor, like ToTensor and Normalize but in one step."""

    def __init__(self, mean: Any, std: Any) -> None:
        self.mean = torch.as_tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.std = torch.as_tensor(std, dtype=torch.float32).view(-1, 1, 1)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(image))  # (H, W, 3)
        values = torch.empty(pixels.shape[2], *pixels.shape[:2])
        values.copy_(pixels.permute(2, 0, 1))
        return values.div_(255).sub_(self.mean).div_(self.std)


class ResizeAndCrop:
    """Resizes the shorter side to `shorter` and center-crops, computing only the cropped pixels."""

    def __init__(self, shorter: int, crop: Sequence[int], interpolation: Any) -> None:
        self.shorter = shorter
        self.crop = tuple(crop)  # (h, w)
        self.filter = Image.Resampling[interpolation.name]

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        short, long = min(width, height), max(width, height)
        longer = math.floor(self.shorter * long / short)
        new_width, new_height = (self.shorter, longer) if width <= height else (longer, self.shorter)
        h, w = self.crop
        left, top = round((new_width - w) / 2), round((new_height - h) / 2)
        across, down = width / new_width, height / new_height
        box = (left * across, top * down, (left + w) * across, (top + h) * down)
        return image.resize((w, h), self.filter, box=box)


def train_transform(
    preprocessing: Preprocessing,
    *,
    crop_scale: Sequence[float],
    crop_ratio: Sequence[float],
    hflip: float,
    auto_augment: str,
    reprob: float,
) -> Transform:
    """Create timm's training transform: random crop, flip, augmentation, normalisation and erasing.

    It draws from the global generators of Python, NumPy and torch, like timm's augmentations.
    """
    transform = create_transform(
        input_size=(3, *preprocessing.size),
        is_training=True,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        scale=tuple(crop_scale),
        ratio=tuple(crop_ratio),
        hflip=hflip,
        color_jitter=None,
        auto_augment=auto_augment or None,
        re_prob=reprob,
        re_mode="pixel",
    )
    assert isinstance(transform, transforms.Compose)
    return transform
