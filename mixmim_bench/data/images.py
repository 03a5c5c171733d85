"""The interface of images, images in memory, and decoding to RGB."""

import errno
import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from mixmim_bench.data.targets import Labels, LabelVectors, Targets, as_targets

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif"}
)


class UnreadableImage(Exception):
    """An image that cannot be decoded."""


# errors caused by the file itself; other OS errors are not the image's fault
_FILE_ERRORS = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)


@contextmanager
def decoding() -> Iterator[None]:
    """Turn decoding errors into UnreadableImage.

    Running out of memory, too many open files and disk errors propagate, since the image may be readable next
    time.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # PIL raises many types, even struct.error
        if isinstance(error, OSError) and error.errno not in (None, *_FILE_ERRORS):
            raise
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def hashed(data: bytes) -> bytes:
    """Hash the bytes of an image to 16 bytes."""
    return hashlib.sha256(data).digest()[:16]


class Loadable(Protocol):
    """A sequence of images that are decoded on access."""

    def __len__(self) -> int: ...

    def load(self, row: int) -> Image.Image:
        """Decode one image to RGB; raises UnreadableImage."""

    def name(self, row: int) -> str:
        """Return the name of an image, for messages."""


class Images(Loadable, Protocol):
    """Images of a dataset that can be identified."""

    def content(self, row: int) -> str:
        """Return an identifier of the content that is the same on any machine: its size or digest."""

    def stamp(self, row: int) -> str:
        """Return an identifier of the content on this machine, including the file time."""

    def digest(self, row: int) -> bytes:
        """Return the 16-byte digest of an image's bytes; raises UnreadableImage."""

    def summary(self) -> bytes:
        """Hash the names, contents and stamps of all images."""


@dataclass(frozen=True)
class Arrays:
    """Images in memory: uint8 pixels, (n, h, w) or (n, h, w, 3)."""

    pixels: np.ndarray
    source: str

    def __len__(self) -> int:
        return len(self.pixels)

    def load(self, row: int) -> Image.Image:
        return Image.fromarray(self.pixels[row]).convert("RGB")

    def name(self, row: int) -> str:
        return f"{self.source}[{row}]"

    def content(self, row: int) -> str:
        return hashlib.sha256(self.pixels[row].tobytes()).hexdigest()[:16]

    def stamp(self, row: int) -> str:
        return self.content(row)

    def digest(self, row: int) -> bytes:
        return hashed(self.pixels[row].tobytes())

    def summary(self) -> bytes:
        return hashlib.sha256(self.pixels.tobytes()).digest()


@dataclass(frozen=True)
class Taken:
    """Images selected from others; each entry of `rows` is (member, row in that member)."""

    members: tuple[Images, ...]
    rows: np.ndarray  # (n, 2) int64

    def __len__(self) -> int:
        return len(self.rows)

    def _find(self, row: int) -> tuple[Images, int]:
        member, inner = self.rows[row]
        return self.members[member], int(inner)

    def load(self, row: int) -> Image.Image:
        images, inner = self._find(row)
        return images.load(inner)

    def name(self, row: int) -> str:
        images, inner = self._find(row)
        return images.name(inner)

    def content(self, row: int) -> str:
        images, inner = self._find(row)
        return images.content(inner)

    def stamp(self, row: int) -> str:
        images, inner = self._find(row)
        return images.stamp(inner)

    def digest(self, row: int) -> bytes:
        images, inner = self._find(row)
        return images.digest(inner)

    def summary(self) -> bytes:
        return hashlib.sha256(b"".join([*(m.summary() for m in self.members), self.rows.tobytes()])).digest()


class Part:
    """A part of a dataset: images with their canonical ids and their targets.

    Args:
        ids: (n,) of str.
        targets: `Targets`, or the array of `Labels` (n,) or `LabelVectors` (n, K).
        images: the images.
    """

    def __init__(self, ids: np.ndarray, targets: Targets | np.ndarray, images: Images) -> None:
        self.ids = ids
        self.targets = as_targets(targets)
        self.images = images

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> np.ndarray:
        """The array of `Labels` (n,) or `LabelVectors` (n, K); raises TypeError for other targets."""
        if not isinstance(self.targets, Labels | LabelVectors):
            raise TypeError(f"{type(self.targets).__name__} are not class labels")
        return self.targets.values

    def take(self, rows: np.ndarray) -> "Part":
        """Select rows in the given order."""
        inner = np.stack([np.zeros_like(rows), rows], axis=1)
        return Part(self.ids[rows], self.targets.take(rows), Taken((self.images,), inner))


def join(parts: Sequence[Part]) -> Part:
    """Concatenate parts."""
    sizes = [len(part) for part in parts]
    rows = np.empty((sum(sizes), 2), dtype=np.int64)
    rows[:, 0] = np.repeat(np.arange(len(parts)), sizes)
    rows[:, 1] = np.concatenate([np.arange(size) for size in sizes])
    return Part(
        np.concatenate([part.ids for part in parts]),
        parts[0].targets.joined([part.targets for part in parts[1:]]),
        Taken(tuple(part.images for part in parts), rows),
    )


def decode(data: bytes) -> Image.Image:
    """Decode the bytes of an image to RGB; raises UnreadableImage."""
    with decoding(), Image.open(io.BytesIO(data)) as image:
        return to_rgb(image)


_LEAST: ContextVar[int] = ContextVar("least", default=0)


@contextmanager
def decoded_to(least: int) -> Iterator[None]:
    """Decode JPEGs at 1/2, 1/4 or 1/8 if the shorter side keeps `least` pixels; with 0, in full."""
    token = _LEAST.set(least)
    try:
        yield
    finally:
        _LEAST.reset(token)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB like the loaders of torchvision and timm, but keep the upper bits of 16-bit images.

    An open JPEG is decoded at a reduced scale within `decoded_to`.

    Floating-point images have no defined range: values in 0 to 1 are scaled, values outside 0 to 255 raise
    ValueError.
    """
    if least := _LEAST.get():
        image.draft(None, (least, least))  # only JPEG images that are not decoded yet
    if image.mode == "F":
        image = Image.fromarray(_to_bytes(np.asarray(image)))
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        if values.max(initial=0) > 255:
            values = values / 257.0
        image = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    if image.mode != "RGB":
        return image.convert("RGB")
    image.load()  # a conversion would copy the image
    return image


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Convert floating-point values (h, w) in 0 to 1, or in 0 to 255, to uint8."""
    if not np.isfinite(values).all() or values.min(initial=0) < 0 or values.max(initial=0) > 255:
        raise ValueError(
            f"floating-point values from {values.min():g} to {values.max():g} have no defined range; save "
            "integers, or values from 0 to 1"
        )
    scale = 255.0 if values.max(initial=0) <= 1 else 1.0
    return (values * scale).round().astype(np.uint8)
