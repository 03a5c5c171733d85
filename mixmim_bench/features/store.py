"""The feature store: a disk cache of features, keyed by everything they depend on.

    FOLDER/KEY/made_by.json          the inputs of the key, and a description for people; written first
    FOLDER/KEY/x.npy                 the features (n, d), memory-mapped when read
    FOLDER/KEY/rows.npz              the rows of their images, and digests of the image bytes
    FOLDER/KEY/whole.json            sizes and hashes of the files above; written last
    FOLDER/KEY/chunks/000000512.npz  while being filled: a chunk of images from this row on
    FOLDER/KEY/chunks/job            while the processes of a job fill it together (`together`)
    FOLDER/KEY.lock                  held by the process that fills the entry

A key is a hash of weights, architecture, layer, preprocessing, images (id, size, time, label of each),
precision and extractor version; if any of them changes, the key changes. Damaged files count as missing: the
files of an entry are hashed once per process before use, and chunks are verified before extraction resumes.
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

CHUNK_ROWS = 512  # the most images lost when a process is killed
LOOK_S = 60  # seconds between checks on another process
STALLED_S = 2 * 3600  # seconds without a new chunk; the largest networks take half an hour per chunk on a CPU
SCHEMA = 1
FILES = ("rows.npz", "x.npy")

# file stats of the entries that this process has verified
_intact: dict[Path, tuple[tuple[int, int, int], ...]] = {}


@dataclass(frozen=True)
class Stored:
    """The content of an entry: memory-mapped features (n, d), their rows (n,) and digests (n, 16)."""

    x: np.ndarray
    rows: np.ndarray
    digests: np.ndarray


@dataclass(frozen=True)
class Piece:
    """Features of some images.

    Attributes:
        rows: (b,) the readable rows of the part.
        values: layer -> (b, d) float32.
        digests: (b, 16) uint8, hashes of the image bytes; empty unless requested.
        failures: unreadable row -> reason.
        batch_size: the batch size of the forward pass.
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
        """Return the entry keyed by `made_by`; `about` only describes it."""
        return Entry(self.folder / digest(dict(made_by), 32), made_by, about)

    def entries(self) -> list["Entry"]:
        """List all entries, including unfinished and damaged ones."""
        if not self.folder.is_dir():
            return []
        folders = sorted(path for path in self.folder.iterdir() if path.is_dir())
        entries = []
        for path in folders:
            values = read_json(path / "made_by.json")
            parts = [values.get(name) for name in ("made_by", "about")]
            entries.append(Entry(path, *(part if isinstance(part, dict) else {} for part in parts)))
        return entries


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
        """Return the lock to hold while filling or removing the entry; raises BenchError."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder.parent).close()
        except OSError as error:
            raise BenchError(
                f"cannot cache features in {self.folder.parent}: {error.strerror}; set ${VARIABLE} to a "
                "writable folder"
            ) from error
        return FileLock(self.folder.with_suffix(".lock"))

    # -- reading ---------------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any] | None:
        """Return whole.json if the entry is complete, with all files of the right size; else None."""
        manifest = read_json(self._file("whole.json"))
        if not _is_manifest(manifest) or digest(dict(self.made_by), 32) != self.key:
            return None
        for name, file in manifest["files"].items():
            path = self._file(name)
            if not path.is_file() or path.stat().st_size != file["bytes"]:
                return None
        return manifest

    def is_intact(self) -> bool:
        """Whether the entry is complete and its files are unchanged; hashed once per process."""
        if self.manifest() is None:
            return False
        stats = self._stats()
        if _intact.get(self.folder) != stats:
            if self.damage():
                return False
            _intact[self.folder] = stats
        return True

    def _stats(self) -> tuple[tuple[int, int, int], ...]:
        stats = [self._file(name).stat() for name in FILES]
        return tuple((stat.st_ino, stat.st_size, stat.st_ctime_ns) for stat in stats)

    def open(self) -> Stored:
        """Memory-map the features; raises BenchError if the entry is incomplete or damaged."""
        if not self.is_intact():
            raise BenchError(
                f"the features in {self.folder} are incomplete or damaged; rerun to extract them"
            )
        with suppress(OSError):  # another user's folder
            os.utime(self._file("whole.json"))  # time of last use
        with np.load(self._file("rows.npz"), allow_pickle=False) as file:
            rows, digests = file["rows"], file["digests"]
        return Stored(np.load(self._file("x.npy"), mmap_mode="r", allow_pickle=False), rows, digests)

    def damage(self) -> str:
        """Verify every byte and describe the damage, '' if none."""
        manifest = self.manifest()
        if manifest is None:
            return "incomplete"
        for name, file in manifest["files"].items():
            try:
                sha256 = _measured(self._file(name))["sha256"]
            except OSError as error:
                return f"{name} cannot be read: {error.strerror}"
            if sha256 != file["sha256"]:
                return f"{name} has changed since it was written"
        return ""

    def bytes(self) -> int:
        """Return the size of the entry on disk."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def last_used(self) -> datetime:
        """Return when the entry was last read or written."""
        newest = max((path.stat().st_mtime for path in self.folder.rglob("*")), default=0.0)
        return datetime.fromtimestamp(newest, UTC)

    def remove(self) -> bool:
        """Delete the entry, whole.json first; False if another process is filling it."""
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
        """Write made_by.json, so that unfinished entries can be listed, and drop any earlier whole.json.

        Raises BenchError.
        """
        text = json.dumps(
            {"made_by": dict(self.made_by), "about": dict(self.about)}, indent=1, sort_keys=True
        )
        with self.disk_errors():
            self._file("whole.json").unlink(missing_ok=True)
            write_whole(self._file("made_by.json"), text.encode())

    def _chunk(self, start: int) -> Path:
        return self._file("chunks") / f"{start:09d}.npz"

    def has_chunk(self, start: int, stop: int) -> bool:
        """Whether the chunk of images start to stop exists, is undamaged and covers all of them."""
        try:
            bounds, rows, failed, x, digests = (
                self._read(start, name) for name in ("bounds", "rows", "failed", "x", "digests")
            )
            covered = np.sort(np.concatenate([rows, failed]))
            return (
                bounds.tolist() == [start, stop]
                and np.array_equal(covered, np.arange(start, stop))
                and len(rows) == len(x) == len(digests)
            )
        except Exception:  # a damaged file fails in many ways
            return False

    def _read(self, start: int, name: str) -> np.ndarray:
        # given a path, numpy leaves the file open if it is not a zip archive
        with self._chunk(start).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return file[name]

    @contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Convert disk errors to a BenchError that names the folder and the variable."""
        try:
            yield
        except OSError as error:
            raise BenchError(
                f"cannot cache features in {self.folder.parent}: {error.strerror}; free some space, or set "
                f"${VARIABLE} to a larger disk"
            ) from error

    def write_chunk(self, start: int, stop: int, chunk: Mapping[str, np.ndarray]) -> None:
        """Write a chunk atomically; raises BenchError."""
        with self.disk_errors(), writing_whole(self._chunk(start)) as file:
            np.savez(file, allow_pickle=False, bounds=np.array([start, stop]), **chunk)

    def finish(self, starts: Sequence[int], images: int) -> None:
        """Join the chunks, one in memory at a time, and write whole.json last; raises BenchError."""
        with self.disk_errors():
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
    """Incomplete entries for the same images, filled chunk by chunk in image order.

    Args:
        entries: layer -> entry.
        images: the number of all images.
        rows: those to be filled here, from one chunk to the end of another; by default all.
    """

    def __init__(self, entries: Mapping[str, Entry], images: int, rows: range | None = None) -> None:
        self.entries = entries
        self.images = images
        self.rows = range(images) if rows is None else rows
        self.bounds = [
            (start, min(start + CHUNK_ROWS, self.rows.stop))
            for start in range(self.rows.start, self.rows.stop, CHUNK_ROWS)
        ]
        self.waiting: list[Piece] = []
        self.done = 0  # chunks
        self._skip()

    def _skip(self) -> None:
        """Skip the next chunks that are there."""
        left = self.bounds[self.done :]
        for start, stop in left:
            if not all(entry.has_chunk(start, stop) for entry in self.entries.values()):
                break
            self.done += 1

    def of(self, rows: range) -> "Filling":
        """Return the filling of some rows only, from one chunk to the end of another."""
        return Filling(self.entries, self.images, rows)

    @property
    def start(self) -> int:
        """The first missing image."""
        return self.bounds[self.done][0] if self.done < len(self.bounds) else self.rows.stop

    def add(self, piece: Piece) -> None:
        """Add the features of the next images; full chunks are written at once."""
        self.waiting.append(piece)
        reached = self.start + sum(len(piece.rows) + len(piece.failures) for piece in self.waiting)
        while self.done < len(self.bounds) and reached >= self.bounds[self.done][1]:
            self._write(*self.bounds[self.done])
            self.done += 1

    def _write(self, start: int, stop: int) -> None:
        pieces = [piece for piece in self.waiting if len(piece.rows)]
        rows = np.concatenate([np.empty(0, np.int64), *(piece.rows for piece in pieces)])
        in_chunk, later = rows < stop, rows >= stop
        digests = np.concatenate([np.empty((0, 16), np.uint8), *(piece.digests for piece in pieces)])
        failed = [row for piece in self.waiting for row in piece.failures if start <= row < stop]
        values = {
            layer: np.concatenate([piece.values[layer] for piece in pieces])
            if pieces
            else np.empty((0, 0), "<f4")
            for layer in self.entries
        }
        for layer, entry in self.entries.items():
            chunk = {"rows": rows[in_chunk], "digests": digests[in_chunk], "x": values[layer][in_chunk]}
            entry.write_chunk(start, stop, {**chunk, "failed": np.array(sorted(failed), dtype=np.int64)})
        failures = {row: why for piece in self.waiting for row, why in piece.failures.items() if row >= stop}
        rest = {layer: x[later] for layer, x in values.items()}
        self.waiting = [Piece(rows[later], rest, digests[later], failures)]

    def finish(self) -> None:
        """Complete the entries, whoever has written the chunks; raises ValueError if images are missing."""
        self._skip()
        if self.start < self.images:
            raise ValueError(f"features of {self.images - self.start} images are missing")
        for entry in self.entries.values():
            entry.finish([start for start, _ in self.bounds], self.images)


@contextmanager
def filling(entries: Mapping[str, Entry], images: int) -> Iterator[Filling | None]:
    """Lock the entries (layer -> entry) and yield a Filling of the incomplete ones, None if all are complete.

    Waits for another process that holds an entry, as long as it makes progress. Raises BenchError.
    """
    with ExitStack() as locks:
        for entry in sorted(entries.values(), key=lambda entry: entry.key):
            locks.enter_context(acquire(entry.lock(), entry))
        incomplete = {layer: entry for layer, entry in entries.items() if not entry.is_intact()}
        for entry in incomplete.values():
            entry.begin()
        yield Filling(incomplete, images) if incomplete else None


def acquire(lock: FileLock, entry: Entry) -> AcquireReturnProxy:
    """Acquire a lock of an entry; raises BenchError if another process holds it without progress."""
    since = time.time()
    while True:
        try:
            return lock.acquire(timeout=LOOK_S)
        except Timeout:
            idle = time.time() - max(since, entry.last_used().timestamp())
            if idle > STALLED_S:
                raise BenchError(
                    f"another process has locked the features in {entry.folder} and has written nothing for "
                    f"{idle / 60:.0f} min; stop it (its lock is {lock.lock_file}), then rerun"
                ) from None


def _measured(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _is_manifest(values: Mapping[str, Any]) -> bool:
    """Whether values have the form of whole.json."""
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
