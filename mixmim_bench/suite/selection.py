"""Which tasks a user means: by name, glob, path or suite, and in which variant.

A variant is an option of every task: `NAME@VARIANT` uses fewer of its training images.

| variant | train | val |
| --- | --- | --- |
| `5shot` | 5 images of each class of train (all, where a class has fewer) | 5 of each class of val |
| `train800val200` | 800 images of train, stratified | 200 of val, stratified |

The second has the sizes of VTAB-1k (arXiv 1910.04867); its own images are the first ones in the order of
TensorFlow Datasets, ours are chosen by hash.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import mixmim_bench
from mixmim_bench.errors import BenchError, UnknownName, nearest
from mixmim_bench.specs import TaskSpec
from mixmim_bench.suite.taskfile import read_task

# pattern -> what is cut from train and val
VARIANTS: dict[str, Callable[[re.Match[str]], tuple[str, str]]] = {
    r"([1-9]\d*)shot": lambda found: (f"[:{found[1]}/class]", f"[:{found[1]}/class]"),
    r"train([1-9]\d*)val([1-9]\d*)": lambda found: (f"[:{found[1]}]", f"[:{found[2]}]"),
}
EXAMPLES = ("5shot", "train800val200")


def task_folder() -> Path:
    """Find the folder of the suite's own task files: in an installed package, else beside it."""
    package = Path(mixmim_bench.__file__).parent
    inside = package / "tasks"
    return inside if inside.is_dir() else package.parent / "tasks"


def load_tasks() -> dict[str, TaskSpec]:
    """Read every task file of the suite, by name; a file that cannot be used raises TaskFileError."""
    return {path.stem: read_task(path) for path in sorted(task_folder().glob("*.toml"))}


def select_tasks(wanted: Iterable[str], suites: Iterable[str]) -> list[TaskSpec]:
    """Pick tasks by name, glob or path of a TOML file, each with or without @VARIANT, and by suite.

    Each comes once, in that order. Raises UnknownName, TaskFileError, and BenchError for a file named like
    a task of the suite.
    """
    known = load_tasks()
    picked: dict[str, TaskSpec] = {}
    for text in wanted:
        pattern, _, variant = text.partition("@")
        for task in _matching(pattern, known):
            other = known.get(task.dataset) or next(
                (found for found in picked.values() if found.dataset == task.dataset), None
            )
            if other is not None and Path(other.path).resolve() != Path(task.path).resolve():
                raise BenchError(
                    f"{pattern}: another task is called {task.name!r} ({other.path}); rename the file"
                )
            chosen = in_variant(task, variant)
            picked[chosen.name] = chosen
    all_suites = {suite for task in known.values() for suite in task.suites}
    for suite in suites:
        if suite not in all_suites:
            raise UnknownName("suite", suite, all_suites)
        picked.update((name, task) for name, task in known.items() if suite in task.suites)
    return list(picked.values())


def _matching(pattern: str, known: dict[str, TaskSpec]) -> list[TaskSpec]:
    if pattern.endswith(".toml"):
        return [read_task(Path(pattern))]
    names = [name for name in known if fnmatchcase(name, pattern)]
    if not names:
        raise UnknownName("task", pattern, known, "or give the path of a .toml file")
    return [known[name] for name in names]


def in_variant(task: TaskSpec, variant: str) -> TaskSpec:
    """Take fewer training images; '' leaves a task as it is. Raises BenchError for an unknown variant."""
    if not variant:
        return task
    for pattern, cuts in VARIANTS.items():
        if match := re.fullmatch(pattern, variant):
            train, val = cuts(match)
            split = {**task.split, "train": task.split["train"] + train, "val": task.split["val"] + val}
            name, title = f"{task.name}@{variant}", f"{task.title}, {variant}"
            return dataclasses.replace(task, name=name, title=title, split=split)
    raise BenchError(f"{task.name}: no variant {variant!r}; {nearest(variant, EXAMPLES)}")
