"""Backbones as runs describe them: preprocessing, and networks with their weights."""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import nn

from mixmim_bench.errors import BenchError
from mixmim_bench.models.checkpoints import checked_state, load_weights
from mixmim_bench.specs import ModelSpec


def own_size(model: ModelSpec) -> tuple[int, int]:
    """Return the image size (h, w) that a model is made for."""
    height, width = _config(model)["input_size"][-2:]
    return height, width


def _config(model: ModelSpec) -> dict[str, Any]:
    return resolve_data_config({}, pretrained_cfg=_timm_config(model))


def _timm_config(model: ModelSpec) -> dict[str, Any]:
    config = timm.models.get_pretrained_cfg(model.arch)
    if config is None:
        raise BenchError(f"timm has no configuration for {model.arch!r}")
    return config.to_dict()


def preprocessing(model: ModelSpec, image_size: int = 0, crop_pct: float = 0.0) -> dict[str, Any]:
    """Describe how images are made ready: the model's own way, at another size if one is given."""
    config = _config(model)
    size = (image_size, image_size) if image_size else own_size(model)
    return {
        "size": list(size),
        "crop_pct": crop_pct or config["crop_pct"],
        "interpolation": config["interpolation"],
        "mean": list(config["mean"]),
        "std": list(config["std"]),
    }


def create(model: ModelSpec, image_size: tuple[int, int], num_classes: int = 0, **kwargs: Any) -> nn.Module:
    """Make the network for an image size, with whatever weights torch's generator draws.

    Without classes its output is the pooled features. Raises BenchError for a size it cannot take.
    """
    arguments = {**model.kwargs, "num_classes": num_classes, **kwargs}
    if _timm_config(model).get("fixed_input_size"):
        arguments["img_size"] = tuple(image_size)
    try:
        return timm.create_model(model.arch, pretrained=False, **arguments)
    except (ValueError, AssertionError, TypeError, RuntimeError) as error:
        raise BenchError(
            f"{model.name} cannot be built for images of {image_size[0]} x {image_size[1]} pixels: {error}"
        ) from error


def check_weights(model: ModelSpec, weights: Mapping[str, Any]) -> None:
    """See that a checkpoint fits a model, without building the model; raises BenchError."""
    if weights["kind"] == "file":
        with torch.device("meta"):
            network = create(model, own_size(model))
        checked_state(network, weights["path"], model.arch)


def build(
    model: ModelSpec,
    weights: Mapping[str, Any],
    image_size: tuple[int, int],
    seed: int,
    num_classes: int = 0,
    **kwargs: Any,
) -> nn.Module:
    """Make a backbone with its weights; what is drawn at random comes from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = create(model, image_size, num_classes, **kwargs)
    if weights["kind"] == "file":
        load_weights(network, weights["path"], model.arch)
    return network
