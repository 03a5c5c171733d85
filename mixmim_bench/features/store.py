"""The feature store: features on a disk, found by everything that made them.

    FOLDER/KEY/made_by.json          what makes the features, and what tells people more; written first
    FOLDER/KEY/x.npy                 the features (n, d), mapped when they are read
    FOLDER/KEY/rows.npz              which images they are of, and the digests of the images' bytes
    FOLDER/KEY/whole.json            what the files before must be; written last
    FOLDER/KEY/chunks/000000512.npz  while it is being filled: images from this row on, each written whole
    FOLDER/KEY.lock                  held by the process that fills it

A key is a hash of weights, architecture, layer, preprocessing, images (id, size, time, label of each),
precision and the extractor's version: whatever changes, the old entry is not found. What is damaged counts as
lacking: the files of an entry are hashed once per process before they are read, and what a chunk holds is
checked before it is built upon.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from filelock import AcquireReturnProxy, FileLock, Timeout

from mixmim_bench.atomic import read_json, write_whole, writing_whole
from mixmim_bench.cache import VARIABLE, cache_folder
from mixmim_bench.errors import BenchError
from mixmim_bench.specs import digest

CHUNK_ROWS = 512  # images that are lost at most when a process is killed
LOOK_S = 60  # between two looks at what another process writes
STALLED_S = 2 * 3600  # without a chunk: those of the largest networks take half an hour on a CPU
SCHEMA = 1
FILES = ("rows.npz", "x.npy")

_intact: dict[
    Path, tuple[tuple[int, int, int], ...]
] = {}  # entries that this process has hashed, as they were


@dataclass(frozen=True)
class Stored:
    """The content of an entry: features (n, d) mapped from the disk, their rows (n,) and digests (n, 16)."""

    x: np.ndarray
    rows: np.ndarray
    digests: np.ndarray


@dataclass(frozen=True)
class Piece:
    """Features of some images.

    Attributes:
        rows: (b,) those of the part that could be read.
        values: (b, d) float32 per layer.
        digests: (b, 16) uint8, of the bytes of each image; empty if not asked for.
        failures: the reason for each row that could not be read.
        batch_size: images that went through the network at a time.
    """

    rows: np.ndarray
    values: Mapping[str, np.ndarray]
    digests: np.ndarray
    failures: Mapping[int, str]
    batch_size: int = 0


class FeatureStore:
    """A folder of entries."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder() / "features"

    def entry(self, made_by: Mapping[str, Any], about: Mapping[str, Any]) -> "Entry":
        """Name the entry for what makes it; `about` tells people more and decides nothing."""
        return Entry(self.folder / digest(dict(made_by), 32), made_by, about)

    def entries(self) -> list["Entry"]:
        """List all entries, the unfinished and the damaged ones too."""
        if not self.folder.is_dir():
            return []
        folders = sorted(path for path in self.folder.iterdir() if path.is_dir())
        found = []
        for path in folders:
            described = read_json(path / "made_by.json")
            parts = [described.get(name) for name in ("made_by", "about")]
            found.append(Entry(path, *(part if isinstance(part, dict) else {} for part in parts)))
        return found


