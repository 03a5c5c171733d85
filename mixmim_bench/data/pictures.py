"""Images without a dataset: paths, bytes, PIL images and arrays."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mixmim_bench.data.files import scan
from mixmim_bench.data.images import EXTENSIONS, decoding, to_rgb
from mixmim_bench.errors import BenchError

Picture = str | Path | bytes | Image.Image | np.ndarray


@dataclass(frozen=True)
class Pictures:
    """Paths, encoded bytes, PIL images and RGB arrays; the EXIF orientation is applied."""

    sources: Sequence[Picture]

    def __len__(self) -> int:
        return len(self.sources)

    def load(self, row: int) -> Image.Image:
        """Decode an image to RGB; raises UnreadableImage."""
        source = self.sources[row]
        with decoding():
            if isinstance(source, np.ndarray):
                return to_rgb(Image.fromarray(source))
            if isinstance(source, Image.Image):
                return _upright(source)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                return _upright(image)

    def name(self, row: int) -> str:
        """Return the path or number of an image."""
        source = self.sources[row]
        return str(source) if isinstance(source, str | Path) else f"image {row}"


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation, and convert to RGB."""
    turned = ImageOps.exif_transpose(image)
    return to_rgb(turned)


def read_input(content: bytes) -> list[Path] | list[bytes]:
    """Read standard input: one encoded image, or a list of paths, one per line. Raises BenchError.

    Paths in the list that do not exist count as unreadable images.
    """
    try:
        with Image.open(io.BytesIO(content)):
            return [content]
    except Exception:
        pass
    try:
        lines = [line for line in content.decode().splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise BenchError("standard input is neither an image nor a list of paths") from None
    if not lines:
        raise BenchError("standard input is empty; it should be an image or a list of paths")
    return find_pictures([Path(line) for line in lines], must_exist=False)


def find_pictures(paths: Sequence[Path], must_exist: bool = True) -> list[Path]:
    """List the given files, and the images in folders, sorted. Raises BenchError."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = sorted(path / name for name, _, _ in scan(path))
            if not below:
                raise BenchError(f"no image below {path} (looked for {', '.join(sorted(EXTENSIONS))})")
            found += below
        elif path.exists() or not must_exist:
            found.append(path)
        else:
            raise BenchError(f"there is no file {path}")
    return found
