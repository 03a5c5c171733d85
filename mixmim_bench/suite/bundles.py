"""Bundles: results of another machine as a zip file or folder, merged into a results folder.

A bundle is untrusted input. Its members are read by allow-listed names and up to stated sizes, nothing is
executed or unpickled, identities are hashed again, and scores are computed again from the predictions.
"""

import dataclasses
import io
import json
import math
import re
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from mixmim_bench.atomic import writing_whole
from mixmim_bench.errors import BenchError, counted
from mixmim_bench.protocols import find_protocol
from mixmim_bench.registry import MODELS
from mixmim_bench.scoring.calibration import score_calibration
from mixmim_bench.scoring.metrics import METRICS, Items, score_items, value_of_items
from mixmim_bench.scoring.predictions import PREDICTIONS, restore
from mixmim_bench.specs import ECE, RECORD_SCHEMA, RunRecord, Score
from mixmim_bench.suite.records import RunStore
from mixmim_bench.suite.schema import NotARecord, read_cost, read_record
from mixmim_bench.suite.selection import load_tasks

MANIFEST = "bundle.json"
_MEMBER = re.compile(rf"runs/[0-9a-f]{{16}}\.(json|npz)|costs/[0-9a-f]{{8,64}}\.json|{re.escape(MANIFEST)}")
MOST_MEMBERS = 200_000
MOST_JSON = 16 << 20  # bytes of a record
MOST_ARRAYS = 4 << 30  # bytes of the predictions of a run, expanded
MOST = 64 << 30  # bytes of a bundle, expanded
CLOSE = 1e-5  # predictions are kept in float32
_KINDS = "biufU"  # of arrays: no objects
_ARRAY = re.compile(
    r"(ids|y|best|best_scores|scores|confidence|pixels|objects|labels|images_of_classes"
    r"|(box|mask)_(hits|skips)|(fit|shown)_[\w .+-]{1,80})\.npy"
)
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
    finished and are refused too. A result that differs only in the seed from one that is there, and thus
    shares its cell, gets the names of its model and weights.

    Raises:
        BenchError: the source is no bundle, or holds names or sizes that no bundle has.
    """
    store.prepare()
    merged = Merged()
    names = {record.setting: (record.model, record.weights) for record in store.records()}
    with _unpacked(source, store.folder) as folder:
        for path in sorted((folder / "runs").glob("*.json")):
            try:
                outcome = _merge_one(store, folder, path, names)
                getattr(merged, outcome).append(path.stem)
            except BenchError as error:
                merged.refused[path.stem] = str(error)
                say(f"refused {path.stem}: {error}")
        known = store.read_costs()
        wanted = {key for each in merged.added for key in _costs_of(store, each)}
        for path in sorted((folder / "costs").glob("*.json")):
            if path.stem in wanted - known.keys():
                try:
                    store.save_cost(path.stem, read_cost(path))
                except NotARecord as error:
                    say(f"refused the cost {path.stem}: {error}")
    return merged


def _costs_of(store: RunStore, run_id: str) -> list[str]:
    record = store.result(run_id)
    return list(record.costs.values()) if record is not None else []


def _check_place(record: RunRecord) -> None:
    """Check what decides whose cell a result shares, and which settings are usual; raises BenchError."""
    name, kind = record.protocol, record.identity["task"]["kind"]
    seeded = find_protocol(name, kind).stochastic or record.random_init
    if record.identity["seed"] is not None and not seeded:
        raise BenchError(f"it has a seed, and nothing in {name} is random with trained weights")
    text = record.provenance.get("started", "")
    if not text:  # the oldest
        return
    try:
        started = datetime.fromisoformat(text)
    except ValueError:
        raise BenchError(f"it was started at {text!r}, which is no time") from None
    if started.replace(tzinfo=started.tzinfo or UTC) > datetime.now(UTC) + timedelta(days=1):
        raise BenchError(f"it was started at {text}, which is in the future")


def _merge_one(store: RunStore, folder: Path, path: Path, names: Mapping[str, tuple[str, str]]) -> str:
    record = read_record(path)
    if record.error:
        raise BenchError("it is a failed run")
    arrays = _read_arrays(folder / "runs" / f"{record.run_id}.npz")
    check_versions(record)
    _check_place(record)
    record = scored_again(record, arrays)
    model, weights = names.get(record.setting, (record.model, record.weights))
    record = dataclasses.replace(record, model=model, weights=weights)
    with store.claim(record.run_id) as claimed:
        if not claimed:
            raise BenchError("a process is doing this run; merge again when it has ended")
        known = store.result(record.run_id)
        if known is not None:
            if _same(known, record):
                return "there"
            raise BenchError("another result of this run is there, with other scores or of other images")
        store.save(record, arrays)
    return "added"


def _same(known: RunRecord, merged: RunRecord) -> bool:
    """Return whether a result is there already; it may have scores that cannot be computed again."""
    close = all(
        name in known.scores and abs(score["value"] - known.scores[name]["value"]) <= CLOSE
        for name, score in merged.scores.items()
    )
    return close and (known.data_bytes == merged.data_bytes or "" in (known.data_bytes, merged.data_bytes))


def check_versions(record: RunRecord) -> None:
    """Check that this installation can score a record, and knows what it was made with; raises BenchError."""
    identity = record.identity
    kind, protocol = identity["task"].get("kind", ""), identity["protocol"]
    if kind not in PREDICTIONS:
        raise BenchError(f"the kind of task {kind!r} is unknown")
    known = [
        (f"protocol {protocol['name']}", protocol["version"], find_protocol(protocol["name"], kind).version)
    ]
    task = load_tasks().get(record.task.partition("@")[0])
    if task is not None:
        known.append((f"task {task.name}", identity["task"]["version"], task.version))
    archs = {model.arch: model.version for model in MODELS}
    known.append((f"architecture {identity['arch']}", record.arch_version, archs.get(identity["arch"], 1)))
    for what, theirs, ours in known:
        if theirs > ours:
            raise BenchError(f"{what} has version {theirs}, and this installation has {ours}; update it")
    for name in identity["task"]["metrics"]:
        if name not in METRICS or kind not in METRICS[name].kinds:
            raise BenchError(f"the metric {name!r} is unknown for {kind} tasks")
        if record.metric_version(name) != METRICS[name].version:
            raise BenchError(
                f"{name} has version {record.metric_version(name)}, and scores can be computed again in "
                f"version {METRICS[name].version} only"
            )


def scored_again(record: RunRecord, arrays: Mapping[str, np.ndarray]) -> RunRecord:
    """Return a record with the scores and intervals that its predictions give.

    Scores that cannot be computed from them are left out. Raises BenchError where a stated score is another.
    """
    kind = record.identity["task"]["kind"]
    scores: dict[str, Score] = {}
    try:
        for name in record.identity["task"]["metrics"]:
            if name in record.scores:
                scores[name] = _score(name, restore(kind, name, arrays).draws)
        if ECE in record.scores and "confidence" in arrays and "top1" in scores:
            hits = restore(kind, "top1", arrays).draws[0][0]
            scores[ECE] = score_calibration(arrays["confidence"].astype(np.float64), hits)
    except (BenchError, ValueError, IndexError, TypeError, KeyError, MemoryError) as error:
        raise BenchError(f"its predictions cannot be scored: {error or type(error).__name__}") from error
    for name, score in scores.items():
        stated = record.scores[name]["value"]
        if not abs(score["value"] - stated) <= CLOSE:
            raise BenchError(f"{name} is {stated:.5f}, and its predictions give {score['value']:.5f}")
        if "guess" in record.scores[name]:
            score["guess"] = record.scores[name]["guess"]
    left_out = sorted(set(record.scores) - set(scores))
    notes = (
        (f"merged without scores that its predictions do not give: {', '.join(left_out)}",)
        if left_out
        else ()
    )
    return dataclasses.replace(record, scores=scores, notes=(*record.notes, *notes))


def _score(name: str, draws: Sequence[Items]) -> Score:
    score = score_items(name, draws)
    if len(draws) > 1:
        values = [value_of_items(name, items) for items in draws]
        score["draws"], score["std"] = len(draws), float(np.std(values, ddof=1))
    return score


# -- reading ----------------------------------------------------------------------------------------


@contextmanager
def _unpacked(source: Path, beside: Path) -> Iterator[Path]:
    """Give a folder with the allowed members of a bundle; raises BenchError."""
    if not ((source / "runs").is_dir() if source.is_dir() else zipfile.is_zipfile(source)):
        raise BenchError(f"{source} is neither a bundle (zip) nor a results folder")
    with tempfile.TemporaryDirectory(prefix=".merging-", dir=beside) as name:
        folder = Path(name)
        for part in ("runs", "costs"):
            (folder / part).mkdir()
        try:
            _copy_folder(source, folder) if source.is_dir() else _unpack(source, folder)
        except BenchError:
            raise
        except Exception as error:  # damaged files fail in many ways
            raise BenchError(
                f"{source} cannot be read as a bundle: {error or type(error).__name__}"
            ) from error
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


def _copy_folder(source: Path, folder: Path) -> None:
    """Copy the members of a results folder, by the same rules as those of a zip file."""
    total = 0
    for path in sorted([*source.glob("runs/*"), *source.glob("costs/*")]):
        name = path.relative_to(source).as_posix()
        if not _MEMBER.fullmatch(name):
            continue
        if not stat.S_ISREG(path.lstat().st_mode):
            raise BenchError(f"{path} is a link or no file, which a bundle must not hold")
        most = MOST_ARRAYS if name.endswith(".npz") else MOST_JSON
        with path.open("rb") as file, (folder / name).open("wb") as target:
            size = _copy(file, target, most)
        total += size
        if size > most or total > MOST:
            raise BenchError(f"{path} is too large for a bundle")


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
                if (
                    dtype.kind not in _KINDS
                    or not _ARRAY.fullmatch(member.filename)
                    or min(shape, default=0) < 0
                ):
                    raise BenchError(f"its predictions hold {member.filename!r}: {dtype} {shape}")
                total += max(math.prod(shape) * dtype.itemsize, member.file_size)
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