class Entry:
    """Features of one layer for the images of one split."""

    def __init__(self, folder: Path, made_by: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.made_by = made_by
        self.about = about

    @property
    def key(self) -> str:
        return self.folder.name

    def _file(self, name: str) -> Path:
        return self.folder / name

    def lock(self) -> FileLock:
        """Make the lock that is held while the entry is filled or removed; raises BenchError."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder.parent).close()
        except OSError as error:
            raise BenchError(
                f"features cannot be kept in {self.folder.parent}: {error.strerror}; set ${VARIABLE} to a "
                "folder that can be written"
            ) from error
        return FileLock(self.folder.with_suffix(".lock"))

    # -- reading ---------------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any] | None:
        """Read whole.json if the entry is whole: what it names is there and has its size."""
        manifest = read_json(self._file("whole.json"))
        if not _is_manifest(manifest) or digest(dict(self.made_by), 32) != self.key:
            return None
        for name, file in manifest["files"].items():
            path = self._file(name)
            if not path.is_file() or path.stat().st_size != file["bytes"]:
                return None
        return manifest

    def is_intact(self) -> bool:
        """Whether the entry is whole and its files are what was written; hashed once per process."""
        if self.manifest() is None:
            return False
        seen = self._stats()
        if _intact.get(self.folder) != seen:
            if self.damage():
                return False
            _intact[self.folder] = seen
        return True

    def _stats(self) -> tuple[tuple[int, int, int], ...]:
        stats = [self._file(name).stat() for name in FILES]
        return tuple((stat.st_ino, stat.st_size, stat.st_ctime_ns) for stat in stats)

    def open(self) -> Stored:
        """Map the features; raises BenchError if the entry is not whole, or damaged."""
        if not self.is_intact():
            raise BenchError(f"the features {self.folder} are not whole; the same command makes them again")
        with suppress(OSError):  # a folder of somebody else
            os.utime(self._file("whole.json"))  # when it was used last
        with np.load(self._file("rows.npz"), allow_pickle=False) as file:
            rows, digests = file["rows"], file["digests"]
        return Stored(np.load(self._file("x.npy"), mmap_mode="r", allow_pickle=False), rows, digests)

    def damage(self) -> str:
        """Read every byte; say what is wrong, '' if nothing is."""
        manifest = self.manifest()
        if manifest is None:
            return "not whole"
        for name, file in manifest["files"].items():
            try:
                found = _measured(self._file(name))["sha256"]
            except OSError as error:
                return f"{name} cannot be read: {error.strerror}"
            if found != file["sha256"]:
                return f"{name} has changed since it was written"
        return ""

    def bytes(self) -> int:
        """Count what the entry takes on the disk."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def last_used(self) -> datetime:
        """Say when the entry was read or written last."""
        newest = max((path.stat().st_mtime for path in self.folder.rglob("*")), default=0.0)
        return datetime.fromtimestamp(newest, UTC)

    def remove(self) -> bool:
        """Delete the entry, what makes it whole first; False if another process is filling it."""
        lock = self.lock()
        try:
            with lock.acquire(timeout=0):
                self._file("whole.json").unlink(missing_ok=True)
                shutil.rmtree(self.folder, ignore_errors=True)
        except Timeout:
            return False
        return True

    # -- writing ---------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Write what the entry will hold, for who lists it before it is whole; what was damaged goes."""
        self._file("whole.json").unlink(missing_ok=True)
        text = json.dumps(
            {"made_by": dict(self.made_by), "about": dict(self.about)}, indent=1, sort_keys=True
        )
        write_whole(self._file("made_by.json"), text.encode())

    def _chunk(self, start: int) -> Path:
        return self._file("chunks") / f"{start:09d}.npz"

    def has_chunk(self, start: int, stop: int) -> bool:
        """Whether the chunk of the images start to stop is there, with all of them, and undamaged."""
        try:
            bounds, rows, failed, x, digests = (
                self._read(start, name) for name in ("bounds", "rows", "failed", "x", "digests")
            )
            seen = np.sort(np.concatenate([rows, failed]))
            return (
                bounds.tolist() == [start, stop]
                and np.array_equal(seen, np.arange(start, stop))
                and len(rows) == len(x) == len(digests)
            )
        except Exception:  # a damaged file fails in many ways
            return False

    def _read(self, start: int, name: str) -> np.ndarray:
        # numpy leaves a file open that it opened itself and that is no zip archive
        with self._chunk(start).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return file[name]

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """Turn what a disk refuses into a BenchError that names the folder and the variable."""
        try:
            yield
        except OSError as error:
            raise BenchError(
                f"features cannot be kept in {self.folder.parent}: {error.strerror}; free some space, or set "
                f"${VARIABLE} to a folder with more"
            ) from error

    def write_chunk(self, start: int, stop: int, chunk: Mapping[str, np.ndarray]) -> None:
        """Write a chunk, whole or not at all; raises BenchError."""
        with self._keeping(), writing_whole(self._chunk(start)) as file:
            np.savez(file, allow_pickle=False, bounds=np.array([start, stop]), **chunk)

    def finish(self, starts: Sequence[int], images: int) -> None:
        """Join the chunks, one in memory at a time, and say last that it is whole; raises BenchError."""
        with self._keeping():
            self._join(starts, images)

    def _join(self, starts: Sequence[int], images: int) -> None:
        rows = np.concatenate([self._read(start, "rows") for start in starts])
        with writing_whole(self._file("rows.npz")) as file:
            digests = np.concatenate([self._read(start, "digests") for start in starts])
            np.savez_compressed(file, allow_pickle=False, rows=rows, digests=digests)
        width = max(self._read(start, "x").shape[1] for start in starts)
        with writing_whole(self._file("x.npy")) as file:
            form = {"descr": "<f4", "fortran_order": False, "shape": (len(rows), width)}
            np.lib.format.write_array_header_1_0(file, form)
            for start in starts:
                file.write(self._read(start, "x").astype("<f4", copy=False).tobytes())
        files = {name: _measured(self._file(name)) for name in FILES}
        manifest = {"schema": SCHEMA, "images": images, "rows": len(rows), "width": width, "files": files}
        write_whole(self._file("whole.json"), json.dumps(manifest, indent=1, sort_keys=True).encode())
        shutil.rmtree(self._file("chunks"), ignore_errors=True)


class Filling:
    """Entries that lack features of the same images, filled chunk by chunk in the order of the images."""

    def __init__(self, entries: Mapping[str, Entry], images: int) -> None:
        self.entries = entries
        self.images = images
        self.bounds = [(a, min(a + CHUNK_ROWS, images)) for a in range(0, images, CHUNK_ROWS)]
        self.waiting: list[Piece] = []
        for entry in entries.values():
            entry.begin()
        done = 0
        while done < len(self.bounds) and all(e.has_chunk(*self.bounds[done]) for e in entries.values()):
            done += 1
        self.done = done  # chunks

    @property
    def start(self) -> int:
        """The first image that is lacking."""
        return self.bounds[self.done][0] if self.done < len(self.bounds) else self.images

    def add(self, piece: Piece) -> None:
        """Take the next images; they are written as soon as a chunk of them is there."""
        self.waiting.append(piece)
        seen = self.start + sum(len(piece.rows) + len(piece.failures) for piece in self.waiting)
        while self.done < len(self.bounds) and seen >= self.bounds[self.done][1]:
            self._write(*self.bounds[self.done])
            self.done += 1

    def _write(self, start: int, stop: int) -> None:
        pieces = [piece for piece in self.waiting if len(piece.rows)]
        rows = np.concatenate([np.empty(0, np.int64), *(piece.rows for piece in pieces)])
        here, later = rows < stop, rows >= stop
        digests = np.concatenate([np.empty((0, 16), np.uint8), *(piece.digests for piece in pieces)])
        failed = [row for piece in self.waiting for row in piece.failures if start <= row < stop]
        values = {
            layer: np.concatenate([piece.values[layer] for piece in pieces])
            if pieces
            else np.empty((0, 0), "<f4")
            for layer in self.entries
        }
        for layer, entry in self.entries.items():
            chunk = {"rows": rows[here], "digests": digests[here], "x": values[layer][here]}
            entry.write_chunk(start, stop, {**chunk, "failed": np.array(sorted(failed), dtype=np.int64)})
        failures = {row: why for piece in self.waiting for row, why in piece.failures.items() if row >= stop}
        rest = {layer: x[later] for layer, x in values.items()}
        self.waiting = [Piece(rows[later], rest, digests[later], failures)]

    def finish(self) -> None:
        """Make the entries whole; raises ValueError if images are lacking."""
        if self.start < self.images:
            raise ValueError(f"features of {self.images - self.start} images are lacking")
        for entry in self.entries.values():
            entry.finish([start for start, _ in self.bounds], self.images)


@contextmanager
def filling(entries: Mapping[str, Entry], images: int) -> Iterator[Filling | None]:
    """Hold the entries (layer -> entry) and fill those that are not whole; None if all are.

    An entry that another process holds is waited for, while that process writes. Raises BenchError.
    """
    with ExitStack() as held:
        for entry in sorted(entries.values(), key=lambda entry: entry.key):
            held.enter_context(_held(entry))
        lacking = {layer: entry for layer, entry in entries.items() if not entry.is_intact()}
        yield Filling(lacking, images) if lacking else None


def _held(entry: Entry) -> AcquireReturnProxy:
    """Take the lock of an entry; raises BenchError if another process holds it and nothing is written."""
    lock, since = entry.lock(), time.time()
    while True:
        try:
            return lock.acquire(timeout=LOOK_S)
        except Timeout:
            idle = time.time() - max(since, entry.last_used().timestamp())
            if idle > STALLED_S:
                raise BenchError(
                    f"another process holds the features {entry.folder} and has written nothing for "
                    f"{idle / 60:.0f} min; end it (its lock is {lock.lock_file}), then start again"
                ) from None


def _measured(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _is_manifest(values: Mapping[str, Any]) -> bool:
    """Whether values are what `finish` writes."""
    files = values.get("files")
    return (
        values.get("schema") == SCHEMA
        and all(type(values.get(name)) is int for name in ("images", "rows", "width"))
        and isinstance(files, dict)
        and sorted(files) == sorted(FILES)
        and all(
            isinstance(file, dict) and type(file.get("bytes")) is int and type(file.get("sha256")) is str
            for file in files.values()
        )
    )
