"""Resolve names to models, weights, tasks and images on this machine.

This is the only impure step before `plan`; it finds all errors in the input before any work is done.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixmim_bench import facts
from mixmim_bench.data import EXACT, RESIZES
from mixmim_bench.data.dataset import TaskData, find_data, open_task
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.errors import BenchError, MissingData, MissingWeights, nearest
from mixmim_bench.features import OWN
from mixmim_bench.modelfile import model_and_weights
from mixmim_bench.protocols import find_protocol, replaced, split_by_kind
from mixmim_bench.protocols.contract import Protocol
from mixmim_bench.protocols.outputs import outputs_of
from mixmim_bench.specs import AUTO, PRECISIONS, RANDOM, ROLES, ModelSpec, Run, TaskSpec, Weights, digest
from mixmim_bench.suite.plan import (
    Classifier,
    ModelChoice,
    Planned,
    ProtocolChoice,
    TaskChoice,
    choose_protocol,
    plan,
)
from mixmim_bench.suite.selection import select_tasks
from mixmim_bench.weights.download import Bar
from mixmim_bench.weights.find import resolve_weights

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
    roots: DataRoots = field(default_factory=DataRoots)

    def __post_init__(self) -> None:
        for what, value, known in (
            ("precision", self.precision, PRECISIONS),
            ("resize", self.resize, RESIZES),
        ):
            if value not in known:
                raise BenchError(f"no {what} {value!r}; {nearest(value, known)}")


@dataclass(frozen=True)
class Resolved:
    """The planned runs, and the images of each task by name and roles."""

    planned: list[Planned]
    data: dict[tuple[str, tuple[str, ...]], TaskData] = field(default_factory=dict)

    def data_of(self, run: Run) -> TaskData:
        """Return the images of a run."""
        return self.data[run.task.key]


def resolve(selection: Selection, say: Say, bar: Bar | None = None) -> Resolved:
    """Resolve a selection and plan its runs.

    Args:
        selection: what to run.
        say: prints what was decided for the user.
        bar: creates the progress bar of a download; if None, nothing is downloaded, and runs that need a
            download can be planned only.

    Raises:
        BenchError: the selection cannot be run.

    """
    named = [
        (each, AUTO) if isinstance(each, ModelSpec) else model_and_weights(each, selection.weights)
        for place, each in enumerate(selection.models)
        if each not in selection.models[:place]
    ]
    wanted = _tasks_and_protocols(selection, say, planning=bar is None)
    opened = [(each, open_task(each.task, selection.roots)) for each in _by_roles(wanted, selection.roots)]
    protocols = [cls for each, _ in opened for cls in each.classes]
    models = []
    for model, weights in named:
        chosen = _choose_weights(model, [each.task for each in wanted], weights, protocols, say, bar)
        if selection.resize != EXACT:
            preprocessing = dataclasses.replace(chosen.preprocessing, resize=selection.resize)
            chosen = dataclasses.replace(chosen, preprocessing=preprocessing)
        models.append(chosen)
    reasons: list[str] = []
    tasks = [
        TaskChoice(
            spec=each.task,
            data=data.source,
            counts=data.counts,
            protocols=[each.choose(cls.name, data.counts) for cls in each.classes],
            outputs=_outputs(each, data, models, reasons),
        )
        for each, data in opened
    ]
    planned = plan(models, tasks, list(dict.fromkeys(selection.seeds)), selection.precision)
    if not planned:
        raise BenchError("; ".join(reasons))
    for reason in reasons:
        say(f"{reason}; own-head is skipped")
    _say_same(planned, models, say)
    _check_transforms(planned)
    _check_weights(planned)
    _check_layers(planned)
    _say_preprocessing(planned, say)
    return Resolved(planned, {each.task.key: data for each, data in opened})


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


def _tasks_and_protocols(selection: Selection, say: Say, planning: bool) -> list[Wanted]:
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


def _by_roles(wanted: Sequence[Wanted], roots: DataRoots) -> Iterator[Wanted]:
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


def _say_same(planned: Sequence[Planned], models: Sequence[ModelChoice], say: Say) -> None:
    """Say which models have no runs, since one before is the same network with the same weights."""
    shown = {(each.run.model.name, each.run.weights.name) for each in planned}
    for place, model in enumerate(models):
        names = {(model.spec.name, weights.name) for weights in (model.weights, *_of_classifier(model))}
        if not names & shown and any(
            other.spec.arch == model.spec.arch and other.weights == model.weights for other in models[:place]
        ):
            say(f"{model.spec.name} is the same as a model before it, under whose name its results are shown")


def _of_classifier(model: ModelChoice) -> list[Weights]:
    return [] if model.classifier is None else [model.classifier.weights]


def _check_transforms(planned: Sequence[Planned]) -> None:
    """Check that transforms which models bring as objects can be used."""
    for each in planned:
        run, name = each.run, each.run.model.name
        if not run.preprocessing.transform:
            continue
        if each.protocol.trains:
            raise BenchError(
                f"{run.label}: training transforms images itself, so {name} cannot bring a transform; "
                "give mean, std, interpolation and image_size instead"
            )
        own = facts.own_size(run.model)
        if run.size != own:
            raise BenchError(
                f"{run.label}: the transform of {name} returns {own[0]} x {own[1]} pixels, and the task or "
                f"protocol asks for {run.size[0]} x {run.size[1]}"
            )


def _check_weights(planned: Sequence[Planned]) -> None:
    """Check that weights also fit at the sizes of the runs, on which MixMIM's windows depend."""
    sizes = {}
    for each in planned:
        run = each.run
        if run.model.arch.startswith("mixmim") and run.size != facts.own_size(run.model):
            sizes[run.model.name, run.size] = run
    for run in sizes.values():
        facts.check_weights(run.network, run.weights, run.size)


