"""Images in files, listed with sizes and times in compact arrays."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mixmim_bench.data.images import EXTENSIONS, decoding, hashed, to_rgb
from mixmim_bench.data.layout import LayoutError
from mixmim_bench.errors import counted

ABSENT = -1  # size of a missing file
MOST_NUMBERED = 1_000_000  # files that {0..N} may expand to


class Names:
    """Many strings in two arrays, which processes share without copying."""

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [os.fsencode(text) for text in texts]
        self.bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        self.ends = np.concatenate([[0], np.cumsum(lengths)])

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, row: int) -> str:
        return os.fsdecode(self.bytes[self.ends[row] : self.ends[row + 1]].tobytes())


class Files:
    """Images in files; `paths` are relative to `root`, with sizes (n,) and times in ns (n,)."""

    def __init__(
        self,
        root: Path,
        paths: Iterable[str],
        sizes: np.ndarray | None = None,
        times: np.ndarray | None = None,
    ) -> None:
        listed = list(paths)
        self.root = root
        self.paths = Names(listed)
        if sizes is None or times is None:
            stats = np.array([_stat(self.name(row)) for row in range(len(listed))], dtype=np.int64)
            stats = stats.reshape(-1, 2)
            sizes, times = stats[:, 0].copy(), stats[:, 1].copy()
        self.sizes = sizes
        self.times = times

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, row: int) -> Image.Image:
        with decoding(), Image.open(self.name(row)) as image:
            return to_rgb(image)

    def name(self, row: int) -> str:
        return os.path.join(self.root, self.paths[row])  # noqa: PTH118 (called for every image)

    def content(self, row: int) -> str:
        return "absent" if self.sizes[row] == ABSENT else str(self.sizes[row])

    def stamp(self, row: int) -> str:
        return "absent" if self.sizes[row] == ABSENT else f"{self.sizes[row]}:{self.times[row]}"

    def digest(self, row: int) -> bytes:
        with decoding():
            return hashed(Path(self.name(row)).read_bytes())

    def summary(self) -> bytes:
        arrays = (self.paths.bytes, self.paths.ends, self.sizes, self.times)
        return hashlib.sha256(b"".join(map(np.ndarray.tobytes, arrays))).digest()

    def there(self) -> np.ndarray:
        """Return the rows of the files that exist."""
        return np.flatnonzero(self.sizes != ABSENT)

    def check_listed(self, where: str) -> None:
        """Raise LayoutError if files are missing; `where` is the list that names them."""
        not_found = np.flatnonzero(self.sizes == ABSENT)
        if len(not_found):
            first = self.name(int(not_found[0]))
            count = counted(len(not_found), "missing image")
            raise LayoutError(f"{where} lists {count}, such as {first}")


def _stat(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116 (called for every image)
    except (OSError, ValueError):  # a dangling link, or an invalid file name
        return ABSENT, ABSENT
    return status.st_size, status.st_mtime_ns


def scan(folder: str | Path, prefix: str = "") -> Iterator[tuple[str, int, int]]:
    """List the images in a folder recursively, by extension, without hidden files.

    Yields:
        For each image, its relative path after `prefix`, its size, and its time in ns.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name[0] == ".":
                continue
            if entry.is_dir():
                yield from scan(entry.path, f"{prefix}{name}/")
            elif name[name.rfind(".") :].lower() in EXTENSIONS:
                yield prefix + name, *_stat(entry.path)


def scanned(root: Path, found: list[tuple[str, int, int]]) -> Files:
    """Create images from the results of `scan`."""
    sizes = np.array([size for _, size, _ in found], dtype=np.int64)
    times = np.array([time for _, _, time in found], dtype=np.int64)
    return Files(root, [path for path, _, _ in found], sizes, times)


def listed_files(root: Path, patterns: Sequence[str] | str) -> list[Path]:
    """List the files that match glob patterns, sorted.

    Args:
        root: the folder that patterns are relative to, unless they are absolute.
        patterns: glob patterns; `{0000..1023}` expands to these numbers, as in WebDataset.

    Raises:
        LayoutError: a pattern is invalid.
    """
    paths: set[Path] = set()
    for text in _texts(patterns):
        anchor = Path(text).anchor
        folder = Path(anchor) if anchor else root
        for each in _numbered(text[len(anchor) :]):
            paths.update(path for path in folder.glob(each) if path.is_file())
    return sorted(paths)


class FilesOfParts:
    """The files of each part, given by glob patterns.

    Args:
        root: the folder that patterns are relative to.
        parts: the required parts.
        patterns: part -> patterns.
        kind: the kind of files, for messages, such as "shards".
        key: the key of the task file, for errors.

    Raises:
        LayoutError: a part has no patterns.
    """

    def __init__(
        self, root: Path, parts: Sequence[str], patterns: Mapping[str, Any], kind: str, key: str
    ) -> None:
        self.root, self.parts, self.patterns, self.kind = root, tuple(parts), dict(patterns), kind
        for part in self.parts:
            if part not in self.patterns:
                raise LayoutError(f"no {kind} given for part {part!r}", key)

    def of(self, part: str) -> list[Path]:
        """List the files of a part, sorted."""
        return listed_files(self.root, self.patterns[part])

    def missing(self) -> str:
        """Describe the expected files of parts that have none; '' if there are no such parts."""
        empty = [part for part in self.parts if not self.of(part)]
        return f"{self.kind} {self.describe(empty)}" if empty else ""

    def describe(self, parts: Sequence[str]) -> str:
        """Describe the expected files of parts by the first pattern of each."""
        return ", ".join(str(self.root / _texts(self.patterns[part])[0]) for part in parts)


def _texts(patterns: Sequence[str] | str) -> list[str]:
    texts = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t for t in texts):
        raise LayoutError(
            f"must be a pattern such as 'train-*.tar', or a list of them, not {patterns!r}",
            "data.options",
        )
    return texts


def _numbered(pattern: str) -> Iterator[str]:
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        yield pattern
        return
    if int(match[2]) - int(match[1]) >= MOST_NUMBERED:
        raise LayoutError(f"{match[0]} expands to more than {MOST_NUMBERED:,} files", "data.options")
    for number in range(int(match[1]), int(match[2]) + 1):
        yield from _numbered(f"{pattern[: match.start()]}{number:0{len(match[1])}d}{pattern[match.end() :]}")
