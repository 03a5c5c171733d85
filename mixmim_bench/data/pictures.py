"""Images outside of datasets: paths, bytes, PIL images and arrays."""

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
        """Return the path or index of an image."""
        source = self.sources[row]
        return str(source) if isinstance(source, str | Path) else f"image {row}"


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation and convert to RGB."""
    return to_rgb(ImageOps.exif_transpose(image))


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
    """List the given files and, sorted, the images in the given folders. Raises BenchError."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            images = sorted(path / name for name, _, _ in scan(path))
            if not images:
                raise BenchError(f"no images in {path} (extensions: {', '.join(sorted(EXTENSIONS))})")
            files += images
        elif path.exists() or not must_exist:
            files.append(path)
        else:
            raise BenchError(f"no such file: {path}")
    return files
