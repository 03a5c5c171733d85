"""Manage the cache of features, converted networks and checkpoints: list, verify and prune."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from mixmim_bench.data.dataset import TaskData, open_task
from mixmim_bench.data.hashing import hash_images
from mixmim_bench.data.images import Part
from mixmim_bench.data.index import stamp
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.errors import BenchError, MissingData, nearest
from mixmim_bench.features import EXTRACTOR_VERSION
from mixmim_bench.features.engines.converted import Converted, converted_networks
from mixmim_bench.features.store import Entry, FeatureStore
from mixmim_bench.models.objects import SavedWeights, saved_weights
from mixmim_bench.specs import TaskSpec
from mixmim_bench.suite.selection import in_variant, is_variant
from mixmim_bench.suite.taskfile import read_task
from mixmim_bench.training.checkpoints import UnfinishedTraining, unfinished_trainings

Cached = Entry | Converted | UnfinishedTraining | SavedWeights
WEIGHTS = "(weights of a Python session)"
TRAINING = "(training)"
CONVERTED = "(converted network)"  # in the place of a layer


@dataclass(frozen=True)
class Finding:
    """The result of checking an entry; `wrong` if its features are not those of its images."""

    entry: Cached
    text: str
    wrong: bool = False


def list_entries(store: FeatureStore) -> list[dict[str, Any]]:
    """Describe every entry, also unfinished ones, and every converted network, training and saved weights."""
    return [_row(entry) for entry in store.entries()] + [
        *[_row_of(network) for network in converted_networks()],
        *[_row_of_training(training) for training in unfinished_trainings()],
        *[_row_of_weights(weights) for weights in saved_weights()],
    ]


_BLANK: dict[str, Any] = {
    **dict.fromkeys(("model", "weights", "task", "role", "precision"), ""),
    **dict.fromkeys(("rows", "width")),
}


def _row_of(network: Converted) -> dict[str, Any]:
    made_by = network.made_by
    return {
        **_BLANK,
        **_common(network),
        "model": made_by.get("arch", ""),
        "weights": made_by.get("weights", {}).get("kind", ""),
        "layer": CONVERTED,
        "state": _state_of(network),
    }


def _row_of_training(training: UnfinishedTraining) -> dict[str, Any]:
    return {**_BLANK, **_common(training), "layer": TRAINING, "state": "unfinished"}


def _row_of_weights(weights: SavedWeights) -> dict[str, Any]:
    return {**_BLANK, **_common(weights), "model": weights.name, "layer": WEIGHTS, "state": "whole"}


def _common(each: Converted | UnfinishedTraining | SavedWeights) -> dict[str, Any]:
    return {
        "key": each.key,
        "bytes": each.bytes(),
        "last_used": each.last_used().isoformat(timespec="seconds"),
    }


def _state_of(network: Converted) -> str:
    if not network.is_whole():
        return "damaged"
    return "whole" if network.is_current() else "of another version"


def _row(entry: Entry) -> dict[str, Any]:
    manifest = entry.manifest() or {}
    about, made_by = entry.about, entry.made_by
    return {
        "key": entry.key,
        "model": about.get("model", ""),
        "weights": about.get("weights", ""),
        "task": about.get("task", ""),
        "role": about.get("role", ""),
        "layer": made_by.get("layer", ""),
        "precision": made_by.get("precision", ""),
        "rows": manifest.get("rows"),
        "width": manifest.get("width"),
        "bytes": entry.bytes(),
        "last_used": entry.last_used().isoformat(timespec="seconds"),
        "state": _state(entry, bool(manifest)),
    }


def _state(entry: Entry, whole: bool) -> str:
    if not whole:
        return "unfinished" if entry.made_by else "damaged"
    return "whole" if entry.made_by.get("extractor") == EXTRACTOR_VERSION else "of another version"


def verify(store: FeatureStore, tell: Callable[[Finding], None], trusted: tuple[Path, ...] = ()) -> bool:
    """Check every whole entry: its own bytes, and the bytes of the images it was made from.

    The images are found by the task file and the data root that the entry was made with; code beside a task
    file runs in `trusted` folders only. Returns whether nothing is wrong.
    """
    opened: dict[tuple[str, str], TaskData] = {}
    good = True
    for entry in store.entries():
        finding = _check(entry, opened, trusted)
        good &= not finding.wrong
        tell(finding)
    return good


def _check(entry: Entry, opened: dict[tuple[str, str], TaskData], trusted: tuple[Path, ...]) -> Finding:
    state = _state(entry, entry.manifest() is not None)
    if state != "whole":
        return Finding(entry, f"{state}; no run reads it", wrong=state == "damaged")
    damage = entry.damage()
    if damage:
        return Finding(entry, f"damaged: {damage}", wrong=True)
    try:
        name, root = entry.about["task"], entry.about["root"]
        if (name, root) not in opened:
            task = _task_of(entry)
            roots = DataRoots(of_task={task.dataset: Path(root)}, trusted=trusted)
            opened[name, root] = _open(task, roots, entry.about["role"])
        part = opened[name, root].parts[entry.about["role"]]
    except KeyError as error:
        return Finding(entry, f"whole; its images are not recorded: {error} is missing")
    except BenchError as error:
        return Finding(entry, f"whole; its images cannot be compared: {error}")
    if stamp(part) != entry.made_by["images"]:
        return Finding(entry, "whole; its images were changed since, so no run reads it")
    return _compare(entry, part)


def _task_of(entry: Entry) -> TaskSpec:
    """Read the task of an entry, in its variant; a subset has the classes that are recorded."""
    task = read_task(Path(entry.about["task_file"]))
    variants = entry.about["task"].split("@")[1:]
    if "subset" not in entry.about:
        return in_variant(task, "@".join(variants))
    others = "@".join(each for each in variants if is_variant(each))  # the rest are lists of classes
    return dataclasses.replace(
        in_variant(task, others), partial=True, subset=tuple(entry.about["subset"]), counts={}
    )


def _open(task: TaskSpec, roots: DataRoots, role: str) -> TaskData:
    """Open a task, or only the images of a role on a machine without the others."""
    try:
        return open_task(task, roots)
    except MissingData:
        return open_task(task.for_roles([role]), roots)


def _compare(entry: Entry, part: Part) -> Finding:
    """Hash the images again."""
    stored = entry.open()

    right = (hash_images(part, stored.rows) == stored.digests).all(1)
    if right.all():
        return Finding(entry, f"whole; {len(right)} images unchanged")
    first = part.images.name(int(stored.rows[np.argmin(right)]))
    return Finding(entry, f"{(~right).sum()} images have changed, such as {first}", wrong=True)


def prune(
    store: FeatureStore,
    keys: Sequence[str] = (),
    older_than: float | None = None,
    everything: bool = False,
    dry_run: bool = False,
) -> list[Finding]:
    """Remove entries, converted networks and checkpoints of trainings.

    Those named, those not used for `older_than` days, all, or by default those that no run can use.
    Features that another process is filling stay; a training in progress writes its checkpoint again. Returns
    what was (or with `dry_run` would be) removed. Raises BenchError for a key that does not exist.
    """
    everything_there: list[Cached] = [
        *store.entries(), *converted_networks(), *unfinished_trainings(), *saved_weights(),
    ]  # fmt: skip
    entries = {each.key: each for each in everything_there}
    for key in keys:
        if key not in entries:
            raise BenchError(f"no features have the key {key!r}; {nearest(key, entries)}")
    findings = []
    for key, entry in entries.items():
        reason = _reason(entry, key in keys, older_than, everything, bool(keys))
        if reason and (dry_run or entry.remove()):
            findings.append(Finding(entry, reason))
    return findings


def _reason(entry: Cached, named: bool, older_than: float | None, everything: bool, by_name: bool) -> str:
    if named or everything:
        return "asked for"
    if by_name:
        return ""
    if older_than is not None:
        age = datetime.now(UTC) - entry.last_used()
        return f"not used for {age.days} days" if age > timedelta(days=older_than) else ""
    if isinstance(entry, UnfinishedTraining | SavedWeights):
        return ""
    if isinstance(entry, Converted):
        state = _state_of(entry)
        return "" if state == "whole" else state
    state = _state(entry, entry.manifest() is not None)
    if state != "whole":
        return state
    damage = entry.damage()
    return f"damaged: {damage}" if damage else ""
