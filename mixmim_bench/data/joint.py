"""Transforms of images together with label maps or objects, by the preprocessing of a model."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import str_to_pil_interp
from torch import Tensor
from torchvision.transforms import v2

from mixmim_bench.data.images import UnreadableImage
from mixmim_bench.data.masks import IGNORED
from mixmim_bench.data.objects import Annotated
from mixmim_bench.data.transforms import ToNormalised
from mixmim_bench.specs import Preprocessing

LONGEST = 4  # sides of at most so many times the shorter side that is wanted, as in mmsegmentation
TRIES = 10  # crops, until none of the classes fills too much of one


class View(NamedTuple):
    """An image resized to (height, width), of which a window is seen."""

    height: int
    width: int
    top: int
    left: int
    window: tuple[int, int]  # h, w

    def pixels(self, image: Image.Image, resample: int) -> Image.Image:
        """Return the window of a resized image."""
        (high, wide), (w, h) = self.window, image.size
        across, down = w / self.width, h / self.height
        box = (self.left * across, self.top * down, (self.left + wide) * across, (self.top + high) * down)
        return image.resize((wide, high), resample, (*box[:2], min(box[2], w), min(box[3], h)))

    def nearest(self, array: np.ndarray) -> np.ndarray:
        """Return the window of a label map or masks (…, h, w), by their nearest pixels."""
        h, w = array.shape[-2:]
        rows = ((np.arange(self.top, self.top + self.window[0]) + 0.5) * h / self.height).astype(np.int64)
        columns = ((np.arange(self.left, self.left + self.window[1]) + 0.5) * w / self.width).astype(np.int64)
        return array[..., rows.clip(max=h - 1)[:, None], columns.clip(max=w - 1)]


def _resized(image: Image.Image, shorter: float, longer: float) -> tuple[int, int]:
    """Return the size (h, w) of an image whose sides are enlarged as far as neither exceeds its bound."""
    return _scaled(image.height, image.width, shorter, longer)


def _scaled(height: int, width: int, shorter: float, longer: float) -> tuple[int, int]:
    factor = min(shorter / min(width, height), longer / max(width, height))
    return max(1, round(height * factor)), max(1, round(width * factor))


def fitted(height: int, width: int, size: int) -> tuple[int, int]:
    """Return the size (h, w) of an image whose shorter side is resized to `size`, for evaluation."""
    return _scaled(height, width, size, size * LONGEST)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _below(number: int) -> int:
    return int(torch.randint(number, ()))


class _Joint:
    """What the transforms have in common: the model's preprocessing, without its size and crop."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.resample = str_to_pil_interp(preprocessing.interpolation)
        self.normalise = ToNormalised(preprocessing.mean, preprocessing.std)


class _Colors(v2.RandomPhotometricDistort):
    """torchvision's contrast, saturation and hue, without its permutation of the channels."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {**super().make_params(flat_inputs), "channel_permutation": None}


class PhotometricDistortion:
    """mmsegmentation's: brightness by at most 32 of 255, contrast, saturation, hue, each half of the time."""

    BRIGHTNESS = 32

    def __init__(self) -> None:
        # hue: 18 of OpenCV's 180
        self.rest = _Colors(
            brightness=(1.0, 1.0), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.1, 0.1), p=0.5
        )

    def __call__(self, image: Image.Image) -> Image.Image:
        if _uniform(0.0, 1.0) < 0.5:
            change = _uniform(-self.BRIGHTNESS, self.BRIGHTNESS)
            image = Image.fromarray((np.asarray(image) + change).clip(0, 255).astype(np.uint8))
        return self.rest(image)


