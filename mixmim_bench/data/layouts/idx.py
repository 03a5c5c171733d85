"""The files of the MNIST family: `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte`, gzipped or not."""

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mixmim_bench.data.images import Arrays, Part
from mixmim_bench.data.layout import LayoutError

PREFIXES = {"train": "train", "test": "t10k"}
KINDS = {"images": (3, "images-idx3-ubyte"), "labels": (1, "labels-idx1-ubyte")}


class IDX:
    """Four files in the root, in `raw/` or `NAME/raw/` below it, or in the folder `system`.

    The id of an image is its part and position, such as `train_00042`.

    Args:
        root: the folder.
        parts: the required parts.
        classes: the names in label order.
        name: torchvision's name of the dataset, for its folder `NAME/raw/`.
        system: the folder of a system package.
    """

    def __init__(
        self, root: Path, parts: Sequence[str], classes: Sequence[str], name: str = "", system: str = ""
    ) -> None:
        unknown = set(parts) - set(PREFIXES)
        if unknown:
            raise LayoutError(
                f"the parts are {', '.join(PREFIXES)}, not {', '.join(sorted(unknown))}", "split"
            )
        self.parts = tuple(parts)
        self.name = name
        self.folders = [root, root / "raw"]
        if name:  # below torchvision's root, which may be the parent folder
            self.folders += [root / name / "raw", root.parent / name / "raw"]
        self.system = Path(system) if system else None
        self._classes = tuple(classes)

    def missing(self) -> str:
        if all(self._file(part, kind) for part in self.parts for kind in KINDS):
            return ""
        also = f", or the system package in {self.system}" if self.system else ""
        wanted = ", ".join(f"{PREFIXES[part]}-{KINDS[kind][1]}" for part in self.parts for kind in KINDS)
        return f"{wanted} (or .gz) in {self.folders[0]} or its raw/{also}"

    def _file(self, part: str, kind: str) -> Path | None:
        names = [f"{PREFIXES[part]}-{KINDS[kind][1]}{end}" for end in ("", ".gz")]
        folders = [*self.folders, *([self.system] if self.system else [])]
        return next((f / n for f in folders for n in names if (f / n).is_file()), None)

    def fetch(self, folder: Path) -> str:
        """Let torchvision download the files to a folder."""
        from torchvision import datasets

        if not self.name:
            raise LayoutError("has no `name`, by which torchvision knows it", "data.options.name")
        getattr(datasets, self.name)(folder, download=True)
        return f"torchvision's {self.name}"

    def classes(self) -> Sequence[str]:
        return self._classes

    def part(self, name: str) -> Part:
        """Read both files of a part; raises LayoutError for truncated or invalid files."""
        pixels, labels = self._read(name, "images"), self._read(name, "labels")
        if len(pixels) != len(labels):
            raise LayoutError(f"{self._file(name, 'images')}: {len(pixels)} images, but {len(labels)} labels")
        ids = np.array([f"{name}_{row:05d}" for row in range(len(pixels))])
        return Part(ids, labels.astype(np.int64), Arrays(pixels, str(self._file(name, "images"))))

    def _read(self, part: str, kind: str) -> np.ndarray:
        path, dimensions = self._file(part, kind), KINDS[kind][0]
        assert path is not None
        try:
            data = path.read_bytes()
            if path.suffix == ".gz":
                data = gzip.decompress(data)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise LayoutError(f"{path} cannot be unpacked ({error}); download it again") from error
        header = 4 + 4 * dimensions
        if len(data) < header or data[:4] != bytes([0, 0, 8, dimensions]):
            raise LayoutError(f"{path} is not an IDX file of {dimensions} dimensions")
        shape = struct.unpack(f">{dimensions}I", data[4:header])
        if len(data) - header != np.prod(shape):
            raise LayoutError(
                f"{path} should contain {np.prod(shape)} bytes of {kind}, but contains {len(data) - header}"
            )
        return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)
