"""Windows that cover images with their label maps, as a part of a dataset."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mixmim_bench.data.images import Part
from mixmim_bench.data.joint import View, fitted
from mixmim_bench.data.masks import IGNORED, Masks
from mixmim_bench.data.transforms import ToNormalised
from mixmim_bench.specs import Preprocessing


class Windows:
    """Images of a part, resized to a shorter side and cut into squares that cover them.

    Attributes:
        images: (m,), the row in the part that each window is of.
        views: of each window.
    """

    def __init__(self, part: Part, preprocessing: Preprocessing, size: int, stride: int) -> None:
        """List the windows of a part, whose targets are `Masks`, by the sizes of its label maps."""
        from timm.data.transforms import str_to_pil_interp

        masks: Any = part.targets
        assert isinstance(masks, Masks)
        self.part = part
        self.resample = str_to_pil_interp(preprocessing.interpolation)
        rows, views = [], []
        for row, (high, wide) in enumerate(masks.found.sizes.tolist()):
            height, width = fitted(high, wide, size)
            for top, left, h, w in windows(height, width, size, stride):
                rows.append(row)
                views.append(View(height, width, top, left, (h, w)))
        self.images = np.array(rows, dtype=np.int64)
        self.views = views

    def __len__(self) -> int:
        return len(self.views)

    def load(self, row: int) -> Image.Image:
        """Return the pixels of a window; raises UnreadableImage."""
        image = self.part.images.load(int(self.images[row]))
        return self.views[row].pixels(image, self.resample)

    def name(self, row: int) -> str:
        return self.part.images.name(int(self.images[row]))

    def digest(self, row: int) -> bytes:
        return self.part.images.digest(int(self.images[row]))

    def as_part(self) -> Part:
        """Return the windows with their label maps as a part that can be trained on."""
        images: Any = self
        targets: Any = WindowMaps(self)
        return Part(self.part.ids[self.images], targets, images)


class WindowMaps:
    """The label maps of windows."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def load(self, row: int) -> np.ndarray:
        """Return the label map of a window (h, w); raises UnreadableImage."""
        windows = self.windows
        return windows.views[row].nearest(windows.part.targets.load(int(windows.images[row])))

    def collate(self, loaded: Sequence[Any]) -> Any:
        return self.windows.part.targets.collate(loaded)


class PaddedWindow:
    """Normalises a window and its label map, and pads both to a square."""

    def __init__(self, preprocessing: Preprocessing, size: int) -> None:
        self.normalise = ToNormalised(preprocessing.mean, preprocessing.std)
        self.size = size

    def __call__(self, image: Image.Image, target: np.ndarray) -> tuple[Tensor, Tensor]:
        padding = (0, self.size - image.width, 0, self.size - image.height)
        labels = torch.from_numpy(np.ascontiguousarray(target))
        return (
            torch.nn.functional.pad(self.normalise(image), padding),
            torch.nn.functional.pad(labels, padding, value=IGNORED),
        )


def windows(height: int, width: int, crop: int, stride: int) -> list[tuple[int, int, int, int]]:
    """List windows (top, left, h, w) of at most `crop` pixels that cover an image.

    The last ones are moved inwards, as in mmsegmentation's sliding evaluation.
    """
    return [
        (top, left, min(crop, height), min(crop, width))
        for top in _starts(height, crop, stride)
        for left in _starts(width, crop, stride)
    ]


def _starts(side: int, crop: int, stride: int) -> list[int]:
    steps = max(side - crop + stride - 1, 0) // stride + 1
    return [max(min(step * stride + crop, side) - crop, 0) for step in range(steps)]