def _say_preprocessing(planned: Sequence[Planned], say: Say) -> None:
    """Print the preprocessing, since checkpoints do not record it."""
    tasks: dict[tuple[str, str], dict[str, None]] = {}
    for each in planned:
        line = each.run.preprocessing.describe(each.protocol.dense)
        tasks.setdefault((each.run.model.name, line), {})[each.run.task.name] = None
    for (model, line), names in tasks.items():
        say(f"{model} on {', '.join(names)}: {line}")


def _check_layers(planned: Sequence[Planned]) -> None:
    """Check that each model has the requested layers."""
    asked = {}
    for each in planned:
        names = each.protocol.frozen_layers()
        if set(names) - {OWN}:
            asked[each.run.model.name, each.run.size, names] = each.run.model
    for (_, size, names), model in asked.items():
        facts.resolve_layers(model, size, names)


def _choose_weights(
    model: ModelSpec,
    tasks: Sequence[TaskSpec],
    choice: str,
    protocols: Sequence[type[Protocol]],
    say: Say,
    bar: Bar | None,
) -> ModelChoice:
    """Find the weights of a model, and those with a classifier if protocols use it.

    Only the embedded suites fall back to random weights.
    """
    classifier = None
    if any(cls.uses_classifier for cls in protocols):
        alone = all(cls.uses_classifier for cls in protocols)
        classifier = _classifier(model, choice, say, bar, must=alone)
        if alone:
            assert classifier is not None
            facts.check_weights(model, classifier.weights)
            return ModelChoice(
                spec=model,
                weights=classifier.weights,
                preprocessing=facts.preprocessing(model),
                classifier=classifier,
            )
    try:
        weights = resolve_weights(model, choice, bar)
    except MissingWeights as error:
        own = [task.name for task in tasks if not {EMBEDDED, EMBEDDED_DENSE} & set(task.suites)]
        if own:
            raise MissingWeights(f"{error} (asked for by {', '.join(own)})", error.reason) from error
        weights = RANDOM
        say(
            f"{model.name}: {error.reason}"
            + (" (`mixmim-bench models` shows how to get them)" if model.weights else "")
            + ". Embedded tasks continue with RANDOM weights, marked as such in every table."
        )
    facts.check_weights(model, weights)
    return ModelChoice(
        spec=model, weights=weights, preprocessing=facts.preprocessing(model), classifier=classifier
    )


def _classifier(model: ModelSpec, choice: str, say: Say, bar: Bar | None, must: bool) -> Classifier | None:
    """Find weights with a classifier; if they are not a `must`, None with a message where there are none."""
    try:
        weights = resolve_weights(model, choice, bar, finetuned=True)
        if weights.random:
            raise BenchError(
                f"{model.name}: random weights have no trained classifier, which own-head scores"
            )
        classes = facts.classes_of(model, weights)
        if not classes:
            others = [each.name for each in model.weights if each.finetuned and each.name != weights.name]
            ways = f"; fine-tuned weights of it are {', '.join(others)}" if others else ""
            raise BenchError(
                f"{model.name}: {weights.name} has no classifier, which own-head scores{ways}; or use "
                "-p linear, which fits one"
            )
        facts.check_weights(model, weights)
    except BenchError as error:
        if must:
            raise
        say(f"{error}; own-head is skipped")
        return None
    return Classifier(weights, classes)


def _outputs(wanted: Wanted, data: TaskData, models: Sequence[ModelChoice], reasons: list[str]) -> list[str]:
    """Return a digest of the outputs of each model's classifier that are the classes of a task.

    '' if it has none, or is of other classes, for which a reason is appended.
    """
    digests = []
    used = any(cls.uses_classifier for cls in wanted.classes)
    for model in models:
        digests.append("")
        if model.classifier is None or not used:
            continue
        try:
            outputs = outputs_of(wanted.task, data.classes, model.classifier.classes)
            digests[-1] = digest([model.classifier.classes, outputs.tolist()])
        except BenchError as error:
            reasons.append(f"{model.spec.name} ({model.classifier.weights.name}): {error}")
    return digests
