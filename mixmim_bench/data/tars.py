"""Images in tar archives, read in place without unpacking.

The members of an archive are listed once; the list is cached in `listings/` inside the cache folder, keyed by
path, size and time of the archive.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from mixmim_bench.atomic import read_json, write_whole
from mixmim_bench.cache import cache_folder
from mixmim_bench.data.files import Names
from mixmim_bench.data.images import decode, decoding, hashed
from mixmim_bench.data.layout import LayoutError
from mixmim_bench.specs import digest

VERSION = 1  # raised when what is kept of an archive changes
THREADS = 4  # that wait for the disk
_BLOCK = 512

# name of a member, first byte, bytes
Member = tuple[str, int, int]


@dataclass(frozen=True)
class InTars:
    """Images in archives: archive (n,), offset (n,) and size in bytes (n,) of each."""

    paths: tuple[Path, ...]
    names: Names
    archive: np.ndarray
    start: np.ndarray
    sizes: np.ndarray
    stamps: tuple[str, ...]  # of the archives: size and time

    def __len__(self) -> int:
        return len(self.names)

    def _read(self, row: int) -> bytes:
        with decoding():
            with self.paths[self.archive[row]].open("rb") as file:
                file.seek(int(self.start[row]))
                data = file.read(int(self.sizes[row]))
            if len(data) < self.sizes[row]:
                raise EOFError("the archive is cut short")
            return data

    def load(self, row: int) -> Image.Image:
        return decode(self._read(row))

    def name(self, row: int) -> str:
        return f"{self.paths[self.archive[row]]}:{self.names[row]}"

    def content(self, row: int) -> str:
        return str(self.sizes[row])  # as of the same image in a file

    def stamp(self, row: int) -> str:
        return f"{self.sizes[row]}:{self.start[row]}:{self.stamps[self.archive[row]]}"

    def digest(self, row: int) -> bytes:
        return hashed(self._read(row))

    def summary(self) -> bytes:
        arrays = (self.names.bytes, self.names.ends, self.archive, self.start, self.sizes)
        texts = " ".join([*map(str, self.paths), *self.stamps]).encode("utf-8", "surrogateescape")
        return hashlib.sha256(b"".join([*(array.tobytes() for array in arrays), texts])).digest()


def in_tars(members: Sequence[tuple[Path, list[Member]]]) -> InTars:
    """Build images from members of archives."""
    every = [member for _, found in members for member in found]
    return InTars(
        paths=tuple(path for path, _ in members),
        names=Names(name for name, _, _ in every),
        archive=np.repeat(np.arange(len(members)), [len(found) for _, found in members]),
        start=np.array([start for _, start, _ in every], dtype=np.int64),
        sizes=np.array([size for _, _, size in every], dtype=np.int64),
        stamps=tuple(_stamp(path) for path, _ in members),
    )


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}"


def members(path: Path, within: tuple[IO[bytes], int, int] | None = None) -> Iterator[Member]:
    """List the visible files in an archive, or in one `within` another (file, offset, size).

    Raises LayoutError for compressed, truncated and other files.
    """
    with path.open("rb") if within is None else io.BytesIO() as own:
        file: Any = own if within is None else _Window(*within)
        offset = 0 if within is None else within[1]
        end = file.seek(0, io.SEEK_END)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    hidden = member.name.rpartition("/")[2].startswith(".")  # such as macOS adds
                    if member.isfile() and not hidden:
                        if member.offset_data + member.size > end:
                            raise tarfile.ReadError("unexpected end of data")
                        yield member.name, offset + member.offset_data, member.size
                file.seek(archive.offset)
                if file.read(_BLOCK) != bytes(_BLOCK):
                    raise tarfile.ReadError("it does not end as an archive does")
        except tarfile.ReadError as error:
            packed = path.suffix in (".gz", ".tgz", ".zst", ".xz", ".bz2")
            way_out = (
                "unpack it to a plain .tar" if packed else "it is cut short or no archive; download it again"
            )
            raise LayoutError(f"{path}: {error}: {way_out}") from error


class _Window(io.RawIOBase):
    """A section of a file as a file object."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self.file, self.start, self.size, self.place = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        return self.place

    def read(self, size: int = -1) -> bytes:
        left = max(self.size - self.place, 0)
        self.file.seek(self.start + self.place)
        data = self.file.read(left if size < 0 else min(size, left))
        self.place += len(data)
        return data


def nested(path: Path) -> Iterator[tuple[str, list[Member]]]:
    """Yield the name and members of each archive in an archive; raises LayoutError."""
    with path.open("rb") as file:
        for name, start, size in members(path):
            yield name, list(members(path, (file, start, size)))


def kept(path: Path, how: str, read: Callable[[Path], Any]) -> Any:
    """Return `read(archive)`, a JSON value, from the cache if possible.

    how: describes further inputs of `read`, for the cache key.
    """
    key = digest([VERSION, how, str(path.resolve()), _stamp(path)], 32)
    file = cache_folder() / "listings" / f"{path.stem}-{digest(str(path.resolve()), 8)}.json"
    listing = read_json(file)
    if listing.get("key") == key and "value" in listing:
        return listing["value"]
    value = read(path)
    with suppress(OSError):  # then it is read again next time
        write_whole(file, json.dumps({"key": key, "value": value}).encode())
    return value


def kept_of_all(paths: Sequence[Path], how: str, read: Callable[[Path], Any]) -> list[Any]:
    """Apply `kept` to several archives in threads."""
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(lambda path: kept(path, how, read), paths))
