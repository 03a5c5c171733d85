"""Facts about a model known without running it: preprocessing, width, GMACs, whether weights fit.

Each is computed once, on the meta device, and cached (see `factcache.py`), so that planning finished runs
imports neither torch nor timm.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from mixmim_bench.factcache import fact_of
from mixmim_bench.features import OWN
from mixmim_bench.specs import ModelSpec, Preprocessing, Weights, restored

Size = tuple[int, int]  # h, w


def _about(model: ModelSpec) -> list[Any]:
    """Return what facts depend on besides the architecture, with the model's own image size."""
    return [model.kwargs, *([model.preprocessing] if model.preprocessing else [])]


def preprocessing(model: ModelSpec) -> Preprocessing:
    """Return the preprocessing of a model; raises BenchError."""

    def look_up() -> dict[str, Any]:
        from mixmim_bench.models.build import preprocessing

        return dataclasses.asdict(preprocessing(model))

    return restored(Preprocessing, fact_of(model.arch, "preprocessing", look_up, *_about(model)))


def own_size(model: ModelSpec) -> Size:
    """Return the default image size (h, w) of a model."""
    return preprocessing(model).size


def feature_width(model: ModelSpec) -> int:
    """Return the feature width of the layer that the model's own head reads."""

    def measure() -> int:
        from mixmim_bench.models.build import feature_width

        return feature_width(model)

    return fact_of(model.arch, "width", measure, *_about(model))


def count_parameters(model: ModelSpec) -> int:
    """Count the parameters of a model at its own size, with its classifier."""

    def count() -> int:
        from mixmim_bench.counting import count_parameters

        return count_parameters(model)

    return fact_of(model.arch, "parameters", count, *_about(model))


def count_gmacs(model: ModelSpec, size: Size) -> float:
    """Count the GMACs of one image; raises BenchError for a size the model does not support."""

    def count() -> float:
        from mixmim_bench.counting import count_on_meta

        return count_on_meta(model, size).total / 1e9

    return fact_of(model.arch, "gmacs", count, model.kwargs, *size)


def as_pyramid(model: ModelSpec, size: Size) -> tuple[dict[str, Any], Size]:
    """Return the keyword arguments by which a network takes images of any size, and the size it computes.

    Raises BenchError for networks that yield no feature maps.
    """

    def find() -> list[Any]:
        from mixmim_bench.models.pyramid import dense_arguments, size_computed

        arguments = dense_arguments(model)
        return [arguments, *size_computed(model, size, arguments)]

    arguments, height, width = fact_of(model.arch, "as a pyramid", find, model.kwargs, *size)
    return arguments, (height, width)


def check_weights(model: ModelSpec, weights: Weights, size: Size | None = None) -> list[str]:
    """Check that weights fit a model, by default at its own size, and return notes on them.

    Raises BenchError.
    """
    if weights.kind != "file":
        return []

    def check() -> list[str]:
        from mixmim_bench.models.build import check_weights

        return check_weights(model, weights, size)

    return fact_of(model.arch, "notes on weights", check, *_about(model), weights.sha256, size)


def classes_of(model: ModelSpec, weights: Weights) -> int:
    """Return the number of classes of the classifier in weights, 0 if they have none; raises BenchError."""

    def look() -> int:
        from mixmim_bench.models.build import classes_of

        return classes_of(model, weights)

    return fact_of(model.arch, "classes of weights", look, *_about(model), weights.kind, weights.sha256)


def resolve_layers(model: ModelSpec, size: Size, layers: Sequence[str]) -> list[str]:
    """Resolve layers, or 'auto', to the layers of a model; raises BenchError with similar names."""
    if list(layers) == [OWN]:  # every model has it
        return [OWN]

    def resolve() -> list[str]:
        from mixmim_bench.features.check import resolve_layers

        return resolve_layers(model, size, layers)

    return fact_of(model.arch, "resolved layers", resolve, model.kwargs, *size, *layers)
