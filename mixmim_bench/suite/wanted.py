"""What a user selects: tasks whose images are here, each with the protocols that it is wanted for."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixmim_bench.data import EXACT, RESIZES
from mixmim_bench.data.dataset import find_data, open_task
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.errors import BenchError, MissingData, nearest
from mixmim_bench.protocols import find_protocol, replaced, split_by_kind
from mixmim_bench.protocols.contract import Protocol
from mixmim_bench.specs import AUTO, PRECISIONS, ROLES, ModelSpec, TaskSpec
from mixmim_bench.suite.plan import ProtocolChoice, choose_protocol
from mixmim_bench.suite.selection import select_tasks

EMBEDDED = "embedded"
EMBEDDED_DENSE = "embedded-dense"
PAPER = "paper"

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The user's selection."""

    models: Sequence[str | ModelSpec]
    tasks: Sequence[str | TaskSpec] = ()
    suites: Sequence[str] = ()
    protocols: Sequence[str] = ("linear", "finetune")
    seeds: Sequence[int] = (0,)
    weights: str = AUTO
    preset: str = AUTO
    precision: str = "float32"
    resize: str = EXACT  # for evaluation
    layers: str = ""  # of protocols on frozen features; '': their default
    changes: Mapping[str, Any] = field(default_factory=dict)  # 'PROTOCOL.KEY' -> value
    limit: int = 0  # images of each role, for smoke runs; 0: all
    controls: bool = False  # whether to add those of `suite.controls`
    roots: DataRoots = field(default_factory=DataRoots)

    def __post_init__(self) -> None:
        for what, value, known in (
            ("precision", self.precision, PRECISIONS),
            ("resize", self.resize, RESIZES),
        ):
            if value not in known:
                raise BenchError(f"no {what} {value!r}; {nearest(value, known)}")


@dataclass(frozen=True)
class Wanted:
    """A task with the protocols that it is wanted for, and what the user changes of them."""

    task: TaskSpec
    classes: Sequence[type[Protocol]]
    selection: Selection
    changes: Mapping[str, Mapping[str, Any]]  # by protocol

    def choose(self, name: str, counts: Mapping[str, int] | None = None) -> ProtocolChoice:
        """Choose the hyper-parameters of a protocol; raises BenchError for wrong ones."""
        selection = self.selection
        return choose_protocol(
            self.task, name, selection.preset, selection.layers, self.changes.get(name), counts
        )


def tasks_and_protocols(selection: Selection, say: Say, planning: bool) -> list[Wanted]:
    """Select tasks whose images are here, each with its protocols; raises BenchError before any is listed."""
    candidates, named = _candidates(selection, say)
    changes = _changes_by_protocol(selection, {task.kind for task in candidates})
    wanted = []
    reasons = []
    for task in candidates:
        classes = _protocols(task, selection, say)
        each = Wanted(task, classes, selection, changes)
        for cls in classes:
            each.choose(cls.name)
        if not classes:
            reasons.append(_no_protocol(task, selection))
            continue
        try:
            find_data(_for_protocols(task, classes), selection.roots)
            wanted.append(each)
        except MissingData as error:
            if task.name in named and not planning:
                raise _with_hint(error, task, selection.roots) from error
            say(f"{'Missing' if planning else 'Skipped'}: {error}")
    if not wanted:
        raise (
            BenchError(reasons[0])
            if len(reasons) == len(candidates)
            else MissingData("none of the tasks has its data on this machine; nothing to run")
        )
    return wanted


def _candidates(selection: Selection, say: Say) -> tuple[list[TaskSpec], set[str]]:
    """Select tasks, and return the names of those whose images must be here."""
    if selection.tasks or selection.suites:
        tasks = select_tasks(selection.tasks, selection.suites, selection.limit)
        return tasks, {task.name for task in select_tasks(selection.tasks, (), selection.limit)}
    if not selection.roots:
        say(
            "No data root is set, so the 'embedded' suite runs, on real images inside installed packages. "
            "For ImageNet-1K and the transfer sets that `mixmim-bench tasks` lists: --data-root FOLDER, with "
            "a folder for each."
        )
        return select_tasks([], [EMBEDDED], selection.limit), set()
    return select_tasks([], [PAPER], selection.limit), set()


