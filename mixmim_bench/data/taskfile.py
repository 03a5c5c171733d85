"""Task files: TOML to TaskSpec. `tasks/README.md` tells what each key means."""

import sys
import tomllib
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import mixmim_bench
from mixmim_bench.data.split import Slice, overlap
from mixmim_bench.errors import BenchError, TaskFileError, UnknownName, nearest
from mixmim_bench.metrics import METRICS
from mixmim_bench.protocols import check_recipe, kinds
from mixmim_bench.specs import ROLES, TaskSpec

SCHEMA = 1
AUGMENTATIONS = ("hflip",)
_REQUIRED: Any = object()


def task_folder() -> Path:
    """Find the folder of the suite's own task files: in an installed package, else beside it."""
    package = Path(mixmim_bench.__file__).parent
    inside = package / "tasks"
    return inside if inside.is_dir() else package.parent / "tasks"


def load_tasks() -> dict[str, TaskSpec]:
    """Read every task file of the suite, by name; a file that cannot be used raises TaskFileError."""
    return {path.stem: read_task(path) for path in sorted(task_folder().glob("*.toml"))}


def select_tasks(wanted: Iterable[str], suites: Iterable[str]) -> list[TaskSpec]:
    """Pick tasks by name, glob or path of a TOML file, and by suite; each once, in that order.

    Raises UnknownName, TaskFileError, and BenchError for a file named like a task of the suite.
    """
    known = load_tasks()
    picked: dict[str, TaskSpec] = {}
    for pattern in wanted:
        if pattern.endswith(".toml"):
            task = read_task(Path(pattern))
            other = known.get(task.name) or picked.get(task.name)
            if other is not None and Path(other.path).resolve() != Path(task.path).resolve():
                raise BenchError(
                    f"{pattern}: another task is called {task.name!r} ({other.path}); rename the file"
                )
            picked[task.name] = task
            continue
        names = [name for name in known if fnmatchcase(name, pattern)]
        if not names:
            raise UnknownName("task", pattern, known, "or give the path of a .toml file")
        picked.update((name, known[name]) for name in names)
    all_suites = {suite for task in known.values() for suite in task.suites}
    for suite in suites:
        if suite not in all_suites:
            raise UnknownName("suite", suite, all_suites)
        picked.update((name, task) for name, task in known.items() if suite in task.suites)
    return list(picked.values())


class _Table:
    """A table of a TOML file, from which keys are taken one by one; what is left over is an error."""

    def __init__(self, path: Path, name: str, values: Mapping[str, Any]) -> None:
        self.path = path
        self.name = name
        self.values = dict(values)
        self.known: list[str] = []

    def error(self, key: str, problem: str) -> TaskFileError:
        return TaskFileError(self.path, f"{self.name}.{key}" if self.name else key, problem)

    def take(self, key: str, kind: type[Any], default: Any = _REQUIRED) -> Any:
        """Take a value of one type (a list holds strings); without a default it must be there."""
        self.known.append(key)
        if key not in self.values:
            if default is _REQUIRED:
                raise self.error(key, f"the key is missing ({_KINDS[kind]})")
            return default
        value: Any = self.values.pop(key)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (kind is list and any(type(v) is not str for v in value)):
            raise self.error(key, f"must be {_KINDS[kind]}, not {value!r}")
        return value

    def table(self, key: str, default: Any = _REQUIRED) -> "_Table":
        name = f"{self.name}.{key}" if self.name else key
        return _Table(self.path, name, self.take(key, dict, default))

    def finish(self) -> None:
        """Raise for a key that nothing asked for."""
        for key in self.values:
            raise self.error(key, f"unknown key; {nearest(key, self.known)}")


_KINDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list of texts",
    dict: "a table",
}


def read_task(path: Path) -> TaskSpec:
    """Read and check one task file; raises TaskFileError, which names file and key."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TaskFileError(path, "", "there is no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TaskFileError(path, "", str(error)) from error
    top = _Table(path, "", values)
    schema = top.take("schema", int)
    if schema != SCHEMA:
        raise top.error("schema", f"is {schema}, and this version reads schema {SCHEMA}")
    kind = top.take("kind", str)
    if kind not in kinds():
        raise top.error("kind", f"no kind {kind!r}; {nearest(kind, kinds())}")
    data, image = top.table("data"), top.table("image", {})
    task = TaskSpec(
        name=path.stem,
        path=str(path),
        kind=kind,
        version=_positive(top, "version"),
        title=top.take("title", str),
        num_classes=_positive(top, "num_classes"),
        metrics=_names(top, "metrics", METRICS),
        suites=tuple(top.take("suites", list, [])),
        reference=top.take("reference", str, ""),
        forbid=_names(top, "forbid", AUGMENTATIONS, []),
        skip_unreadable=data.take("skip_unreadable", bool, False),
        layouts=tuple(data.take("layouts", list)),
        root=data.take("root", str, ""),
        counts=_counts(data.table("counts", {})),
        options=data.take("options", dict, {}),
        image_size=_positive(image, "size", optional=True),
        crop_pct=_share(image, "crop_pct", optional=True),
        split=_split(top.table("split")),
        recipe=top.take("recipe", dict, {}),
    )
    for table in (data, image, top):
        table.finish()
    _check(top, task)
    return task


def _positive(table: _Table, key: str, optional: bool = False) -> int:
    """Take a number of at least 1; 0 stands for an optional one that is not there."""
    value = table.take(key, int, None if optional else _REQUIRED)
    if value is not None and value < 1:
        raise table.error(key, f"must be at least 1, not {value}")
    return value or 0


def _share(table: _Table, key: str, optional: bool = False) -> float:
    """Take a share of a whole; 0 stands for an optional one that is not there."""
    value = table.take(key, float, None if optional else _REQUIRED)
    if value is not None and not 0.0 < value <= 1.0:
        raise table.error(key, f"must be above 0 and at most 1, not {value}")
    return value or 0.0


def _names(table: _Table, key: str, known: Collection[str], default: Any = _REQUIRED) -> tuple[str, ...]:
    names = table.take(key, list, default)
    for name in names:
        if name not in known:
            raise table.error(key, f"no {name!r}; {nearest(name, known)}")
    return tuple(names)


def _counts(table: _Table) -> dict[str, int]:
    return {part: table.take(part, int) for part in list(table.values)}


def _split(table: _Table) -> dict[str, str]:
    split = {role: table.take(role, str) for role in ROLES}
    table.finish()
    for role, text in split.items():
        try:
            Slice.parse(text)
        except ValueError as error:
            raise table.error(role, str(error)) from None
    return split


def _check(top: _Table, task: TaskSpec) -> None:
    """Check what no single key can show."""
    if not task.metrics:
        raise top.error("metrics", "names no metric")
    if not task.layouts:
        raise top.error("data.layouts", "names no layout")
    if task.num_classes < 2:
        raise top.error("num_classes", "must be at least 2")
    slices = {role: Slice.parse(text) for role, text in task.split.items()}
    parts = {cut.part for cut in slices.values()}
    for part in task.counts:
        if part not in parts:
            raise top.error(f"data.counts.{part}", f"no split uses this part; {nearest(part, parts)}")
    for role, cut in slices.items():
        try:
            cut.bounds(task.counts.get(cut.part, sys.maxsize))
        except ValueError as error:
            raise top.error(f"split.{role}", str(error)) from error
    shared = overlap(slices, task.counts)
    if shared:
        raise top.error("split", shared)
    for protocol, values in task.recipe.items():
        try:
            check_recipe(protocol, task.kind, values)
        except BenchError as error:
            raise top.error(f"recipe.{protocol}", str(error)) from error
