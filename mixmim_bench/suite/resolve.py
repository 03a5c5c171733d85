"""Resolve names to models, weights, tasks and images on this machine.

This is the only impure step before `plan`; it finds all errors in the input before any work is done.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixmim_bench import facts
from mixmim_bench.data import EXACT
from mixmim_bench.data.dataset import TaskData, find_data, open_task
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.errors import BenchError, MissingData, MissingWeights
from mixmim_bench.features import OWN
from mixmim_bench.protocols import find_protocol, replaced, split_by_kind
from mixmim_bench.registry import find_model
from mixmim_bench.specs import AUTO, RANDOM, ModelSpec, TaskSpec
from mixmim_bench.suite.plan import ModelChoice, Planned, TaskChoice, choose_protocol, plan
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

    models: Sequence[str]
    tasks: Sequence[str] = ()
    suites: Sequence[str] = ()
    protocols: Sequence[str] = ("linear", "finetune")
    seeds: Sequence[int] = (0,)
    weights: str = AUTO
    preset: str = AUTO
    precision: str = "float32"
    resize: str = EXACT  # for evaluation
    layers: str = ""  # of protocols on frozen features; '': their default
    changes: Mapping[str, Any] = field(default_factory=dict)  # 'PROTOCOL.KEY' -> value
    roots: DataRoots = field(default_factory=DataRoots)


@dataclass(frozen=True)
class Resolved:
    """The planned runs, and the images of each task by name."""

    planned: list[Planned]
    data: dict[str, TaskData] = field(default_factory=dict)


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
    models = [find_model(name) for name in dict.fromkeys(selection.models)]
    tasks = _tasks(selection, say, planning=bar is None)
    protocols = {}
    changes = _changes_by_protocol(selection, {task.kind for task in tasks})
    for task in tasks:
        available, unavailable = split_by_kind(list(dict.fromkeys(selection.protocols)), task.kind)
        for asked, instead in replaced(selection.protocols, task.kind).items():
            say(f"{task.name}: {instead} instead of {asked}, which {task.kind} tasks do not have")
        if unavailable:
            say(f"{task.name}: no {' and no '.join(unavailable)} for {task.kind} tasks; skipped")
        protocols[task.name] = [
            (task, name, selection.preset, selection.layers, changes.get(name)) for name in available
        ]
        for choice in protocols[task.name]:
            choose_protocol(*choice)  # finds errors before images are listed
    if not any(protocols.values()):
        find_protocol(selection.protocols[0], tasks[0].kind)
    tasks = [task for task in tasks if protocols[task.name]]
    data = {task.name: open_task(task, selection.roots) for task in tasks}
    chosen_models = [_choose_weights(model, tasks, selection.weights, say, bar) for model in models]
    if selection.resize != EXACT:
        chosen_models = [
            dataclasses.replace(
                choice, preprocessing=dataclasses.replace(choice.preprocessing, resize=selection.resize)
            )
            for choice in chosen_models
        ]
    chosen_tasks = [
        TaskChoice(
            spec=task,
            data=data[task.name].source,
            counts=data[task.name].counts,
            protocols=[
                choose_protocol(*choice, counts=data[task.name].counts) for choice in protocols[task.name]
            ],
        )
        for task in tasks
    ]
    seeds = list(dict.fromkeys(selection.seeds))
    planned = plan(chosen_models, chosen_tasks, seeds, selection.precision)
    _check_weights(planned)
    _check_layers(planned)
    _say_preprocessing(planned, say)
    return Resolved(planned, data)


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


def _tasks(selection: Selection, say: Say, planning: bool) -> list[TaskSpec]:
    """Select tasks; named tasks must be available, of a suite or a dry run the available ones are used."""
    roots = selection.roots
    if selection.tasks or selection.suites:
        named = select_tasks(selection.tasks, ())
        of_suites = select_tasks((), selection.suites)
        if planning:
            named, of_suites = [], [*named, *of_suites]
        for task in named:
            find_data(task, roots)
    elif not roots:
        say(
            "No data root is set, so the 'embedded' suite runs, on real images inside installed packages. "
            "For ImageNet-1K and the transfer sets that `mixmim-bench tasks` lists: --data-root FOLDER, with "
            "a folder for each."
        )
        named, of_suites = [], select_tasks((), [EMBEDDED])
    else:
        named, of_suites = [], select_tasks((), [PAPER])
    there = []
    for task in of_suites:
        try:
            find_data(task, roots)
            there.append(task)
        except MissingData as error:
            say(f"{'Missing' if planning else 'Skipped'}: {error}")
    tasks = list({task.name: task for task in [*named, *there]}.values())
    if not tasks:
        raise MissingData("none of the tasks has its data on this machine; nothing to run")
    return tasks


def _choose_weights(
    model: ModelSpec, tasks: Sequence[TaskSpec], choice: str, say: Say, bar: Bar | None
) -> ModelChoice:
    """Find the weights of a model. Only the embedded suite falls back to random weights."""
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
    return ModelChoice(spec=model, weights=weights, preprocessing=facts.preprocessing(model))
