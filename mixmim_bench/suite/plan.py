"""From what was resolved to the list of runs; pure, so that a plan can be shown before any work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixmim_bench.protocols import build_protocol, find_protocol, judging, resolve_protocol
from mixmim_bench.specs import ModelSpec, Run, TaskSpec


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """A model with the weights that were found and its own preprocessing."""

    spec: ModelSpec
    weights: Mapping[str, Any]
    preprocessing: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TaskChoice:
    """A task with the data that were found: fingerprint, layout, root, and images a role."""

    spec: TaskSpec
    data: Mapping[str, Any]
    counts: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A run and the images that will pass through its backbone."""

    run: Run
    forward: int
    train: int


def plan(
    models: Sequence[ModelChoice],
    tasks: Sequence[TaskChoice],
    protocols: Sequence[str],
    seeds: Sequence[int],
    preset: str,
    precision: str,
    layers: str = "",
) -> list[Planned]:
    """List the runs, ordered by model, task, protocol and seed, each once.

    So a backbone is built once, and the features of a task are extracted once. Where nothing is random
    all seeds are one run. Raises BenchError for a protocol that does not exist for the kind of a task.
    """
    planned: dict[str, Planned] = {}
    for model in models:
        for task in tasks:
            for protocol in judging(protocols, task.spec.kind)[0]:
                values = resolve_protocol(
                    protocol,
                    task.spec.kind,
                    preset,
                    effective_recipe(task.spec, protocol, layers),
                    random_weights=model.weights["kind"] == "random",
                )
                protocol_here = build_protocol(values, task.spec.kind)
                images = protocol_here.images(task.counts)
                random = protocol_here.stochastic or model.weights["kind"] == "random"
                for seed in seeds if random else [None]:
                    run = Run(
                        model=model.spec,
                        weights=model.weights,
                        preprocessing=_at_size_of(task.spec, model.preprocessing),
                        task=task.spec,
                        data=task.data,
                        protocol=values,
                        seed=seed,
                        precision=precision,
                    )
                    planned.setdefault(run.run_id, Planned(run=run, **images))
    return list(planned.values())


def effective_recipe(task: TaskSpec, protocol: str, layers: str) -> dict[str, Any]:
    """Say what is changed of a protocol: by the task, and by layers that were asked for."""
    recipe = dict(task.recipe.get(protocol, {}))
    default = getattr(find_protocol(protocol, task.kind), "layers", None)
    if layers and default is not None:
        recipe["layers"] = layers if isinstance(default, str) else [layers]
    return recipe


def _at_size_of(task: TaskSpec, preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Use the image size and the crop that the task states, else the model's own."""
    changed = dict(preprocessing)
    if task.image_size:
        changed["size"] = [task.image_size, task.image_size]
    if task.crop_pct:
        changed["crop_pct"] = task.crop_pct
    return changed
