"""Assign listed images to roles and compute their fingerprint.

For large listings the result is cached in `listings/` in the cache folder, keyed by a hash of the listing:
any change of a name, size, time or label leads to a new result.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mixmim_bench.data.images import Part
from mixmim_bench.data.layout import LayoutError
from mixmim_bench.data.listings import keep_listing, read_listing
from mixmim_bench.data.slices import Slice, overlap, shared_rows, stratified_order
from mixmim_bench.specs import ROLES, TaskSpec, digest

VERSION = 2  # bump when the index is computed differently
WORTH_KEEPING = 100_000  # images; fewer take less than a second


@dataclass(frozen=True)
class Index:
    """The rows of each role, in the order of their ids, and the problems of the listing.

    Fingerprint and stamps exist only if all roles have rows.
    """

    rows: Mapping[str, np.ndarray]
    fingerprint: str = ""
    stamps: Mapping[str, str] = field(default_factory=dict)  # of each role
    problems: Sequence[LayoutError] = ()


def indexed(
    task: TaskSpec,
    root: str,
    listed: Mapping[str, Part],
    slices: Mapping[str, Slice],
    problems: Sequence[LayoutError],
) -> Index:
    """Compute the index of listed parts, or read it from the cache."""
    if sum(map(len, listed.values())) < WORTH_KEEPING or not all(
        hasattr(part.images, "summary") for part in listed.values()
    ):
        return _compute(task, listed, slices, problems)
    key = _key(task, listed)
    name = f"{task.name}-{digest([root, *task.roles] if len(task.roles) < len(ROLES) else root, 8)}"
    if kept := read_listing(name, key):
        about = json.loads(str(kept["about"]))
        return Index({role: kept[role] for role in slices}, about["fingerprint"], about["stamps"], problems)
    index = _compute(task, listed, slices, problems)
    if not index.problems:
        about = json.dumps({"fingerprint": index.fingerprint, "stamps": index.stamps})
        keep_listing(name, key, {"about": np.array(about), **index.rows})
    return index


def _key(task: TaskSpec, listed: Mapping[str, Part]) -> str:
    """Hash the inputs of an index."""
    hashed = hashlib.sha256(f"{VERSION} {sorted(task.split.items())}{task.limit or ''}".encode())
    for name, part in sorted(listed.items()):
        hashed.update(f"{name} {part.ids.dtype} {len(part)}".encode())
        for summary in (part.ids.tobytes(), part.targets.summary(), part.images.summary()):
            hashed.update(summary)
    return hashed.hexdigest()


def _compute(
    task: TaskSpec,
    listed: Mapping[str, Part],
    slices: Mapping[str, Slice],
    problems: Sequence[LayoutError],
) -> Index:
    errors = [*problems, *_problems(listed, slices)]
    orders = {name: stratified_order(part.ids, part.targets.strata()) for name, part in listed.items()}
    rows = {}
    for role, cut in slices.items():
        part = listed[cut.part]
        try:
            chosen = cut.rows(orders[cut.part], part.targets.strata())
        except ValueError as error:
            errors.append(LayoutError(str(error), f"split.{role}"))
            continue
        if not len(chosen):
            errors.append(LayoutError(f"{task.split[role]!r} selects no images", f"split.{role}"))
        rows[role] = chosen
    if len(rows) < len(slices):
        return Index(rows, problems=errors)
    shared = shared_rows(slices, rows)
    if shared and not any(problem.key == "split" for problem in errors):
        errors.append(LayoutError(shared, "split"))
    return index_of_rows(task, listed, slices, rows, errors)


def index_of_rows(
    task: TaskSpec,
    listed: Mapping[str, Part],
    slices: Mapping[str, Slice],
    rows: Mapping[str, np.ndarray],
    problems: Sequence[LayoutError],
) -> Index:
    """Return the index of the rows of each role, given in a stratified order that a limit cuts."""
    errors = list(problems)
    sorted_rows = {}
    for role, cut in slices.items():
        ids, chosen = listed[cut.part].ids, rows[role][: task.limit or None]
        sorted_rows[role] = chosen[np.argsort(ids[chosen], kind="stable")]
    parts = {role: listed[cut.part].take(sorted_rows[role]) for role, cut in slices.items()}
    strata = parts["train"].targets.strata() if task.limit and "train" in parts else None
    if strata is not None and len(np.unique(strata)) < 2:
        errors.append(LayoutError(f"--limit {task.limit} leaves one class to train on", "split.train"))
    stamps = {role: stamp(part) for role, part in parts.items()}
    return Index(sorted_rows, fingerprint(parts), stamps, errors)


def _problems(listed: Mapping[str, Part], slices: Mapping[str, Slice]) -> Iterator[LayoutError]:
    for role, cut in slices.items():
        try:
            cut.check(len(listed[cut.part]))
        except ValueError as error:
            yield LayoutError(str(error), f"split.{role}")
            return
    shared = overlap(slices, {part: len(images) for part, images in listed.items()})
    if shared:
        yield LayoutError(shared, "split")
    names = sorted(listed)
    ids = np.concatenate([listed[name].ids for name in names])
    ordered = np.argsort(ids, kind="stable")
    duplicates = np.flatnonzero(ids[ordered][1:] == ids[ordered][:-1])
    if len(duplicates):
        rows = [int(ordered[duplicates[0] + step]) for step in (0, 1)]
        first, second = (_name(listed, names, row) for row in rows)
        yield LayoutError(f"the image {ids[rows[0]]!s} is listed twice: {first}, {second}", "split")


def _name(listed: Mapping[str, Part], names: Sequence[str], row: int) -> str:
    """Return the name of an image by its row in the concatenated parts."""
    for name in names:
        if row < len(listed[name]):
            return listed[name].images.name(row)
        row -= len(listed[name])
    raise IndexError(row)


def fingerprint(parts: Mapping[str, Part]) -> str:
    """Hash the role, id, content and label of all images; the same on any machine."""
    lines = (
        f"{role}\t{line}"
        for role in ROLES
        if role in parts
        for line in _lines(parts[role], parts[role].images.content)
    )
    return _hash(lines)


def stamp(part: Part) -> str:
    """Hash the id, stamp and label of all images of a part; depends on file times."""
    return _hash(_lines(part, part.images.stamp))


def _lines(part: Part, identify: Callable[[int], str]) -> Iterator[str]:
    rows = zip(part.ids.tolist(), range(len(part)), part.targets.contents(), strict=True)
    return (f"{image}\t{identify(row)}\t{target}\n" for image, row, target in rows)


def _hash(lines: Iterator[str]) -> str:
    hashed = hashlib.sha256()
    for line in lines:
        hashed.update(line.encode("utf-8", "surrogateescape"))  # file names may not be valid text
    return hashed.hexdigest()[:16]
