"""Task files: TOML to TaskSpec. `tasks/README.md` tells what each key means."""

import dataclasses
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mixmim_bench.data.slices import Slice, overlap
from mixmim_bench.errors import BenchError, nearest
from mixmim_bench.protocols import check_recipe, kinds
from mixmim_bench.scoring.metrics import METRICS
from mixmim_bench.specs import ROLES, LayoutSpec, TaskSpec
from mixmim_bench.tomlfile import REQUIRED, Table, read_toml

SCHEMA = 1
AUGMENTATIONS = ("hflip",)
CLASSIFIERS = ("imagenet",)


def read_task(path: Path) -> TaskSpec:
    """Read and check one task file; raises TaskFileError, which names file and key."""
    top = read_toml(path)
    schema = top.take("schema", int)
    if schema != SCHEMA:
        raise top.error("schema", f"is {schema}, and this version reads schema {SCHEMA}")
    kind = top.take("kind", str)
    if kind not in kinds():
        raise top.error("kind", f"no kind {kind!r}; {nearest(kind, kinds())}")
    data, image, sources = top.table("data"), top.table("image", {}), top.table("sources", {})
    same = _same_images(data)
    task = TaskSpec(
        name=path.stem,
        path=str(path),
        kind=kind,
        version=_positive(top, "version"),
        title=top.take("title", str),
        num_classes=_positive(top, "num_classes"),
        metrics=(metrics := _names(top, "metrics", METRICS)),
        metric_versions={name: METRICS[name].version for name in metrics if METRICS[name].version > 1},
        suites=tuple(top.take("suites", list, [])),
        reference=top.take("reference", str, ""),
        forbid=_names(top, "forbid", AUGMENTATIONS, []),
        skip_unreadable=data.take("skip_unreadable", bool, False),
        layouts=same.layouts if same else _layouts(data),
        root=data.take("root", str, same.root if same else ""),
        folder=same.name if same else "",
        classifier=_one_of(top, "classifier", CLASSIFIERS),
        labels=data.take("labels", str, ""),
        counts=_counts(data.table("counts", {})) or (same.counts if same else {}),
        also_called=tuple(data.take("also_called", list, same.also_called if same else [])),
        download=tuple(data.take("download", list, same.download if same else [])),
        image_size=_positive(image, "size", optional=True),
        crop_pct=_share(image, "crop_pct", optional=True),
        split=(split := _split(top.table("split"))),
        recipe=top.take("recipe", dict, {}),
        sources={key: sources.take(key, str) for key in list(sources.values)},
    )
    for table in (data, image, top):
        table.finish()
    if same is not None:  # without the parts of the other task that this one does not use
        parts = {Slice.parse(text).part for text in split.values()}
        counts = {part: count for part, count in task.counts.items() if part in parts}
        task = dataclasses.replace(task, counts=counts)
        task = dataclasses.replace(task, split={**same.split, **split}).for_roles(split)
    _check(top, task)
    return task


def _same_images(data: Table) -> TaskSpec | None:
    """Take `same_as`, the name of a task file beside this one with the same images, and read it."""
    name = data.take("same_as", str, "")
    if not name:
        return None
    path = data.path.parent / f"{name}.toml"
    if not path.is_file():
        names = [each.stem for each in data.path.parent.glob("*.toml") if each != data.path]
        raise data.error("same_as", f"no task file {path}; {nearest(name, names)}")
    return read_task(path)


def _one_of(table: Table, key: str, known: Collection[str]) -> str:
    """Take one of several texts; '' stands for none."""
    value = table.take(key, str, "")
    if value and value not in known:
        raise table.error(key, f"no {value!r}; {nearest(value, known)}")
    return value


def _positive(table: Table, key: str, optional: bool = False) -> int:
    """Take a number of at least 1; 0 stands for an optional one that is not there."""
    value = table.take(key, int, None if optional else REQUIRED)
    if value is not None and value < 1:
        raise table.error(key, f"must be at least 1, not {value}")
    return value or 0


def _share(table: Table, key: str, optional: bool = False) -> float:
    """Take a share of a whole; 0 stands for an optional one that is not there."""
    value = table.take(key, float, None if optional else REQUIRED)
    if value is not None and not 0.0 < value <= 1.0:
        raise table.error(key, f"must be above 0 and at most 1, not {value}")
    return value or 0.0


def _names(table: Table, key: str, known: Collection[str], default: Any = REQUIRED) -> tuple[str, ...]:
    names = table.take(key, list, default)
    for name in names:
        if name not in known:
            raise table.error(key, f"no {name!r}; {nearest(name, known)}")
    return tuple(names)


def _layouts(data: Table) -> tuple[LayoutSpec, ...]:
    """Take `layouts`: texts, which all have the options of the task, or tables with options of their own."""
    options = data.take("options", dict, {})
    data.known.append("layouts")
    entries = data.values.pop("layouts", None)
    if not isinstance(entries, list) or not entries:
        raise data.error("layouts", f"must name at least one layout, not {entries!r}")
    layouts = []
    for place, entry in enumerate(entries):
        if isinstance(entry, str):
            layouts.append(LayoutSpec(name=entry, options=options, key="data.options"))
        elif isinstance(entry, dict) and isinstance(entry.get("layout"), str):
            own = {key: value for key, value in entry.items() if key != "layout"}
            layouts.append(
                LayoutSpec(name=entry["layout"], options={**options, **own}, key=f"data.layouts[{place}]")
            )
        else:
            raise data.error(f"layouts[{place}]", f"must be a string or a table with `layout`, not {entry!r}")
    return tuple(layouts)


def _counts(table: Table) -> dict[str, int]:
    return {part: table.take(part, int) for part in list(table.values)}


def _split(table: Table) -> dict[str, str]:
    learns = "train" in table.values or "val" in table.values
    split = {role: table.take(role, str) for role in (ROLES if learns else ROLES[-1:])}
    table.finish()
    for role, text in split.items():
        try:
            Slice.parse(text)
        except ValueError as error:
            raise table.error(role, str(error)) from None
    return split


def _check(top: Table, task: TaskSpec) -> None:
    """Check what no single key can show."""
    if not task.metrics:
        raise top.error("metrics", "names no metric")
    for metric in task.metrics:
        if task.kind not in METRICS[metric].kinds:
            others = [name for name in METRICS if task.kind in METRICS[name].kinds]
            raise top.error(
                "metrics", f"{metric!r} is not a metric of {task.kind} tasks; use one of {', '.join(others)}"
            )
    if task.num_classes < 2:
        raise top.error("num_classes", "must be at least 2")
    slices = {role: Slice.parse(text) for role, text in task.split.items()}
    parts = {cut.part for cut in slices.values()}
    for part in task.counts:
        if part not in parts:
            raise top.error(f"data.counts.{part}", f"no split uses this part; {nearest(part, parts)}")
    for role, cut in slices.items():
        try:
            cut.check(task.counts.get(cut.part, sys.maxsize))
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
