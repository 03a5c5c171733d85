"""From names to what they stand for on this machine: models, weights, tasks and their images.

The one impure step before `plan`; everything that can be wrong with the input is found here, before any
work is done.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mixmim_bench import facts
from mixmim_bench.data import FUSED
from mixmim_bench.data.dataset import TaskData, find_data, open_task
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.errors import MissingData, MissingWeights
from mixmim_bench.features import OWN
from mixmim_bench.protocols import judging
from mixmim_bench.registry import find_model
from mixmim_bench.specs import AUTO, RANDOM, ModelSpec, TaskSpec
from mixmim_bench.suite.plan import ModelChoice, Planned, TaskChoice, choose_protocol, plan
from mixmim_bench.suite.selection import select_tasks
from mixmim_bench.weights.download import Bar
from mixmim_bench.weights.find import resolve_weights

EMBEDDED = "embedded"
PAPER = "paper"

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What the user asked for."""

    models: Sequence[str]
    tasks: Sequence[str] = ()
    suites: Sequence[str] = ()
    protocols: Sequence[str] = ("linear", "finetune")
    seeds: Sequence[int] = (0,)
    weights: str = AUTO
    preset: str = AUTO
    precision: str = "float32"
    fused_resize: bool = False  # of evaluation: faster, pixels differ by at most 2 of 255
    layers: str = ""  # of the protocols that judge frozen features; '': what each has by default
    roots: DataRoots = field(default_factory=DataRoots)


@dataclass(frozen=True)
class Resolved:
    """The runs to do, and the images of each task by name."""

    planned: list[Planned]
    data: dict[str, TaskData] = field(default_factory=dict)


def resolve(selection: Selection, say: Say, bar: Bar | None = None) -> Resolved:
    """Find everything and plan; `say` is told what was decided for the user.

    Without a `bar` for downloads nothing is fetched: what would be can be planned, not run. Raises
    BenchError.
    """
    models = [find_model(name) for name in dict.fromkeys(selection.models)]
    tasks = _tasks(selection, say, planning=bar is None)
    protocols = {}
    for task in tasks:
        there, absent = judging(list(dict.fromkeys(selection.protocols)), task.kind)
        if absent:
            say(f"{task.name}: no {' and no '.join(absent)} for {task.kind} tasks; left out")
        protocols[task.name] = [
            choose_protocol(task, name, selection.preset, selection.layers) for name in there
        ]
    data = {task.name: open_task(task, selection.roots) for task in tasks}
    chosen_models = [_choose_weights(model, tasks, selection.weights, say, bar) for model in models]
    if selection.fused_resize:
        chosen_models = [
            dataclasses.replace(choice, preprocessing=dataclasses.replace(choice.preprocessing, resize=FUSED))
            for choice in chosen_models
        ]
    chosen_tasks = [
        TaskChoice(
            spec=task,
            data=data[task.name].source,
            counts=data[task.name].counts,
            protocols=protocols[task.name],
        )
        for task in tasks
    ]
    seeds = list(dict.fromkeys(selection.seeds))
    planned = plan(chosen_models, chosen_tasks, seeds, selection.precision)
    _check_weights(planned)
    _check_layers(planned)
    _say_preprocessing(planned, say)
    return Resolved(planned, data)


def _check_weights(planned: Sequence[Planned]) -> None:
    """See that weights fit at the sizes of the runs too: MixMIM's windows depend on them."""
    sizes = {}
    for each in planned:
        run = each.run
        if run.model.arch.startswith("mixmim") and run.size != facts.own_size(run.model):
            sizes[run.model.name, run.size] = run
    for run in sizes.values():
        facts.check_weights(run.model, run.weights, run.size)


def _say_preprocessing(planned: Sequence[Planned], say: Say) -> None:
    """Say how images are prepared: no checkpoint tells what it was trained with."""
    tasks: dict[tuple[str, str], dict[str, None]] = {}
    for each in planned:
        line = each.run.preprocessing.describe()
        tasks.setdefault((each.run.model.name, line), {})[each.run.task.name] = None
    for (model, line), names in tasks.items():
        say(f"{model} on {', '.join(names)}: {line}")


def _check_layers(planned: Sequence[Planned]) -> None:
    """See that each model has the layers that are asked of it, before anything is computed."""
    asked = {}
    for each in planned:
        names = each.protocol.frozen_layers()
        if set(names) - {OWN}:
            asked[each.run.model.name, each.run.size, names] = each.run.model
    for (_, size, names), model in asked.items():
        facts.check_layers(model, size, names)


def _tasks(selection: Selection, say: Say, planning: bool) -> list[TaskSpec]:
    """Select tasks; what is asked for by name must be there, of a suite or a plan what is there is taken."""
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
            say(f"{'Missing' if planning else 'Left out'}: {error}")
    tasks = list({task.name: task for task in [*named, *there]}.values())
    if not tasks:
        raise MissingData("none of the tasks has its data on this machine; nothing to run")
    return tasks


def _choose_weights(
    model: ModelSpec, tasks: Sequence[TaskSpec], choice: str, say: Say, bar: Bar | None
) -> ModelChoice:
    """Find the weights of a model. Only the embedded quick start goes on without pretrained ones."""
    try:
        weights = resolve_weights(model, choice, bar)
    except MissingWeights as error:
        own = [task.name for task in tasks if EMBEDDED not in task.suites]
        if own:
            raise MissingWeights(f"{error} (asked for by {', '.join(own)})", error.reason) from error
        weights = RANDOM
        say(
            f"{model.name}: {error.reason}"
            + (" (`mixmim-bench models` tells what to put where)" if model.weights else "")
            + ". The embedded suite goes on with RANDOM weights, and every table says so."
        )
    facts.check_weights(model, weights)
    return ModelChoice(spec=model, weights=weights, preprocessing=facts.preprocessing(model))
