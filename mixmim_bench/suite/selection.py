"""Which tasks a user means: by name, glob, path and suite, and in which variant.

A variant is an option of every task: `NAME@VARIANT`, or several, `NAME@VARIANT@VARIANT`.

| variant | images |
| --- | --- |
| `5shot` | 5 of each class of train (all, where a class has fewer) and 5 of each class of val |
| `train800val200` | 800 of train and 200 of val, stratified |
| `subset` | classes and images that are there, where a copy has only some |
| `FILE.txt` | the classes that the file names, one a line |
| `limit100` | at most 100 of each role, test included, for smoke runs |
| `permuted` | all, where those of train, and those of val, have each other's labels: a control |
| `noise50` | all, with 50 % of their variance replaced by noise: a control |

The second has the sizes of VTAB-1k (arXiv 1910.04867); its own images are the first ones in the order of
TensorFlow Datasets, ours are chosen by hash.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import mixmim_bench
from mixmim_bench.errors import BenchError, UnknownName, nearest
from mixmim_bench.specs import LIMITED, NOISE, PERMUTED, TaskSpec, name_and_variants
from mixmim_bench.suite.taskfile import read_task

EXAMPLES = ("5shot", "train800val200", "subset", "FILE.txt", "limit100", PERMUTED, f"{NOISE}50")
OF_CLASSES = ".txt"
CONTROLLED = ("classification", "multilabel")  # kinds of task with controls


def _fewer(task: TaskSpec, train: str, val: str) -> dict[str, Any]:
    """Cut train and val; test stays."""
    if "train" not in task.split:
        raise BenchError(f"{task.name} has no train images to take fewer of")
    return {"split": {**task.split, "train": task.split["train"] + train, "val": task.split["val"] + val}}


def _in_part(task: TaskSpec, names: tuple[str, ...]) -> dict[str, Any]:
    if task.kind != "classification" or task.labels:
        raise BenchError(f"{task.name} has no subsets: its images do not have one class each")
    return {"partial": True, "subset": names, "counts": {}}


def _control(task: TaskSpec, changes: dict[str, Any]) -> dict[str, Any]:
    """Destroy the signal."""
    if task.kind not in CONTROLLED or "train" not in task.split:
        raise BenchError(f"{task.name} has no controls, which train probes of image classes")
    return changes


# pattern -> what changes in a task
VARIANTS: dict[str, Callable[[TaskSpec, re.Match[str]], dict[str, Any]]] = {
    r"([1-9]\d*)shot": lambda task, found: _fewer(task, *[f"[:{found[1]}/class]"] * 2),
    r"train([1-9]\d*)val([1-9]\d*)": lambda task, found: _fewer(task, f"[:{found[1]}]", f"[:{found[2]}]"),
    r"subset": lambda task, _: _in_part(task, ()),
    rf"{LIMITED}([1-9]\d*)": lambda _, found: {"limit": int(found[1])},
    PERMUTED: lambda task, _: _control(task, {"permuted": True}),
    rf"{NOISE}([1-9]\d?|100)": lambda task, found: _control(task, {"noise": int(found[1])}),
}


def task_folder() -> Path:
    """Find the folder of the suite's own task files: in an installed package, else beside it."""
    package = Path(mixmim_bench.__file__).parent
    inside = package / "tasks"
    return inside if inside.is_dir() else package.parent / "tasks"


def load_tasks() -> dict[str, TaskSpec]:
    """Read every task file of the suite, by name; a file that cannot be used raises TaskFileError."""
    return {path.stem: read_task(path) for path in sorted(task_folder().glob("*.toml"))}


def select_tasks(wanted: Iterable[str | TaskSpec], suites: Iterable[str], limit: int = 0) -> list[TaskSpec]:
    """Pick tasks by name, glob or path of a TOML file, each with or without @VARIANT, and by suite.

    Each comes once, in that order; with a limit, as the variant of so many images. Tasks may be among the
    names.

    Raises:
        BenchError: there is no such task, suite or variant, or a file is named like a task of the suite.
    """
    known = load_tasks()
    picked: dict[str, TaskSpec] = {}
    for each in wanted:
        pattern, variants = name_and_variants(each) if isinstance(each, str) else (each.name, "")
        for task in _matching(pattern, known) if isinstance(each, str) else [each]:
            other = known.get(task.dataset) or next(
                (found for found in picked.values() if found.dataset == task.dataset), None
            )
            if other is not None and Path(other.path).resolve() != Path(task.path).resolve():
                raise BenchError(
                    f"{pattern}: another task is called {task.name!r} ({other.path}); rename the file"
                )
            chosen = in_variant(task, variants)
            if picked.setdefault(chosen.name, chosen) != chosen:
                raise BenchError(f"two different tasks are called {chosen.name!r}; rename one of their files")
    all_suites = {suite for task in known.values() for suite in task.suites}
    for suite in suites:
        if suite not in all_suites:
            raise UnknownName("suite", suite, all_suites)
        picked.update((name, task) for name, task in known.items() if suite in task.suites)
    if limit:
        limited = [in_variant(task, f"{LIMITED}{limit}") for task in picked.values()]
        picked = {task.name: task for task in limited}
    return list(picked.values())


def _matching(pattern: str, known: dict[str, TaskSpec]) -> list[TaskSpec]:
    if pattern.endswith(".toml"):
        return [read_task(Path(pattern))]
    names = [name for name in known if fnmatchcase(name, pattern)]
    if not names:
        raise UnknownName("task", pattern, known, "or give the path of a .toml file")
    return [known[name] for name in names]


def in_variant(task: TaskSpec, variant: str) -> TaskSpec:
    """Take other images; '' leaves a task as it is. Raises BenchError for an unknown variant."""
    for each in variant.split("@") if variant else ():
        task = _varied(task, each)
    return task


def is_variant(name: str) -> bool:
    """Return whether a name is that of a variant, and not of a list of classes."""
    return any(re.fullmatch(pattern, name) for pattern in VARIANTS)


def _varied(task: TaskSpec, variant: str) -> TaskSpec:
    if variant.endswith(OF_CLASSES):
        changes, name = _in_part(task, _read_classes(Path(variant).expanduser())), Path(variant).stem
        if is_variant(name):
            raise BenchError(f"{task.name}@{variant}: a variant is called {name!r}; rename the file")
    else:
        found = [(vary, match) for p, vary in VARIANTS.items() if (match := re.fullmatch(p, variant))]
        if not found:
            raise BenchError(f"{task.name}: no variant {variant!r}; {nearest(variant, EXAMPLES)}")
        vary, match = found[0]
        changes, name = vary(task, match), variant
    return dataclasses.replace(task, name=f"{task.name}@{name}", title=f"{task.title}, {name}", **changes)


def _read_classes(path: Path) -> tuple[str, ...]:
    """Read the names of classes, one a line, where `#` begins a comment."""
    try:
        lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"the list of classes {path} cannot be read: {error}") from error
    names = tuple(line for line in lines if line)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if len(names) < 2 or repeated:
        what = (
            f"names {repeated[0]!r} twice" if repeated else f"names {len(names)} classes, and two are needed"
        )
        raise BenchError(f"the list of classes {path} {what}")
    return names
