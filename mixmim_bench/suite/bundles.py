"""Bundles: results of another machine as a zip file or folder, merged into a results folder.

A bundle is untrusted input. Its members are read by allow-listed names and up to stated sizes, nothing is
executed or unpickled, identities are hashed again, and scores are computed again from the predictions.
"""

import io
import json
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from mixmim_bench.atomic import writing_whole
from mixmim_bench.errors import BenchError, counted
from mixmim_bench.scoring.metrics import METRICS, value_of_items
from mixmim_bench.scoring.predictions import PREDICTIONS, restore
from mixmim_bench.specs import RECORD_SCHEMA, RunRecord
from mixmim_bench.suite.records import RunStore
from mixmim_bench.suite.schema import NotARecord, read_cost, read_record

MANIFEST = "bundle.json"
_MEMBER = re.compile(rf"runs/[0-9a-f]{{16}}\.(json|npz)|costs/[0-9a-f]{{8,64}}\.json|{re.escape(MANIFEST)}")
MOST_MEMBERS = 200_000
MOST_JSON = 16 << 20  # bytes of a record
MOST_ARRAYS = 4 << 30  # bytes of the predictions of a run, expanded
MOST = 64 << 30  # bytes of a bundle, expanded
CLOSE = 1e-5  # predictions are kept in float32
_KINDS = "biufU"  # of arrays: no objects
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass
class Merged:
    """What became of the results of a bundle, by run id; `refused` with the reason."""

    added: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def write_bundle(store: RunStore, records: Iterable[RunRecord], path: Path) -> int:
    """Write results with their predictions and costs to a zip file; the same results give the same bytes.

    Failed runs are left out. Returns the number of results. Raises BenchError.
    """
    wanted = sorted((each for each in records if not each.error), key=lambda record: record.run_id)
    if not wanted:
        raise BenchError("there are no finished runs to bundle")
    costs = store.read_costs()
    keys = sorted({key for record in wanted for key in record.costs.values() if key in costs})
    try:
        with writing_whole(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bundle:
            about = {"schema": RECORD_SCHEMA, "runs": [record.run_id for record in wanted]}
            _add(bundle, MANIFEST, json.dumps(about, indent=1).encode())
            for record in wanted:
                _add(bundle, f"runs/{record.run_id}.json", record.to_json().encode())
                predictions = store.runs / f"{record.run_id}.npz"
                if predictions.exists():
                    _add(bundle, f"runs/{record.run_id}.npz", predictions.read_bytes())
            for key in keys:
                _add(bundle, f"costs/{key}.json", (store.costs / f"{key}.json").read_bytes())
    except OSError as error:
        raise BenchError(f"{path} cannot be written: {error.strerror or error}") from error
    return len(wanted)


def _add(bundle: zipfile.ZipFile, name: str, content: bytes) -> None:
    bundle.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)


def merge(store: RunStore, source: Path, say: Callable[[str], None] = lambda _: None) -> Merged:
    """Merge the results of a bundle, or of another results folder, into a results folder.

    A result that differs from one that is there is refused: nothing is replaced. So are records that are
    invalid, or whose scores are not those of their predictions; those without predictions do not count as
    finished and are refused too.

    Raises:
        BenchError: the source is no bundle, or holds names or sizes that no bundle has.
    """
    store.prepare()
    merged = Merged()
    with _unpacked(source, store.folder) as folder:
        for path in sorted((folder / "runs").glob("*.json")):
            try:
                outcome = _merge_one(store, folder, path)
                getattr(merged, outcome).append(path.stem)
            except BenchError as error:
                merged.refused[path.stem] = str(error)
                say(f"refused {path.stem}: {error}")
        known = store.read_costs()
        for path in sorted((folder / "costs").glob("*.json")):
            if path.stem not in known:
                try:
                    store.save_cost(path.stem, read_cost(path))
                except NotARecord as error:
                    say(f"refused the cost {path.stem}: {error}")
    return merged


def _merge_one(store: RunStore, folder: Path, path: Path) -> str:
    record = read_record(path)
    if record.error:
        raise BenchError("it is a failed run")
    arrays = _read_arrays(folder / "runs" / f"{record.run_id}.npz")
    check_scores(record, arrays)
    with store.claim(record.run_id, wait=True):
        known = store.result(record.run_id)
        if known is not None:
            if _same(known, record):
                return "there"
            raise BenchError("another result of this run is there, with other scores or of other images")
        store.save(record, arrays)
    return "added"


def _same(a: RunRecord, b: RunRecord) -> bool:
    values = [{name: score["value"] for name, score in each.scores.items()} for each in (a, b)]
    close = values[0].keys() == values[1].keys() and all(
        abs(value - values[1][name]) <= CLOSE for name, value in values[0].items()
    )
    return close and (a.data_bytes == b.data_bytes or "" in (a.data_bytes, b.data_bytes))


