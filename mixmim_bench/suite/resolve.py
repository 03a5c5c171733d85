"""Resolve names to models, weights, tasks and images on this machine.

This is the only impure step before `plan`; it finds all errors in the input before any work is done.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from mixmim_bench.data import EXACT
from mixmim_bench.data.dataset import TaskData, open_task
from mixmim_bench.errors import BenchError
from mixmim_bench.modelfile import model_and_weights
from mixmim_bench.specs import AUTO, ModelSpec, Run
from mixmim_bench.suite.checks import (
    check_layers,
    check_transforms,
    check_weights,
    say_preprocessing,
    say_same,
)
from mixmim_bench.suite.controls import probed, with_layers, without_signal, without_training
from mixmim_bench.suite.models import choose_weights, digests_of_outputs
from mixmim_bench.suite.plan import ModelChoice, Planned, TaskChoice, plan, unique
from mixmim_bench.suite.wanted import Say, Selection, Wanted, by_roles, tasks_and_protocols
from mixmim_bench.weights.download import Bar


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
    wanted = tasks_and_protocols(selection, say, planning=bar is None)
    opened = [(each, open_task(each.task, selection.roots)) for each in by_roles(wanted, selection.roots)]
    protocols = [cls for each, _ in opened for cls in each.classes]
    models = []
    for model, weights in named:
        chosen = choose_weights(model, [each.task for each in wanted], weights, protocols, say, bar)
        models.append(_resized(chosen, selection.resize))
    reasons: list[str] = []
    seeds = list(dict.fromkeys(selection.seeds))
    if not selection.controls:
        planned = plan(models, _choices(opened, models, reasons), seeds, selection.precision)
    else:
        real = probed(opened)
        opened += without_signal(real)
        untrained = [_resized(each, selection.resize) for each in without_training(models, say)]
        planned = unique(
            plan(models, _choices(opened, models, reasons), seeds, selection.precision)
            + with_layers(
                plan(untrained, _choices(real, untrained, reasons), seeds, selection.precision), say
            )
        )
    if not planned:
        raise BenchError("; ".join(reasons))
    for reason in reasons:
        say(f"{reason}; own-head is skipped")
    say_same(planned, models, say)
    check_transforms(planned)
    check_weights(planned)
    check_layers(planned)
    say_preprocessing(planned, say)
    return Resolved(planned, {each.task.key: data for each, data in opened})


def _resized(model: ModelChoice, resize: str) -> ModelChoice:
    """Change the way in which images are resized for a model."""
    if resize == EXACT:
        return model
    return dataclasses.replace(model, preprocessing=dataclasses.replace(model.preprocessing, resize=resize))


def _choices(
    opened: Sequence[tuple[Wanted, TaskData]], models: Sequence[ModelChoice], reasons: list[str]
) -> list[TaskChoice]:
    """Return tasks with their protocols, and append why classifiers of models are not used."""
    return [
        TaskChoice(
            spec=each.task,
            data=data.source,
            counts=data.counts,
            protocols=[each.choose(cls.name, data.counts) for cls in each.classes],
            outputs=digests_of_outputs(each, data, models, reasons),
        )
        for each, data in opened
    ]
