"""The results folder: one JSON file per run with its predictions, and the measured costs."""

import dataclasses
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock, Timeout

from mixmim_bench.atomic import write_whole
from mixmim_bench.errors import BenchError, a_few, nearest
from mixmim_bench.specs import Cost, RunRecord
from mixmim_bench.suite.schema import NotARecord, read_cost, read_record

T = TypeVar("T")
HEAD = "head_"  # begins the names of arrays of a trained probe, which are kept apart from the predictions


class RunStore:
    """Records by run id. They are written last and atomically, so a record is always complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.costs = folder / "costs"

    def prepare(self) -> None:
        """Create the folders and check that they are writable; raises BenchError."""
        with self.writing():
            for folder in (self.runs, self.costs):
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn file-system errors into a BenchError that names the folder."""
        try:
            yield
        except OSError as error:
            raise BenchError(
                f"results cannot be written to {self.folder}: {error.strerror}; choose another folder with "
                "--results"
            ) from error

    def save(self, record: RunRecord, arrays: Mapping[str, np.ndarray]) -> None:
        """Save a record after its arrays.

        A failure never replaces a result; a result removes earlier failures of the same model, task, protocol
        and seed. An existing result of images with other bytes is renamed and kept. Raises BenchError.
        """
        try:
            before = self._read(record.run_id)
        except BenchError:  # the unreadable record is renamed and kept
            if record.error:
                raise
            before = None
        if record.error and before is not None and not before.error:
            return  # even if its predictions are missing
        with self.writing():
            self._set_aside(record, before)
            heads = {name: array for name, array in arrays.items() if name.startswith(HEAD)}
            others = {name: array for name, array in arrays.items() if name not in heads}
            for path, some in (
                (self._head(record.run_id), heads),
                (self._predictions(record.run_id), others),
            ):
                if some:
                    buffer = io.BytesIO()
                    np.savez_compressed(buffer, allow_pickle=False, **some)
                    write_whole(path, buffer.getvalue())
            write_whole(self._path(record.run_id), record.to_json().encode())
            self._failures.pop(record.run_id, None)
            if record.error:
                self._failures[record.run_id] = record
                return
            for other in [each for each in self._failures.values() if _same_name(each, record)]:
                self._path(other.run_id).unlink(missing_ok=True)
                del self._failures[other.run_id]

    @cached_property
    def _failures(self) -> dict[str, RunRecord]:
        """Failed runs by run id, read once and updated by `save`."""
        return {record.run_id: record for record in self.records() if record.error}

    def rewrite(self, record: RunRecord) -> None:
        """Overwrite a record whose intervals were recomputed."""
        with self.writing():
            write_whole(self._path(record.run_id), record.to_json().encode())

    def _set_aside(self, record: RunRecord, before: RunRecord | None) -> None:
        """Rename files that a record must not overwrite.

        These are invalid records, results without predictions, and results of other images.
        """
        path = self._path(record.run_id)
        if before is None and path.exists():
            path.replace(path.with_name(f"{path.name}.unread"))
        elif before is not None and not before.error and not self._is_result(before):
            path.replace(path.with_name(f"{path.name}.without-predictions"))
        elif before is not None and not before.error and before.data_bytes != record.data_bytes:
            for each in (path, path.with_suffix(".npz"), self._head(record.run_id)):
                if each.exists():
                    each.replace(each.with_name(f"{each.name}.of-images-{before.data_bytes or 'unknown'}"))

    def weights_of(self, run_id: str) -> Path:
        """Return where the weights of a fine-tuned network are, if they were saved."""
        return self.folder / "weights" / f"{run_id}.pth"

    def picture_of(self, run_id: str) -> Path:
        """Return where the picture of a run is."""
        return self.folder / "pictures" / f"{run_id}.png"

    def plots_of(self, run_id: str) -> Path:
        """Return the folder of the plots of a run."""
        return self.folder / "plots" / "runs" / run_id

    def pictures(self) -> set[str]:
        """Return the ids of the runs that have a picture."""
        return {path.stem for path in (self.folder / "pictures").glob("*.png")}

    def logged(self) -> set[str]:
        """Return the ids of the runs with logs of a training."""
        return {path.name for path in (self.folder / "logs").glob("*")}

    def logs_of(self, run_id: str) -> Path:
        """Return the folder of the logs of a training."""
        return self.folder / "logs" / run_id

    def find(self, start: str) -> RunRecord:
        """Find a record by the first digits of its run id; raises BenchError."""
        records = {record.run_id: record for record in self.records()}
        found = [run_id for run_id in records if run_id.startswith(start)]
        if len(found) != 1 or not start:
            reason = f"{len(found)} runs begin with it: {a_few(found)}" if found else nearest(start, records)
            raise BenchError(f"no single run {start!r} in {self.runs}; {reason}")
        return records[found[0]]

    def files_of(self, run_id: str) -> list[Path]:
        """Return what there is of a run: its record, predictions, picture, plots, weights and logs."""
        paths = [
            self._predictions(run_id),
            self.picture_of(run_id),
            self.plots_of(run_id),
            self.weights_of(run_id),
            self.logs_of(run_id),
            self._head(run_id),
            self._path(run_id),
        ]
        return [path for path in paths if path.exists()]

    def remove(self, run_id: str) -> list[Path] | None:
        """Remove all that there is of a run; None if a process is doing it. Raises BenchError."""
        with self.claim(run_id) as claimed:
            if not claimed:
                return None
            paths = self.files_of(run_id)
            with self.writing():
                for path in reversed(paths):  # the record first: without it, nothing else counts
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            return paths

    def _path(self, run_id: str) -> Path:
        return self.runs / f"{run_id}.json"

    def _read(self, run_id: str) -> RunRecord | None:
        path = self._path(run_id)
        if not path.exists():
            return None
        try:
            return read_record(path)
        except NotARecord as error:
            if isinstance(error.__cause__, OSError):  # it may be a result
                raise BenchError(f"the record {path} cannot be read: {error.__cause__.strerror}") from error
            return None

    @contextmanager
    def claim(self, run_id: str, wait: bool = False) -> Iterator[bool]:
        """Claim a run; yields False if another process holds it and `wait` is False.

        The claim ends with the process. On file systems without locks every claim succeeds.
        """
        locks = self.runs / ".locks"
        lock = FileLock(locks / f"{run_id}.lock", poll_interval=0.5)
        try:
            locks.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        except (OSError, NotImplementedError):
            yield True
            return
        try:
            yield True
        finally:
            lock.release()

    def take_over(self, other: "RunStore", run_id: str) -> RunRecord:
        """Save a run of another folder, with its costs, weights and logs; returns its record.

        Raises BenchError if there is no valid record, or it cannot be saved.
        """
        record = other.find(run_id)
        arrays = {} if record.error else {**other.arrays(run_id), **other.head(run_id)}
        with self.writing():
            for mine, theirs in (
                (self.weights_of(run_id), other.weights_of(run_id)),
                (self.logs_of(run_id), other.logs_of(run_id)),
            ):
                if theirs.exists():
                    mine.parent.mkdir(parents=True, exist_ok=True)
                    shutil.rmtree(mine, ignore_errors=True)
                    shutil.move(theirs, mine)
        self.save(record, arrays)
        for key, cost in other.read_costs().items():
            self.save_cost(key, cost)
        return record

    def result(self, run_id: str) -> RunRecord | None:
        """Read the result of a run; None for a failure, or if the predictions are missing."""
        record = self._read(run_id)
        return record if record is not None and self._is_result(record) else None

    def records(self, broken: list[str] | None = None) -> list[RunRecord]:
        """Read all records; invalid files are appended to `broken` with the reason."""
        return [record for _, record in _read_all(self.runs, read_record, broken)]

    def finished(self, not_counted: list[str] | None = None) -> dict[str, RunRecord]:
        """Return the results by run id, without failed runs and results without predictions.

        Files of the latter and invalid files are appended to `not_counted` with the reason.
        """
        records = self.records(not_counted)
        if not_counted is not None:
            gone = [record for record in records if not record.error and not self._is_result(record)]
            not_counted += [f"{self._path(each.run_id)} (its predictions are missing)" for each in gone]
        return {record.run_id: record for record in records if self._is_result(record)}

    def _is_result(self, record: RunRecord) -> bool:
        return not record.error and zipfile.is_zipfile(self._predictions(record.run_id))

    def _predictions(self, run_id: str) -> Path:
        return self.runs / f"{run_id}.npz"

    def arrays(self, run_id: str) -> dict[str, np.ndarray]:
        """Read the arrays of a record: predictions and curves of the protocol; raises BenchError."""
        return _read_npz(self._predictions(run_id))

    def _head(self, run_id: str) -> Path:
        return self.folder / "heads" / f"{run_id}.npz"

    def head(self, run_id: str) -> dict[str, np.ndarray]:
        """Read the trained probe of a run, empty if none was kept: see `heads.export_head`."""
        path = self._head(run_id)
        return _read_npz(path) if path.is_file() else {}

    def save_cost(self, key: str, cost: Cost) -> None:
        """Save a measurement; raises BenchError."""
        text = json.dumps(dataclasses.asdict(cost), indent=1, sort_keys=True)
        with self.writing():
            write_whole(self.costs / f"{key}.json", text.encode())

    def read_costs(self, broken: list[str] | None = None) -> dict[str, Cost]:
        """Read all measurements by key; invalid ones are measured again."""
        return {path.stem: cost for path, cost in _read_all(self.costs, read_cost, broken)}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # a damaged file fails in many ways
        reason = str(error) or type(error).__name__
        raise BenchError(f"the predictions {path} cannot be read: {reason}") from error


def _read_all(folder: Path, read: Callable[[Path], T], broken: list[str] | None) -> Iterator[tuple[Path, T]]:
    """Read the files of a folder; invalid ones are appended to `broken` with the reason."""
    for path in sorted(folder.glob("*.json")):
        try:
            yield path, read(path)
        except NotARecord as error:
            gone = isinstance(error.__cause__, FileNotFoundError)  # another process ended a failure
            if broken is not None and not gone:
                broken.append(f"{path} ({error})")


def _same_name(a: RunRecord, b: RunRecord) -> bool:
    """Return whether two records have the same model, weights, task, protocol and seed by name."""
    names = [(r.model, r.weights, r.task, r.protocol, r.identity["seed"]) for r in (a, b)]
    return names[0] == names[1]