def check_scores(record: RunRecord, arrays: Mapping[str, np.ndarray]) -> None:
    """Check that the scores of a record are those of its predictions; raises BenchError.

    Metrics of older versions cannot be computed any more and are not compared.
    """
    kind = record.identity["task"].get("kind", "")
    if kind not in PREDICTIONS:
        raise BenchError(f"the kind of task {kind!r} is unknown")
    for name in record.identity["task"]["metrics"]:
        if name not in METRICS or name not in record.scores:
            raise BenchError(f"the metric {name!r} is unknown")
        if record.metric_version(name) != METRICS[name].version:
            continue
        try:
            draws = restore(kind, name, arrays).draws
            value = float(np.mean([value_of_items(name, items) for items in draws]))
        except (BenchError, ValueError, IndexError, TypeError, KeyError) as error:
            raise BenchError(f"its predictions cannot be scored: {error}") from error
        if not abs(value - record.scores[name]["value"]) <= CLOSE:
            stated = record.scores[name]["value"]
            raise BenchError(f"{name} is {stated:.5f}, and its predictions give {value:.5f}")


# -- reading ----------------------------------------------------------------------------------------


@contextmanager
def _unpacked(source: Path, beside: Path) -> Iterator[Path]:
    """Give a folder with the allowed members of a bundle; raises BenchError."""
    if source.is_dir():
        for path in [*source.glob("runs/*"), *source.glob("costs/*")]:
            if path.is_symlink() and _MEMBER.fullmatch(path.relative_to(source).as_posix()):
                raise BenchError(f"{path} is a link, which a bundle must not hold")
        yield source
        return
    if not zipfile.is_zipfile(source):
        raise BenchError(f"{source} is neither a bundle (zip) nor a results folder")
    with tempfile.TemporaryDirectory(prefix=".merging-", dir=beside) as name:
        folder = Path(name)
        for part in ("runs", "costs"):
            (folder / part).mkdir()
        try:
            _unpack(source, folder)
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise BenchError(f"{source} cannot be read as a bundle: {error}") from error
        yield folder


def _unpack(source: Path, folder: Path) -> None:
    with zipfile.ZipFile(source) as bundle:
        members = bundle.infolist()
        names = [member.filename for member in members]
        if len(members) > MOST_MEMBERS:
            raise BenchError(f"{source} has {len(members):,} members; a bundle has at most {MOST_MEMBERS:,}")
        if len(set(names)) < len(names):
            raise BenchError(f"{source} holds the same name twice")
        total = 0
        for member in members:
            mode = member.external_attr >> 16
            if not _MEMBER.fullmatch(member.filename) or (mode and mode & 0o170000 not in (0, 0o100000)):
                raise BenchError(f"{source} holds {member.filename!r}, which no bundle does")
            most = MOST_ARRAYS if member.filename.endswith(".npz") else MOST_JSON
            with bundle.open(member) as file, (folder / member.filename).open("wb") as target:
                size = _copy(file, target, most)
            total += size
            if size > most or total > MOST:
                raise BenchError(f"{source}: {member.filename} is too large for a bundle")


def _copy(file: object, target: io.BufferedWriter, most: int) -> int:
    """Copy at most `most` + 1 bytes, whatever size was declared; returns their number."""
    size = 0
    while size <= most and (chunk := file.read(min(1 << 20, most + 1 - size))):  # type: ignore[attr-defined]
        target.write(chunk)
        size += len(chunk)
    return size


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read predictions, after a look at the sizes that their headers state; raises BenchError."""
    if not path.is_file():
        raise BenchError("its predictions are missing, so that it does not count as finished")
    try:
        with zipfile.ZipFile(path) as file:
            total = 0
            for member in file.infolist():
                with file.open(member) as array:
                    shape, dtype = _header(array)
                if dtype.kind not in _KINDS:
                    raise BenchError(f"its predictions hold {member.filename} of type {dtype}")
                total += int(np.prod(shape, dtype=np.float64)) * dtype.itemsize
            if total > MOST_ARRAYS:
                raise BenchError(f"its predictions take {total:,} bytes, more than a bundle may hold")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except BenchError:
        raise
    except Exception as error:  # damaged files fail in many ways
        raise BenchError(f"its predictions cannot be read: {error or type(error).__name__}") from error


def _header(array: object) -> tuple[tuple[int, ...], np.dtype]:
    version = npy.read_magic(array)  # type: ignore[arg-type]
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(array)  # type: ignore[arg-type]
    return shape, dtype


def summary(merged: Merged) -> str:
    """Return what a merge did in one line."""
    refused = f", {len(merged.refused)} refused" if merged.refused else ""
    return f"{counted(len(merged.added), 'result')} added, {len(merged.there)} already there{refused}"
