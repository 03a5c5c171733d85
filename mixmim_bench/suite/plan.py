"""Turn resolved models, tasks and protocols into the list of runs. Pure."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixmim_bench import facts
from mixmim_bench.errors import BenchError
from mixmim_bench.hyperparameters import check_values
from mixmim_bench.protocols import all_presets, find_protocol, resolve_protocol
from mixmim_bench.protocols.contract import Protocol, Workload
from mixmim_bench.specs import AUTO, DataSource, ModelSpec, Preprocessing, Run, TaskSpec, Weights


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """A model with its weights and preprocessing."""

    spec: ModelSpec
    weights: Weights
    preprocessing: Preprocessing
    classifier: "Classifier | None" = None  # for protocols that use it


@dataclass(frozen=True)
class Classifier:
    """Weights with a classifier, and the number of its classes."""

    weights: Weights
    classes: int


@dataclass(frozen=True)
class ProtocolChoice:
    """A protocol for a task, whose hyper-parameters may depend on whether weights are random."""

    resolve: Callable[[bool], Protocol]

    def for_model(self, model: ModelChoice) -> Protocol:
        """Return the protocol for a model; raises BenchError."""
        return self.resolve(model.weights.random)


def choose_protocol(
    task: TaskSpec,
    name: str,
    preset: str,
    layers: str = "",
    changes: Mapping[str, Any] | None = None,
    counts: Mapping[str, int] | None = None,
) -> ProtocolChoice:
    """Choose a protocol for a task; raises BenchError for a hyper-parameter or preset that does not exist.

    Args:
        task: may change hyper-parameters itself.
        name: of the protocol.
        preset: a name, or 'auto'.
        layers: overrides the layers of protocols that use frozen features.
        changes: hyper-parameters that the user changes.
        counts: images per role, by which 'auto' chooses a preset.
    """
    recipe = {**task.recipe.get(name, {}), **(changes or {})}
    cls = find_protocol(name, task.kind)
    if layers:
        recipe |= cls.reading(layers)
    check_values(cls, recipe)
    if preset not in (AUTO, *all_presets()):
        resolve_protocol(name, task.kind, preset, recipe, random_weights=False)
    return ProtocolChoice(lambda random: resolve_protocol(name, task.kind, preset, recipe, random, counts))


@dataclass(frozen=True, kw_only=True)
class TaskChoice:
    """A task with its data, the number of images per role, and its protocols.

    Protocols of other roles are those of another choice of the same task. `outputs` holds, for each model, a
    digest of the outputs of its classifier that are the classes of the task; '' if it is of other classes.
    """

    spec: TaskSpec
    data: DataSource
    counts: Mapping[str, int]
    protocols: Sequence[ProtocolChoice]
    outputs: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A run, its protocol, and the number of images that pass through the backbone."""

    run: Run
    protocol: Protocol
    work: Workload


def plan(
    models: Sequence[ModelChoice], tasks: Sequence[TaskChoice], seeds: Sequence[int], precision: str
) -> list[Planned]:
    """List the runs without duplicates, ordered by model, task, protocol and seed.

    So each backbone is built once, and the features of a task are extracted once. Deterministic runs ignore
    the seeds.
    """
    planned = []
    for place, model in enumerate(models):
        for task in tasks:
            for choice in task.protocols:
                protocol = choice.for_model(model)
                weights, classes, outputs = model.weights, 0, ""
                if protocol.uses_classifier:
                    if model.classifier is None or not task.outputs[place]:
                        continue
                    weights, classes = model.classifier.weights, model.classifier.classes
                    outputs = task.outputs[place]
                random = protocol.stochastic or weights.random
                for seed in seeds if random else [None]:
                    run = Run(
                        model=model.spec,
                        weights=weights,
                        preprocessing=_preprocessing(model, task.spec, protocol),
                        task=task.spec,
                        data=task.data,
                        protocol=protocol.to_dict(),
                        seed=seed,
                        precision=precision,
                        classes=classes,
                        outputs=outputs,
                    )
                    if protocol.dense:
                        run = _as_pyramid(run)
                    work = protocol.images(task.counts)
                    planned.append(Planned(run=run, protocol=protocol, work=work))
    return unique(planned)


def unique(planned: Sequence[Planned]) -> list[Planned]:
    """Return the runs without duplicates, each at its first place."""
    found: dict[str, Planned] = {}
    for each in planned:
        found.setdefault(each.run.run_id, each)
    return list(found.values())


def _as_pyramid(run: Run) -> Run:
    """Return a run of a dense task with what its network needs; unchanged if that has no pyramid.

    Such a run fails when it is done, and the others go on.
    """
    try:
        arguments, computes = facts.as_pyramid(run.model, run.size)
    except BenchError:
        return run
    return dataclasses.replace(run, arguments=arguments, computes=computes)


def _preprocessing(model: ModelChoice, task: TaskSpec, protocol: Protocol) -> Preprocessing:
    """Return the preprocessing of a run.

    Image size and crop are those of the protocol, else those that the user gave the model, else those of the
    task, else those of the architecture.
    """
    own, given = model.preprocessing, model.spec.preprocessing
    side = protocol.input_size() or (0 if "size" in given else task.image_size)
    return dataclasses.replace(
        own,
        size=(side, side) if side else own.size,
        crop_pct=own.crop_pct if "crop_pct" in given else task.crop_pct or own.crop_pct,
        noise=task.noise,
        resize="" if protocol.dense else own.resize,  # dense transforms resize with Pillow
    )
