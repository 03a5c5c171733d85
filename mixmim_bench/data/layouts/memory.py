"""Images of a Python session: arrays, lists of images, and torch datasets."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mixmim_bench.data.images import Arrays, Part, hashed, to_rgb
from mixmim_bench.data.layout import LayoutError
from mixmim_bench.errors import BenchError

# key -> names of the classes, and the parts; they live as long as the process
HELD: dict[str, tuple[tuple[str, ...], dict[str, Part]]] = {}


class Memory:
    """Parts that `hold` has been given.

    Args:
        root: not used.
        parts: the required parts.
        key: what `hold` returned.
    """

    partial = False

    def __init__(self, root: Path, parts: Sequence[str], key: str) -> None:
        del root
        self.key = key
        if key in HELD and (absent := sorted(set(parts) - set(HELD[key][1]))):
            raise LayoutError(f"no images for {', '.join(absent)}", "split")

    def missing(self) -> str:
        return "" if self.key in HELD else "images of another Python session"

    def classes(self) -> Sequence[str]:
        return HELD[self.key][0]

    def part(self, name: str) -> Part:
        return HELD[self.key][1][name]


def hold(classes: Sequence[str], parts: Mapping[str, Part]) -> str:
    """Keep parts for this process, and return their key."""
    hashed_parts = hashlib.sha256(" ".join(classes).encode())
    for name, part in parts.items():
        for summary in (name.encode(), part.targets.summary(), part.images.summary()):
            hashed_parts.update(summary)
    key = hashed_parts.hexdigest()[:16]
    HELD[key] = (tuple(classes), dict(parts))
    return key


def part_of(name: str, data: Any) -> Part:
    """Make a part of a pair of images and labels, or of a torch dataset of such pairs.

    Args:
        name: of the part, which ids begin with.
        data: (images, labels), where images are arrays of uint8 (n, h, w), (n, h, w, 3) or (n, 3, h, w), or a
            sequence of images, and labels are (n,) or, for several labels per image, (n, K); or a dataset
            whose items are an image and its label. An image is a PIL image or such an array.

    Raises:
        BenchError: images are of another kind, or labels do not fit them.
    """
    if isinstance(data, tuple) and len(data) == 2:
        images, labels = _images_of(name, data[0]), np.asarray(data[1])
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        images = Items(data, f"{name} of {type(data).__name__}")
        labels = np.asarray(images.labels)
    else:
        raise BenchError(f"{name}: must be (images, labels) or a torch Dataset, not {type(data).__name__}")
    if labels.ndim not in (1, 2) or not np.issubdtype(labels.dtype, np.integer):
        raise BenchError(
            f"{name}: labels must be integers (n,) or (n, K), not {labels.dtype} {labels.shape}; number the "
            "classes from 0"
        )
    if len(labels) != len(images) or not len(labels):
        raise BenchError(f"{name}: {len(images)} images and {len(labels)} labels")
    ids = np.array([f"{name}/{row:08d}" for row in range(len(labels))])
    return Part(ids, labels.astype(np.int64), images)


def _images_of(name: str, images: Any) -> "Arrays | Items":
    if hasattr(images, "detach"):  # a tensor, without importing torch
        images = images.detach().cpu().numpy()
    if not isinstance(images, np.ndarray) or images.dtype == object:
        return Items([(image, 0) for image in images], name)
    if images.ndim == 4 and images.shape[1] == 3 and images.shape[3] != 3:
        images = images.transpose(0, 2, 3, 1)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise BenchError(
            f"{name}: images must be uint8, of shape (n, h, w), (n, h, w, 3) or (n, 3, h, w), not "
            f"{images.dtype} {images.shape}; models bring their own preprocessing, so pass pixels of 0 to 255"
        )
    return Arrays(np.ascontiguousarray(images), name)


class Items:
    """The images of a sequence of (image, label), read once to identify them and whenever they are needed."""

    def __init__(self, dataset: Any, source: str) -> None:
        self.dataset = dataset
        self.source = source
        self.labels: list[Any] = []
        digests = []
        for row in range(len(dataset)):
            image, label = self._item(row)
            self.labels.append(np.asarray(label))
            digests.append(_digest(image))
        self.digests = digests

    def _item(self, row: int) -> tuple[Image.Image, Any]:
        item = self.dataset[row]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise BenchError(f"{self.name(row)}: must be an image and its label, not {type(item).__name__}")
        return _rgb(item[0], self.name(row)), item[1]

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, row: int) -> Image.Image:
        return self._item(row)[0]

    def name(self, row: int) -> str:
        return f"{self.source}[{row}]"

    def content(self, row: int) -> str:
        return self.digests[row].hex()

    def stamp(self, row: int) -> str:
        return self.content(row)

    def digest(self, row: int) -> bytes:
        return self.digests[row]

    def summary(self) -> bytes:
        return hashlib.sha256(b"".join(self.digests)).digest()


def _rgb(image: Any, name: str) -> Image.Image:
    if hasattr(image, "detach"):
        image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray):
        if image.ndim == 3 and image.shape[0] in (1, 3) and image.shape[2] not in (1, 3):
            image = image.transpose(1, 2, 0)
        if image.ndim == 3 and image.shape[2] == 1:
            image = image[:, :, 0]
        if image.dtype == np.uint8 and image.ndim in (2, 3):
            image = Image.fromarray(np.ascontiguousarray(image))
    if not isinstance(image, Image.Image):
        kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise BenchError(
            f"{name}: must be a PIL image or pixels of uint8, not {kind}; models bring their own "
            "preprocessing, so leave out the dataset's transform"
        )
    return to_rgb(image)


def _digest(image: Image.Image) -> bytes:
    return hashed(f"{image.size}".encode() + image.tobytes())
