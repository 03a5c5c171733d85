"""Find, list, check and split the images of a task on this machine."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mixmim_bench.data.images import Part
from mixmim_bench.data.index import Index, index_of_rows, indexed, stamp
from mixmim_bench.data.layout import Layout, LayoutError, build_layout
from mixmim_bench.data.nearby import hint
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.data.slices import Slice
from mixmim_bench.data.subsets import of_classes, relabelled, rows_of_classes
from mixmim_bench.errors import BenchError, MissingData, TaskFileError, counted
from mixmim_bench.specs import PERMUTED, DataSource, TaskSpec

LABELS = "data.labels"  # reported as the key if labels in the data are invalid


@dataclass(frozen=True)
class Split:
    """The images of one role: train, val or test."""

    role: str
    part: Part
    listed_stamp: str = ""  # if already known

    @cached_property
    def stamp(self) -> str:
        """A hash of the images on this machine, including file times."""
        return self.listed_stamp or stamp(self.part)


@dataclass(frozen=True)
class TaskData:
    """The images of each role, with their classes and source."""

    splits: Mapping[str, Split]
    classes: tuple[str, ...]
    source: DataSource

    @property
    def parts(self) -> dict[str, Part]:
        """The images of each role without their stamps."""
        return {role: split.part for role, split in self.splits.items()}

    @property
    def counts(self) -> dict[str, int]:
        """The number of images of each role."""
        return {role: len(split.part) for role, split in self.splits.items()}


@dataclass(frozen=True)
class Found:
    """A layout of a task, found on this machine."""

    name: str
    layout: Layout
    root: Path
    key: str  # of the layout's options in the task file


@contextmanager
def naming_the_file(task: TaskSpec, key: str = "data.options") -> Iterator[None]:
    """Convert errors of a layout to errors that name the task file and key."""
    try:
        yield
    except LayoutError as error:
        raise TaskFileError(task.path, error.key.replace("data.options", key), str(error)) from error
    except OSError as error:
        raise TaskFileError(task.path, "data", str(error)) from error


def slices_of(task: TaskSpec) -> dict[str, Slice]:
    """Parse the slices of a task, by role."""
    return {role: Slice.parse(task.split[role]) for role in task.roles}


def find_data(task: TaskSpec, roots: DataRoots) -> Found:
    """Find the first layout of a task on this machine.

    Raises:
        MissingData: no layout was found; names the expected files and nearby candidates.
        TaskFileError: the task file names an unknown layout.

    """
    root = roots.folder(task)
    expected = []
    can_fetch = False
    for layout, missing in layouts_at(task, roots, root):
        if not missing:
            return layout
        can_fetch |= hasattr(layout.layout, "fetch")
        expected.append(f"{missing} ({layout.name})")
    if not root.is_dir():
        folder = root if root.parent.is_dir() or not roots.knows(task) else root.parent
        expected = [f"folder {folder}"]
    near = ""
    if roots.knows(task):
        names = (task.dataset, *task.also_called)
        tasks = {path.stem for path in Path(task.path).parent.glob("*.toml")}
        near = hint(names, root, lambda folder: _holds(task, roots, folder), tasks, ", ".join(expected))
    advice = near if roots.knows(task) else "no data root is set (--data-root FOLDER)"
    by_name = "`mixmim-bench fetch-data` downloads it" if can_fetch else ""
    message = "; ".join(filter(None, [f"not found: {', or '.join(expected)}", advice, by_name]))
    raise MissingData(f"{task.name}: {message}", expected, near)


def layouts_at(task: TaskSpec, roots: DataRoots, root: Path) -> Iterator[tuple[Found, str]]:
    """Yield each layout of a task in a folder, with a description of its missing files."""
    parts = sorted({cut.part for cut in slices_of(task).values()})
    beside = Path(task.path).parent.resolve()
    for spec in task.layouts:
        with naming_the_file(task, spec.key):
            layout = build_layout(spec.name, beside, roots.trusts(beside), root, parts, spec.options)
            if task.partial:
                if hasattr(layout, "partial"):
                    layout.partial = True
                elif not task.subset:
                    raise LayoutError(
                        f"{spec.name} is whole or missing; for some of its classes, list them: "
                        f"{task.dataset}@CLASSES.txt"
                    )
            missing = layout.missing()
        yield Found(spec.name, layout, root, spec.key), missing


def _holds(task: TaskSpec, roots: DataRoots, folder: Path) -> bool:
    """Return whether a folder contains any layout of a task."""
    try:
        return any(not missing for _, missing in layouts_at(task, roots, folder))
    except BenchError:
        return False


def has_data(task: TaskSpec, roots: DataRoots) -> bool:
    """Return whether the images of a task appear to be on this machine."""
    try:
        find_data(task, roots)
    except MissingData:
        return False
    return True


def open_task(task: TaskSpec, roots: DataRoots | None = None) -> TaskData:
    """List and split the images of a task without decoding.

    Raises:
        MissingData: the images are not on this machine.
        TaskFileError: the data contradicts the task file; names the file and key.

    """
    found = find_data(task, DataRoots() if roots is None else roots)
    listed, classes, index = list_task(task, found)
    with naming_the_file(task):
        for problem in index.problems:
            raise problem
    splits = {
        role: Split(role, listed[cut.part].take(index.rows[role]), index.stamps.get(role, ""))
        for role, cut in slices_of(task).items()
    }
    source = DataSource(fingerprint=index.fingerprint, layout=found.name, root=str(found.root))
    data = TaskData(splits, classes, source)
    return with_permuted_labels(data) if task.permuted else data


def with_permuted_labels(data: TaskData) -> TaskData:
    """Return the images of a task, those of train, and those of val, with each other's labels.

    The permutation is the same on any machine, and class frequencies stay the same. The stamps are those of
    the images with their own labels, so the features of both are the same.
    """
    splits = {
        role: split if role == "test" else Split(role, _permuted(split.part, role), split.stamp)
        for role, split in data.splits.items()
    }
    return dataclasses.replace(data, splits=splits)


def _permuted(part: Part, role: str) -> Part:
    seed = int.from_bytes(hashlib.sha256(f"{PERMUTED} {role}".encode()).digest()[:8], "big")
    order = np.random.default_rng(seed).permutation(len(part))
    return Part(part.ids, part.targets.take(order), part.images)


def list_task(task: TaskSpec, found: Found) -> tuple[dict[str, Part], tuple[str, ...], Index]:
    """List the parts and classes of a task, and assign images to roles.

    Problems other than parts that cannot be listed are returned in the index.

    Raises:
        TaskFileError: a part cannot be listed.
    """
    slices = slices_of(task)
    with naming_the_file(task, found.key):
        listed = {part: found.layout.part(part) for part in sorted({cut.part for cut in slices.values()})}
        classes = tuple(found.layout.classes())
        problems = [] if task.partial else list(_wrong_counts(task, classes, listed))
        problems += _wrong_labels(classes, listed)
        if any(problem.key == LABELS for problem in problems):  # such images cannot be ordered
            return listed, classes, Index({}, problems=problems)
        if task.labels:
            beside = Path(task.path).parent
            listed = {part: relabelled(each, task.labels, beside, classes) for part, each in listed.items()}
        if task.partial and hasattr(found.layout, "partial"):
            listed, classes = of_classes(listed, classes, task.subset)
        elif task.partial:  # slices are those of the whole dataset, of which nothing is missing
            whole = indexed(dataclasses.replace(task, limit=0), str(found.root), listed, slices, problems)
            listed, classes, rows = rows_of_classes(listed, classes, task.subset, slices, whole.rows)
            return listed, classes, index_of_rows(task, listed, slices, rows, whole.problems)
        index = indexed(task, str(found.root), listed, slices, problems)
    return listed, classes, index


def _wrong_counts(
    task: TaskSpec, classes: Sequence[str], listed: Mapping[str, Part]
) -> Iterator[LayoutError]:
    """Yield an error for each number of classes or images that differs from the task file."""
    if len(classes) != task.num_classes:
        actual = counted(len(classes), "class", "classes")
        shown = ", ".join(classes[:5]) + (", …" if len(classes) > 5 else "")
        reason = f"is {task.num_classes}, but the data has {actual}: {shown}"
        yield LayoutError(reason, "num_classes")
    for name, count in task.counts.items():
        if name in listed and len(listed[name]) != count:
            yield LayoutError(f"is {count}, but the data has {len(listed[name])}", f"data.counts.{name}")


def _wrong_labels(classes: Sequence[str], listed: Mapping[str, Part]) -> Iterator[LayoutError]:
    """Yield an error for the first invalid label of each part."""
    for part in listed.values():
        wrong = part.targets.first_wrong(len(classes), part.images)
        if wrong is not None:
            yield LayoutError(wrong, LABELS)
