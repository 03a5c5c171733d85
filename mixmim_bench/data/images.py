"""Images as they lie in files or arrays, and their decoding to RGB."""

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif"}
)


class UnreadableImage(Exception):
    """One image that cannot be decoded."""


# What the file system says of one file; anything else it says is no fault of the image.
_OF_THE_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)


@contextmanager
def decoding() -> Iterator[None]:
    """Turn what a decoder says of an image into UnreadableImage.

    The end of memory, too many open files or a failing disk are raised as they are: another start may
    well read the image.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # PIL raises many kinds, down to struct.error
        if isinstance(error, OSError) and error.errno not in (None, *_OF_THE_FILE):
            raise
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:16]


class Loadable(Protocol):
    """A sequence of images that are decoded when asked for."""

    def __len__(self) -> int: ...

    def load(self, row: int) -> Image.Image:
        """Decode one image to RGB; raises UnreadableImage."""

    def name(self, row: int) -> str:
        """Name one image for people."""


class Images(Loadable, Protocol):
    """Images of a dataset, of which each can be told from another one."""

    def content(self, row: int) -> str:
        """Say what would hardly stay if the image were another one, on any machine: its size or digest."""

    def stamp(self, row: int) -> str:
        """Say what would change here if the image did: also the time of its file."""

    def digest(self, row: int) -> bytes:
        """Hash the bytes of one image, 16 bytes; raises UnreadableImage."""


@dataclass(frozen=True)
class Files:
    """Images in files; `paths` are relative to `root`."""

    root: Path
    paths: np.ndarray  # (n,) of str

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, row: int) -> Image.Image:
        with decoding(), Image.open(self.name(row)) as image:
            return to_rgb(image)

    def name(self, row: int) -> str:
        return str(self.root / str(self.paths[row]))

    def content(self, row: int) -> str:
        return self.stamp(row).partition(":")[0]

    def stamp(self, row: int) -> str:
        try:
            status = Path(self.name(row)).stat()
        except OSError:  # a link to nowhere; loading it tells more
            return "absent"
        return f"{status.st_size}:{status.st_mtime_ns}"

    def digest(self, row: int) -> bytes:
        with decoding():
            return _digest(Path(self.name(row)).read_bytes())


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
        return _digest(self.pixels[row].tobytes())


@dataclass(frozen=True)
class Taken:
    """Some images of others, in the order of `rows`; each row is (member, row in it)."""

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


@dataclass(frozen=True)
class Part:
    """A part of a dataset: images with their canonical ids and their labels."""

    ids: np.ndarray  # (n,) of str
    labels: np.ndarray  # (n,) int64
    images: Images

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> "Part":
        """Keep some rows, in the order given."""
        inner = np.stack([np.zeros_like(rows), rows], axis=1)
        return Part(self.ids[rows], self.labels[rows], Taken((self.images,), inner))


def join(parts: Sequence[Part]) -> Part:
    """Put parts behind one another."""
    rows = [(member, row) for member, part in enumerate(parts) for row in range(len(part))]
    return Part(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.labels for part in parts]),
        Taken(tuple(part.images for part in parts), np.array(rows, dtype=np.int64).reshape(-1, 2)),
    )


def images_below(folder: str | Path, prefix: str = "") -> Iterator[str]:
    """List the images below a folder at any depth, by their extension; hidden files are none.

    Gives paths from the folder, behind `prefix`.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{prefix}{entry.name}"
            if entry.is_dir():
                yield from images_below(entry.path, f"{path}/")
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:  # noqa: PTH122 (fast)
                yield path


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert as torchvision's and timm's loaders do, but keep the upper bits of 16-bit images."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        if values.max(initial=0) > 255:
            values = values / 257.0
        image = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    return image.convert("RGB")
