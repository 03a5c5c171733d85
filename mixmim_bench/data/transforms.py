"""Picklable transforms, built by timm from a model's preprocessing."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import MaybeToTensor
from torch.nn.functional import interpolate
from torchvision import transforms

from mixmim_bench.data import FAST, REDUCED
from mixmim_bench.errors import BenchError
from mixmim_bench.specs import Preprocessing

Transform = Callable[[Image.Image], torch.Tensor]
# of an image and its target together, like torchvision's v2 transforms of `tv_tensors`
JointTransform = Callable[[Image.Image, Any], tuple[torch.Tensor, Any]]


class ImageOnly:
    """Transforms images and leaves their targets unchanged."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform
        self.least = getattr(transform, "least", 0)

    def __call__(self, image: Image.Image, target: Any) -> tuple[torch.Tensor, Any]:
        return self.transform(image), target


class EvalTransform(transforms.Compose):
    """Resizes, center-crops and normalises an image to (3, H, W).

    Attributes:
        least: JPEGs may be decoded at a reduced scale if the shorter side keeps this many pixels; 0: never.
    """

    def __init__(self, steps: Sequence[Callable[[Any], Any]], least: int = 0) -> None:
        super().__init__(steps)
        self.least = least


def eval_transform(preprocessing: Preprocessing) -> EvalTransform:
    """Create the evaluation transform of timm, with the same pixels unless the preprocessing says otherwise.

    With `resize="fast"`, torch resizes, whose values differ from Pillow's by at most 2/255; only bilinear and
    bicubic resizing to the shorter side with a center crop. With `resize="reduced"`, also JPEGs whose shorter
    side is at least twice what is needed are decoded at a reduced scale, which smooths differently: 99 % of
    the values of images with the spectrum of photographs are within 20/255.
    """
    noise = [Noise(preprocessing.noise)] if preprocessing.noise else []
    if preprocessing.transform:
        return EvalTransform([ObjectTransform(preprocessing.transform, preprocessing.size), *noise])
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
    least = 0
    plain = [type(step) for step in geometry] == [transforms.Resize, transforms.CenterCrop]
    if preprocessing.resize in (FAST, REDUCED) and plain and isinstance(geometry[0].size, int):
        resize, crop = geometry
        if resize.interpolation.value in FastResize.MODES:
            geometry = [FastResize(resize.size, resize.interpolation.value), crop]
        if preprocessing.resize == REDUCED:
            least = resize.size
    return EvalTransform([*geometry, ToNormalised(normalize.mean, normalize.std), *noise], least)


class Noise:
    """Replaces a normalised image x (3, H, W) by sqrt(1 - t) x + sqrt(t) e, with Gaussian noise e.

    e has the mean 0 and the standard deviation 1, which normalised images have on average. It is drawn from a
    hash of x, so it depends on nothing but the image, and copies of an image have the same noise.

    Args:
        percent: 100 t, the share of the variance that is noise: from 1 to 100, where nothing is left of x.
    """

    def __init__(self, percent: int) -> None:
        self.share = percent / 100

    def __call__(self, clean: torch.Tensor) -> torch.Tensor:
        seed = int.from_bytes(hashlib.sha256(clean.numpy().tobytes()).digest()[:8], "big")
        noise = np.random.default_rng(seed).standard_normal(tuple(clean.shape), dtype=np.float32)
        return (1 - self.share) ** 0.5 * clean + self.share**0.5 * torch.from_numpy(noise)


# transforms of this process by key
OBJECTS: dict[str, Callable[[Image.Image], Any]] = {}


class ObjectTransform:
    """A transform that a user made: RGB image -> normalised tensor (3, H, W).

    Raises:
        BenchError: the object is not in this process, or it returns something else.
    """

    def __init__(self, key: str, size: tuple[int, int]) -> None:
        if key not in OBJECTS:
            raise BenchError(f"the transform {key} is an object of another Python session")
        self.transform = OBJECTS[key]
        self.size = size

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = self.transform(image)
        if not isinstance(pixels, torch.Tensor) or tuple(pixels.shape) != (3, *self.size):
            shape = tuple(pixels.shape) if hasattr(pixels, "shape") else type(pixels).__name__
            height, width = self.size
            raise BenchError(f"the transform returned {shape}, not a tensor (3, {height}, {width})")
        return pixels.float()


class ToNormalised:
    """Converts an RGB image, or its bytes (3, H, W), to a normalised tensor.

    Like ToTensor and Normalize, but in one step.
    """

    def __init__(self, mean: Any, std: Any) -> None:
        self.mean = torch.as_tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.std = torch.as_tensor(std, dtype=torch.float32).view(-1, 1, 1)

    def __call__(self, image: Image.Image | torch.Tensor) -> torch.Tensor:
        if isinstance(image, Image.Image):
            image = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        values = torch.empty(image.shape)
        values.copy_(image)
        return values.div_(255).sub_(self.mean).div_(self.std)


class FastResize:
    """Resizes the shorter side to `shorter` with torch's kernels for bytes: RGB image -> (3, h, w) uint8."""

    MODES = ("bilinear", "bicubic")

    def __init__(self, shorter: int, mode: str) -> None:
        self.shorter = shorter
        self.mode = mode

    def __call__(self, image: Image.Image) -> torch.Tensor:
        width, height = image.size
        longer = int(self.shorter * max(width, height) / min(width, height))  # as torchvision
        size = (longer, self.shorter) if width <= height else (self.shorter, longer)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return interpolate(pixels[None], size, mode=self.mode, antialias=True)[0]


def train_transform(
    preprocessing: Preprocessing,
    *,
    crop_scale: Sequence[float],
    crop_ratio: Sequence[float],
    hflip: float,
    auto_augment: str = "",
    color_jitter: float = 0.0,
    reprob: float = 0.0,
    remode: str = "pixel",
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
        color_jitter=color_jitter or None,
        auto_augment=auto_augment or None,
        re_prob=reprob,
        re_mode=remode,
    )
    assert isinstance(transform, transforms.Compose)
    if preprocessing.noise:
        transform.transforms.append(Noise(preprocessing.noise))
    return transform
