"""What is known of a model before any of it is computed: preprocessing, width, GMACs, whether weights fit.

Each is worked out once, on the meta device, and kept (see `kept.py`), so that a plan of finished runs needs
neither torch nor timm.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from mixmim_bench.kept import fact_of
from mixmim_bench.specs import ModelSpec, Preprocessing, Weights, restored

Size = tuple[int, int]  # h, w


def preprocessing(model: ModelSpec) -> Preprocessing:
    """Return the preprocessing of a model's timm configuration; raises BenchError."""

    def look_up() -> dict[str, Any]:
        from mixmim_bench.models.build import preprocessing

        return dataclasses.asdict(preprocessing(model))

    return restored(Preprocessing, fact_of(model.arch, "preprocessing", look_up, model.kwargs))


def own_size(model: ModelSpec) -> Size:
    """Return the image size (h, w) that a model is made for."""
    return preprocessing(model).size


def feature_width(model: ModelSpec) -> int:
    """Return how many numbers an image becomes in the layer that the model's own head reads."""

    def measure() -> int:
        from mixmim_bench.models.build import feature_width

        return feature_width(model)

    return fact_of(model.arch, "width", measure, model.kwargs)


def count_gmacs(model: ModelSpec, size: Size) -> float:
    """Count the GMACs of one image; raises BenchError for a size that the model cannot take."""

    def count() -> float:
        from mixmim_bench.cost import count_on_meta

        return count_on_meta(model, size).total / 1e9

    return fact_of(model.arch, "gmacs", count, model.kwargs, *size)


def check_weights(model: ModelSpec, weights: Weights, size: Size | None = None) -> None:
    """See that weights fit a model, by default at its own size; raises BenchError."""
    if weights.kind != "file":
        return

    def check() -> bool:
        from mixmim_bench.models.build import check_weights

        check_weights(model, weights, size)
        return True

    fact_of(model.arch, "weights", check, model.kwargs, weights.sha256, size)


def check_layers(model: ModelSpec, size: Size, layers: Sequence[str]) -> None:
    """See that layers of a model can be read; raises BenchError, which names the nearest ones."""

    def check() -> bool:
        from mixmim_bench.features.check import check_layers

        check_layers(model, size, layers)
        return True

    fact_of(model.arch, "layers", check, model.kwargs, *size, *layers)
