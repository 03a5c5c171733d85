"""A task's images on this machine: found, listed, split and fingerprinted."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixmim_bench.data.images import Part, join
from mixmim_bench.data.layout import Layout, LayoutError, build_layout
from mixmim_bench.data.split import Slice, overlap, stratified_order
from mixmim_bench.errors import MissingData, TaskFileError
from mixmim_bench.specs import ROLES, TaskSpec


@dataclass(frozen=True)
class TaskData:
    """The images of each role, their classes, and what identifies them."""

    parts: Mapping[str, Part]
    classes: tuple[str, ...]
    layout: str
    root: str
    fingerprint: str


def data_folder(task: TaskSpec, data_root: Path | None) -> Path:
    """Say where the images of a task are looked for: its own `root`, else DATA_ROOT/NAME."""
    if task.root:
        return (Path(task.path).parent / Path(task.root).expanduser()).resolve()
    return (data_root or Path()) / task.name


@contextmanager
def _naming_the_file(task: TaskSpec) -> Iterator[None]:
    """Let the errors of a layout name the task file and its key."""
    try:
        yield
    except LayoutError as error:
        raise TaskFileError(task.path, error.key, str(error)) from error
    except OSError as error:
        raise TaskFileError(task.path, "data", str(error)) from error


def find_data(task: TaskSpec, data_root: Path | None) -> tuple[str, Layout]:
    """Find the first layout of a task that is there.

    Raises MissingData, which says what to put where, and TaskFileError for a layout that does not exist.
    """
    root = data_folder(task, data_root)
    parts = sorted({Slice.parse(text).part for text in task.split.values()})
    looked_for = []
    for name in task.layouts:
        with _naming_the_file(task):
            layout = build_layout(name, Path(task.path).parent.resolve(), root, parts, task.options)
            missing = layout.missing()
        if not missing:
            return name, layout
        looked_for.append(f"{missing} ({name})")
    unset = "" if task.root or data_root else "; no data root is set (--data-root FOLDER)"
    raise MissingData(f"{task.name}: not found: {', or '.join(looked_for)}{unset}")


def is_present(task: TaskSpec, data_root: Path | None) -> bool:
    """Whether the images of a task seem to be on this machine."""
    try:
        find_data(task, data_root)
    except MissingData:
        return False
    return True


def open_task(task: TaskSpec, data_root: Path | None) -> TaskData:
    """List and split the images of a task; nothing is decoded.

    Raises MissingData, and TaskFileError, which names file and key, for data that is not as the task says.
    """
    name, layout = find_data(task, data_root)
    slices = {role: Slice.parse(task.split[role]) for role in ROLES}
    with _naming_the_file(task):
        listed = {part: layout.part(part) for part in sorted({s.part for s in slices.values()})}
        classes = tuple(layout.classes())
        _check(task, classes, listed, slices)
    parts = {role: _cut(listed[cut.part], cut) for role, cut in slices.items()}
    for role, part in parts.items():
        if len(part) == 0:
            raise TaskFileError(task.path, f"split.{role}", f"{task.split[role]!r} has no image")
    root = str(data_folder(task, data_root))
    return TaskData(parts, classes, name, root, fingerprint(parts))


def _check(
    task: TaskSpec,
    classes: tuple[str, ...],
    listed: Mapping[str, Part],
    slices: Mapping[str, Slice],
) -> None:
    if len(classes) != task.num_classes:
        some = ", ".join(classes[:5]) + (", …" if len(classes) > 5 else "")
        found = f"is {task.num_classes}, and the data has {len(classes)}: {some}"
        raise LayoutError(found, "num_classes")
    for part, count in task.counts.items():
        if part in listed and len(listed[part]) != count:
            raise LayoutError(f"is {count}, and there are {len(listed[part])}", f"data.counts.{part}")
    for role, cut in slices.items():
        try:
            cut.bounds(len(listed[cut.part]))
        except ValueError as error:
            raise LayoutError(str(error), f"split.{role}") from error
    shared = overlap(slices, {part: len(images) for part, images in listed.items()})
    if shared:
        raise LayoutError(shared, "split")
    whole = join([*listed.values()])
    ordered = np.argsort(whole.ids, kind="stable")
    twice = np.flatnonzero(whole.ids[ordered][1:] == whole.ids[ordered][:-1])
    if len(twice):
        first, second = (whole.images.name(int(ordered[twice[0] + step])) for step in (0, 1))
        image = whole.ids[ordered[twice[0]]]
        raise LayoutError(f"the image {image!s} is listed twice: {first}, {second}", "split")


def _cut(part: Part, cut: Slice) -> Part:
    """Take a slice of a part, in the order of the ids, which is the same in every layout."""
    start, stop = cut.bounds(len(part))
    rows = stratified_order(part.ids, part.labels)[start:stop]
    return part.take(rows[np.argsort(part.ids[rows])])


def fingerprint(parts: Mapping[str, Part]) -> str:
    """Identify the images of a task on any machine: role, id, content and label of each."""
    lines = (f"{role}\t{line}" for role in ROLES for line in _lines(parts[role], parts[role].images.content))
    return _hash(lines)


def stamp(part: Part) -> str:
    """Identify the images of a part here: id, stamp and label of each; a touched file changes it."""
    return _hash(_lines(part, part.images.stamp))


def _lines(part: Part, of_row: Callable[[int], str]) -> Iterator[str]:
    return (f"{part.ids[row]}\t{of_row(row)}\t{part.labels[row]}\n" for row in range(len(part)))


def _hash(lines: Iterator[str]) -> str:
    hashed = hashlib.sha256()
    for line in lines:
        hashed.update(line.encode("utf-8", "surrogateescape"))  # file names need not be text
    return hashed.hexdigest()[:16]
