"""Check a plan before anything is computed, and say what users should know of it."""

from collections.abc import Sequence

from mixmim_bench import facts
from mixmim_bench.errors import BenchError
from mixmim_bench.features import OWN
from mixmim_bench.specs import Weights
from mixmim_bench.suite.plan import ModelChoice, Planned
from mixmim_bench.suite.wanted import Say


def say_same(planned: Sequence[Planned], models: Sequence[ModelChoice], say: Say) -> None:
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


def check_transforms(planned: Sequence[Planned]) -> None:
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


def check_weights(planned: Sequence[Planned]) -> None:
    """Check that weights also fit at the sizes of the runs, on which MixMIM's windows depend."""
    sizes = {}
    for each in planned:
        run = each.run
        if run.model.arch.startswith("mixmim") and run.size != facts.own_size(run.model):
            sizes[run.model.name, run.size] = run
    for run in sizes.values():
        facts.check_weights(run.network, run.weights, run.size)


def check_layers(planned: Sequence[Planned]) -> None:
    """Check that each model has the requested layers."""
    asked = {}
    for each in planned:
        names = each.protocol.frozen_layers()
        if set(names) - {OWN}:
            asked[each.run.model.name, each.run.size, names] = each.run.model
    for (_, size, names), model in asked.items():
        facts.resolve_layers(model, size, names)


def say_preprocessing(planned: Sequence[Planned], say: Say) -> None:
    """Print the preprocessing, since checkpoints do not record it."""
    tasks: dict[tuple[str, str], dict[str, None]] = {}
    for each in planned:
        line = each.run.preprocessing.describe(each.protocol.dense)
        tasks.setdefault((each.run.model.name, line), {})[each.run.task.name] = None
    for (model, line), names in tasks.items():
        say(f"{model} on {', '.join(names)}: {line}")
