"""Backbones as runs describe them: preprocessing, and networks with their weights."""

import warnings
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import nn

from mixmim_bench.errors import BenchError
from mixmim_bench.models.checkpoints import checked_state, classes_in, load_weights
from mixmim_bench.specs import ModelSpec, Preprocessing, Weights


def _timm_config(model: ModelSpec) -> dict[str, Any]:
    config = timm.models.get_pretrained_cfg(model.arch)
    if config is None:
        raise BenchError(f"timm has no configuration for {model.arch!r}")
    return config.to_dict()


def preprocessing(model: ModelSpec) -> Preprocessing:
    """Return the preprocessing of a model's timm configuration."""
    config = resolve_data_config({}, pretrained_cfg=_timm_config(model))
    height, width = config["input_size"][-2:]
    return Preprocessing(
        size=(height, width),
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def own_size(model: ModelSpec) -> tuple[int, int]:
    """Return the image size (h, w) that a model is made for."""
    return preprocessing(model).size


def own_classes(model: ModelSpec) -> int:
    """Return the number of classes of the classifier that a model comes with."""
    return _timm_config(model).get("num_classes") or 0


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
        raise _cannot("built", model, image_size, error) from error


def feature_width(model: ModelSpec) -> int:
    """Return how many numbers an image becomes in the layer that the model's own head reads."""
    with torch.device("meta"):
        network: Any = create(model, own_size(model))
    return int(network.num_features)


def try_out(model: ModelSpec, image_size: tuple[int, int]) -> None:
    """See that a model can be built for an image size and takes such an image; costs no computing.

    Raises BenchError.
    """
    with torch.device("meta"):
        network: Any = create(model, image_size).eval()
        try:
            network.forward_head(network.forward_features(torch.empty(2, 3, *image_size)), pre_logits=True)
        except (ValueError, AssertionError, TypeError, RuntimeError, IndexError, AttributeError) as error:
            raise _cannot("run", model, image_size, error) from error


def _cannot(what: str, model: ModelSpec, size: tuple[int, int], error: Exception) -> BenchError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return BenchError(f"{model.name} cannot be {what} for images of {size[0]} x {size[1]} pixels: {reason}")


def classes_of(model: ModelSpec, weights: Weights) -> int:
    """Count the classes of the classifier that weights hold, 0 if they have none."""
    if weights.kind != "file":
        return own_classes(model)
    with torch.device("meta"):
        network = create(model, own_size(model))
    return classes_in(network, weights.path, model.arch)


def check_weights(model: ModelSpec, weights: Weights, image_size: tuple[int, int] | None = None) -> None:
    """See that a checkpoint fits a model, by default at its own size, without building it.

    Raises BenchError.
    """
    if weights.kind == "file":
        with torch.device("meta"):
            network = create(model, image_size or own_size(model))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # they are notes of what uses the weights
            checked_state(network, weights.path, model.arch)


def build(
    model: ModelSpec,
    weights: Weights,
    image_size: tuple[int, int],
    seed: int,
    num_classes: int = 0,
    notes: list[str] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Make a backbone with its weights; what is drawn at random comes from `seed` alone.

    `notes` is told what the weights did not fill.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = create(model, image_size, num_classes, **kwargs)
    if weights.kind == "file":
        unfilled = load_weights(network, weights.path, model.arch)
        if notes is not None:
            notes += unfilled
    return network
