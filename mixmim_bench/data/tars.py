"""Images in tar archives, read in place without unpacking.

The members of an archive are listed once. The listing is cached in `listings/` in the cache folder, keyed by
the path, size and time of the archive.
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

VERSION = 1  # bump when cached listings change
THREADS = 4  # mostly waiting for the disk
_BLOCK = 512

# name, offset and size in bytes of a member
Member = tuple[str, int, int]


@dataclass(frozen=True)
class InTars:
    """Images in archives.

    Attributes:
        paths: the archives.
        names: the members' names.
        archive: the index of each image's archive in `paths` (n,).
        start: the offset of each image in its archive (n,).
        sizes: the size of each image in bytes (n,).
        stamps: size and time of each archive.
    """

    paths: tuple[Path, ...]
    names: Names
    archive: np.ndarray
    start: np.ndarray
    sizes: np.ndarray
    stamps: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def _read(self, row: int) -> bytes:
        with decoding():
            with self.paths[self.archive[row]].open("rb") as file:
                file.seek(int(self.start[row]))
                data = file.read(int(self.sizes[row]))
            if len(data) < self.sizes[row]:
                raise EOFError("the archive is truncated")
            return data

    def load(self, row: int) -> Image.Image:
        return decode(self._read(row))

    def name(self, row: int) -> str:
        return f"{self.paths[self.archive[row]]}:{self.names[row]}"

    def content(self, row: int) -> str:
        return str(self.sizes[row])  # the same as for an image file

    def stamp(self, row: int) -> str:
        return f"{self.sizes[row]}:{self.start[row]}:{self.stamps[self.archive[row]]}"

    def digest(self, row: int) -> bytes:
        return hashed(self._read(row))

    def summary(self) -> bytes:
        arrays = (self.names.bytes, self.names.ends, self.archive, self.start, self.sizes)
        texts = " ".join([*map(str, self.paths), *self.stamps]).encode("utf-8", "surrogateescape")
        return hashlib.sha256(b"".join([*(array.tobytes() for array in arrays), texts])).digest()


def in_tars(members: Sequence[tuple[Path, list[Member]]]) -> InTars:
    """Create images from the members of archives."""
    images = [image for _, listed in members for image in listed]
    return InTars(
        paths=tuple(path for path, _ in members),
        names=Names(name for name, _, _ in images),
        archive=np.repeat(np.arange(len(members)), [len(listed) for _, listed in members]),
        start=np.array([start for _, start, _ in images], dtype=np.int64),
        sizes=np.array([size for _, _, size in images], dtype=np.int64),
        stamps=tuple(_stamp(path) for path, _ in members),
    )


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}"


def members(path: Path, within: tuple[IO[bytes], int, int] | None = None) -> Iterator[Member]:
    """List the files in an archive, except hidden ones.

    Args:
        path: the file of the archive.
        within: file, offset and size of an archive inside that file.

    Raises:
        LayoutError: the archive is compressed or truncated, or is not an archive.
    """
    with path.open("rb") if within is None else io.BytesIO() as opened:
        file: Any = opened if within is None else _Window(*within)
        offset = 0 if within is None else within[1]
        end = file.seek(0, io.SEEK_END)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    hidden = member.name.rpartition("/")[2].startswith(".")  # such as those added by macOS
                    if member.isfile() and not hidden:
                        if member.offset_data + member.size > end:
                            raise tarfile.ReadError("unexpected end of data")
                        yield member.name, offset + member.offset_data, member.size
                file.seek(archive.offset)
                if file.read(_BLOCK) != bytes(_BLOCK):
                    raise tarfile.ReadError("no end-of-archive marker")
        except tarfile.ReadError as error:
            compressed = path.suffix in (".gz", ".tgz", ".zst", ".xz", ".bz2")
            advice = (
                "decompress it to a plain .tar"
                if compressed
                else "it is truncated or not an archive; download it again"
            )
            raise LayoutError(f"{path}: {error}: {advice}") from error


class _Window(io.RawIOBase):
    """A section of a file as a file object."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self.file, self.start, self.size, self.position = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = origin + offset
        return self.position

    def read(self, size: int = -1) -> bytes:
        remaining = max(self.size - self.position, 0)
        self.file.seek(self.start + self.position)
        data = self.file.read(remaining if size < 0 else min(size, remaining))
        self.position += len(data)
        return data


def nested(path: Path) -> Iterator[tuple[str, list[Member]]]:
    """Yield the name and members of each archive inside an archive; raises LayoutError."""
    with path.open("rb") as file:
        for name, start, size in members(path):
            yield name, list(members(path, (file, start, size)))


def kept(path: Path, how: str, read: Callable[[Path], Any]) -> Any:
    """Return the JSON value `read(path)` of an archive, from the cache if possible.

    Args:
        path: the archive.
        how: further inputs of `read`, for the cache key.
        read: computes the value.
    """
    key = digest([VERSION, how, str(path.resolve()), _stamp(path)], 32)
    file = cache_folder() / "listings" / f"{path.stem}-{digest(str(path.resolve()), 8)}.json"
    listing = read_json(file)
    if listing.get("key") == key and "value" in listing:
        return listing["value"]
    value = read(path)
    with suppress(OSError):  # read again next time
        write_whole(file, json.dumps({"key": key, "value": value}).encode())
    return value


def kept_of_all(paths: Sequence[Path], how: str, read: Callable[[Path], Any]) -> list[Any]:
    """Apply `kept` to several archives in parallel."""
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(lambda path: kept(path, how, read), paths))