class SegmentationTrain(_Joint):
    """Random scale, crop, flip and colours of an image and its label map, as in mmsegmentation.

    Both are padded to squares.

    Args:
        preprocessing: of the model.
        size: side of the crop, and the shorter side at scale 1.
        scale: the range of random scales.
        fullest: the largest share of a crop that one class may fill; tried ten times.
        hflip: probability of mirroring.
        photometric: random brightness, contrast, saturation and hue.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        size: int,
        scale: Sequence[float],
        fullest: float = 1.0,
        hflip: float = 0.5,
        photometric: bool = True,
    ) -> None:
        super().__init__(preprocessing)
        self.size = size
        self.scale = tuple(scale)
        self.fullest = fullest
        self.hflip = hflip
        self.photometric = PhotometricDistortion() if photometric else None

    def __call__(self, image: Image.Image, target: np.ndarray) -> tuple[Tensor, Tensor]:
        ratio = _uniform(*self.scale)
        height, width = _resized(image, self.size * ratio, self.size * LONGEST * ratio)
        window = (min(height, self.size), min(width, self.size))
        for _ in range(TRIES):
            top, left = _below(height - window[0] + 1), _below(width - window[1] + 1)
            view = View(height, width, top, left, window)
            labels = view.nearest(target)
            counts = np.bincount(labels[labels >= 0].astype(np.int64))
            if self.fullest >= 1.0 or ((counts > 0).sum() > 1 and counts.max() < self.fullest * counts.sum()):
                break
        pixels = view.pixels(image, self.resample)
        if self.photometric is not None:
            pixels = self.photometric(pixels)
        seen, found = self.normalise(pixels), torch.from_numpy(labels.copy())
        if _uniform(0.0, 1.0) < self.hflip:
            seen, found = seen.flip(-1), found.flip(-1)
        padding = (0, self.size - window[1], 0, self.size - window[0])
        return torch.nn.functional.pad(seen, padding), torch.nn.functional.pad(found, padding, value=IGNORED)


class SegmentationEval(_Joint):
    """Resizes an image to a shorter side; its label map stays as it is."""

    def __init__(self, preprocessing: Preprocessing, *, size: int) -> None:
        super().__init__(preprocessing)
        self.size = size

    def __call__(self, image: Image.Image, target: Any) -> tuple[Tensor, Any]:
        height, width = fitted(image.height, image.width, self.size)
        pixels = self.normalise(image.resize((width, height), self.resample))
        return pixels, None if target is None else torch.from_numpy(target)


class DetectionTrain(_Joint):
    """Random scale, crop and flip of an image and its objects, padded to a square.

    Large-scale jitter (arXiv 2012.07177) enlarges the longer side to `size` times a random scale, and crops a
    square of `size`; with `shorter`, the shorter side is one of these, and the longer side `size` at most.
    Objects whose box or mask is outside of what is seen are dropped.

    Args:
        preprocessing: of the model.
        size: side of the square.
        jitter: the range of random scales.
        shorter: shorter sides to choose from; (): large-scale jitter.
        hflip: probability of mirroring.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        size: int,
        jitter: Sequence[float] = (1.0, 1.0),
        shorter: Sequence[int] = (),
        hflip: float = 0.5,
    ) -> None:
        super().__init__(preprocessing)
        self.size = size
        self.jitter = tuple(jitter)
        self.shorter = tuple(shorter)
        self.hflip = hflip

    def __call__(self, image: Image.Image, target: Annotated) -> tuple[Tensor, dict[str, Tensor]]:
        check_size(image, target)
        if self.shorter:
            height, width = _resized(image, self.shorter[_below(len(self.shorter))], self.size)
        else:
            longer = self.size * _uniform(*self.jitter)
            height, width = _resized(image, longer, longer)
        window = (min(height, self.size), min(width, self.size))
        top, left = _below(height - window[0] + 1), _below(width - window[1] + 1)
        view = View(height, width, top, left, window)
        pixels = self.normalise(view.pixels(image, self.resample))
        objects = _objects_in(view, target, (image.height, image.width))
        if _uniform(0.0, 1.0) < self.hflip:
            pixels = pixels.flip(-1)
            boxes = objects["boxes"]
            objects["boxes"] = torch.stack(
                [window[1] - boxes[:, 2], boxes[:, 1], window[1] - boxes[:, 0], boxes[:, 3]], dim=1
            )
            if "masks" in objects:
                objects["masks"] = objects["masks"].flip(-1)
        padding = (0, self.size - window[1], 0, self.size - window[0])
        if "masks" in objects:
            objects["masks"] = torch.nn.functional.pad(objects["masks"], padding)
        return torch.nn.functional.pad(pixels, padding), {**objects, "size": torch.tensor(window)}


def _objects_in(view: View, target: Annotated, size: tuple[int, int]) -> dict[str, Tensor]:
    """Return boxes (k, 4), classes (k,) and masks (k, h, w) of the objects that a view shows."""
    scale = np.array([view.width / size[1], view.height / size[0]] * 2)
    boxes = target.boxes * scale - np.array([view.left, view.top] * 2)
    boxes = boxes.clip(0, [view.window[1], view.window[0]] * 2)
    kept = ~target.crowd & (boxes[:, 2:] - boxes[:, :2] > 1.0).all(1)
    found: dict[str, Tensor] = {}
    if target.masks is not None:
        seen = [view.nearest(_decoded(target.masks[place])) for place in np.flatnonzero(kept)]
        visible = [mask.any() for mask in seen]
        kept[np.flatnonzero(kept)[np.logical_not(visible)]] = False
        shown = [mask for mask, any_pixel in zip(seen, visible, strict=True) if any_pixel]
        found["masks"] = torch.from_numpy(np.stack(shown) if shown else np.zeros((0, *view.window), np.uint8))
    found["boxes"] = torch.from_numpy(boxes[kept].astype(np.float32))
    found["labels"] = torch.from_numpy(target.labels[kept].astype(np.int64))
    return found


def _decoded(rle: Any) -> np.ndarray:
    from pycocotools import mask

    return mask.decode(rle)


class DetectionEval(_Joint):
    """Resizes an image: its longer side to `size`, or its shorter side to `shorter` if that makes it smaller.

    The target keeps the objects as annotated; `shape` is the size (h, w) of the image as it was.
    """

    def __init__(self, preprocessing: Preprocessing, *, size: int, shorter: int = 0) -> None:
        super().__init__(preprocessing)
        self.size = size
        self.shorter = shorter

    def __call__(self, image: Image.Image, target: Annotated | None) -> tuple[Tensor, Any]:
        if target is not None:
            check_size(image, target)
        height, width = _resized(image, self.shorter or self.size, self.size)
        pixels = self.normalise(image.resize((width, height), self.resample))
        return pixels, {"objects": target, "shape": (image.height, image.width)}


def check_size(image: Image.Image, target: Annotated) -> None:
    """Raise UnreadableImage if an image has another size than its annotations state."""
    if (image.height, image.width) != target.size:
        stated = f"{target.size[0]} x {target.size[1]}"
        raise UnreadableImage(
            f"the annotations state {stated} pixels, but the image has {image.height} x {image.width}"
        )