def _protocols(task: TaskSpec, selection: Selection, say: Say) -> list[type[Protocol]]:
    """Return the selected protocols of a task, and say which are left out or replaced."""
    available, unavailable = split_by_kind(list(dict.fromkeys(selection.protocols)), task.kind)
    for asked, instead in replaced(selection.protocols, task.kind).items():
        say(f"{task.name}: {instead} instead of {asked}, which {task.kind} tasks do not have")
    if unavailable:
        say(f"{task.name}: no {' and no '.join(unavailable)} for {task.kind} tasks; skipped")
    classes = [find_protocol(name, task.kind) for name in available]
    usable = [cls for cls in classes if set(cls.roles) <= set(task.roles)]
    left = [cls.name for cls in classes if cls not in usable]
    if left and usable:
        say(f"{task.name}: has test images only, so no {' and no '.join(left)}; skipped")
    return usable


def _no_protocol(task: TaskSpec, selection: Selection) -> str:
    """Explain why none of the selected protocols can be used for a task."""
    if not set(ROLES) <= set(task.roles):
        return (
            f"{task.name} has test images only, to which {' and '.join(selection.protocols)} cannot be "
            "fitted; -p own-head evaluates the classifier that weights come with"
        )
    try:
        find_protocol(selection.protocols[0], task.kind)
    except BenchError as error:
        return str(error)
    raise AssertionError(task.name)


def _for_protocols(task: TaskSpec, classes: Sequence[type[Protocol]]) -> TaskSpec:
    """Return a task with the roles that protocols need."""
    return task.for_roles({role for cls in classes for role in cls.roles})


def _with_hint(error: MissingData, task: TaskSpec, roots: DataRoots) -> MissingData:
    """Say that the test images are here, which suffice for some protocols."""
    try:
        find_data(task.for_roles(ROLES[-1:]), roots)
    except BenchError:
        return error
    hint = "the test images alone are here, which `-p own-head` (the weights' own classifier) needs"
    return MissingData(f"{error}; {hint}", error.looked_for, error.near)


def _classes_there(task: TaskSpec, classes: Sequence[type[Protocol]], roots: DataRoots) -> tuple[str, ...]:
    """Return the classes of a subset: the same for all protocols, unless this machine lacks parts."""
    try:
        return open_task(task, roots).classes
    except MissingData:
        return open_task(_for_protocols(task, classes), roots).classes


def by_roles(wanted: Sequence[Wanted], roots: DataRoots) -> Iterator[Wanted]:
    """Split tasks by the roles that their protocols need; name the classes of subsets that are there."""
    for each in wanted:
        task = each.task
        if task.partial:
            found = _classes_there(task, each.classes, roots)
            task = dataclasses.replace(task, subset=found, num_classes=len(found))
        for roles in dict.fromkeys(cls.roles for cls in each.classes):
            classes = [cls for cls in each.classes if cls.roles == roles]
            yield dataclasses.replace(each, task=task.for_roles(roles), classes=classes)


def _changes_by_protocol(selection: Selection, kinds: Collection[str]) -> dict[str, dict[str, Any]]:
    """Split the changed hyper-parameters by protocol; raises BenchError for one that is not selected."""
    changes: dict[str, dict[str, Any]] = {}
    instead = [other for kind in kinds for other in replaced(selection.protocols, kind).values()]
    selected = list(dict.fromkeys([*selection.protocols, *instead]))
    for name, value in selection.changes.items():
        protocol, dot, key = name.partition(".")
        if not dot or protocol not in selected:
            raise BenchError(
                f"--set {name}: must be PROTOCOL.KEY=VALUE, with one of the selected protocols: "
                f"{', '.join(selected)}"
            )
        changes.setdefault(protocol, {})[key] = value
    return changes
