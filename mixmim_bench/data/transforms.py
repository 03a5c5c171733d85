"""Transforms, made by timm from a model's preprocessing; nothing in them is a closure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms

Transform = Callable[[Image.Image], torch.Tensor]


def eval_transform(preprocessing: Mapping[str, Any]) -> Transform:
    """Resize, crop the centre and normalise: an image becomes (3, H, W)."""
    return create_transform(
        input_size=(3, *preprocessing["size"]),
        interpolation=preprocessing["interpolation"],
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
        crop_pct=preprocessing["crop_pct"],
        crop_mode=preprocessing["crop_mode"],
        is_training=False,
    )


def train_transform(
    preprocessing: Mapping[str, Any],
    *,
    crop_scale: Sequence[float],
    crop_ratio: Sequence[float],
    hflip: float,
    auto_augment: str,
    reprob: float,
) -> Transform:
    """Crop at random, flip, augment, normalise and erase, as timm's training does.

    Draws from the global generators of Python, NumPy and torch, as timm's augmentations do.
    """
    transform = create_transform(
        input_size=(3, *preprocessing["size"]),
        is_training=True,
        interpolation=preprocessing["interpolation"],
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
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
