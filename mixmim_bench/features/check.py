"""Resolve and check the layers of a model on the meta device, without compute."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from mixmim_bench.errors import BenchError
from mixmim_bench.features.layers import Taps, choose_layers
from mixmim_bench.models.build import create
from mixmim_bench.models.objects import device_to_count
from mixmim_bench.specs import ModelSpec


def resolve_layers(model: ModelSpec, image_size: tuple[int, int], layers: Sequence[str]) -> list[str]:
    """Resolve layers, or 'auto', to the layers of a model.

    Raises BenchError for a layer that the model does not have; it suggests similar names.
    """
    with device_to_count(model.arch):
        network = create(model, image_size).eval()
        try:
            names = [name for layer in layers for name in choose_layers(network, layer)]
        except BenchError as error:
            raise BenchError(f"{model.name}: {error}") from error
        try:
            Taps(network).read(torch.empty(2, 3, *image_size), names, nullcontext())
        except (ValueError, TypeError, RuntimeError, IndexError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BenchError(f"{model.name}: {', '.join(names)} cannot be read: {reason}") from error
    return names
