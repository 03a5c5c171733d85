"""Images as an array in an HDF5 file."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from mixmim_bench.data.images import decoding, hashed
from mixmim_bench.data.layout import LayoutError


def read_array(path: Path, name: str) -> np.ndarray:
    """Read a whole array; raises LayoutError for an unreadable file."""
    import h5py

    try:
        with h5py.File(path) as file:
            return file[name][()]
    except (OSError, KeyError) as error:
        raise LayoutError(f"{path} cannot be read: {error}; download it again") from error


class InHDF5:
    """Images in an array (n, h, w, 3), read one at a time."""

    def __init__(self, path: Path, array: str) -> None:
        import h5py

        self.path, self.array = path, array
        try:
            with h5py.File(path) as file:
                self.count = len(file[array])
        except (OSError, KeyError) as error:
            raise LayoutError(f"{path} cannot be read: {error}; download it again") from error
        status = path.stat()
        self.size, self.time = status.st_size, status.st_mtime_ns

    def __len__(self) -> int:
        return self.count

    def _read(self, row: int) -> np.ndarray:
        import h5py

        with decoding(), h5py.File(self.path) as file:
            return file[self.array][row]

    def load(self, row: int) -> Image.Image:
        return Image.fromarray(self._read(row)).convert("RGB")

    def name(self, row: int) -> str:
        return f"{self.path}[{self.array}][{row}]"

    def content(self, row: int) -> str:
        return f"{self.size}:{row}"  # size of the file: arrays do not store sizes per row

    def stamp(self, row: int) -> str:
        return f"{self.size}:{self.time}:{row}"

    def digest(self, row: int) -> bytes:
        return hashed(self._read(row).tobytes())

    def summary(self) -> bytes:
        return hashlib.sha256(
            f"{self.path} {self.array} {self.count} {self.size} {self.time}".encode()
        ).digest()
