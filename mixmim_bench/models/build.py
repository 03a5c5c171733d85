"""Build backbones from their specs: preprocessing, networks and weights."""

from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import nn

from mixmim_bench.errors import BenchError
from mixmim_bench.models.checkpoints import classes_in, load_weights, state_with_notes
from mixmim_bench.models.objects import device_to_count
from mixmim_bench.specs import ModelSpec, Preprocessing, Weights, restored


def timm_config(model: ModelSpec) -> dict[str, Any]:
    """Return timm's configuration of an architecture; raises BenchError."""
    config = timm.models.get_pretrained_cfg(model.arch)
    if config is None:
        raise BenchError(f"timm has no configuration for {model.arch!r}")
    return config.to_dict()


def preprocessing(model: ModelSpec) -> Preprocessing:
    """Return the preprocessing of a model: its own, else that of its timm configuration."""
    config = resolve_data_config({}, pretrained_cfg=timm_config(model))
    height, width = config["input_size"][-2:]
    own = {
        "size": [height, width],
        **{key: config[key] for key in ("crop_pct", "crop_mode", "interpolation", "mean", "std")},
    }
    return restored(Preprocessing, {**own, **model.preprocessing})


def own_size(model: ModelSpec) -> tuple[int, int]:
    """Return the default image size (h, w) of a model."""
    return preprocessing(model).size


def own_classes(model: ModelSpec) -> int:
    """Return the number of classes of a model's default classifier."""
    return timm_config(model).get("num_classes") or 0


def create(model: ModelSpec, image_size: tuple[int, int], num_classes: int = 0, **kwargs: Any) -> nn.Module:
    """Create the network for an image size, with random weights from torch's generator.

    With 0 classes it outputs the pooled features. Networks that are told to accept images of any size are
    created at their own. Raises BenchError for an unsupported size.
    """
    arguments = {**model.kwargs, "num_classes": num_classes, **kwargs}
    any_size = arguments.get("dynamic_img_size") or arguments.get("strict_img_size") is False
    if timm_config(model).get("fixed_input_size") and not any_size:
        arguments["img_size"] = tuple(image_size)
    try:
        return timm.create_model(model.arch, pretrained=False, **arguments)
    except (ValueError, AssertionError, TypeError, RuntimeError) as error:
        raise _cannot("built", model, image_size, error) from error


def feature_width(model: ModelSpec) -> int:
    """Return the feature width of the layer that the model's own head reads."""
    with device_to_count(model.arch):
        network: Any = create(model, own_size(model))
    return int(network.num_features)


def try_out(model: ModelSpec, image_size: tuple[int, int]) -> None:
    """Check that a model can be built and run for an image size, on the meta device; raises BenchError."""
    with device_to_count(model.arch):
        network: Any = create(model, image_size).eval()
        try:
            network.forward_head(network.forward_features(torch.empty(2, 3, *image_size)), pre_logits=True)
        except (ValueError, AssertionError, TypeError, RuntimeError, IndexError, AttributeError) as error:
            raise _cannot("run", model, image_size, error) from error


def _cannot(what: str, model: ModelSpec, size: tuple[int, int], error: Exception) -> BenchError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return BenchError(f"{model.name} cannot be {what} for images of {size[0]} x {size[1]} pixels: {reason}")


def classes_of(model: ModelSpec, weights: Weights) -> int:
    """Return the number of classes of the classifier in weights, 0 if they have none."""
    if weights.kind != "file":
        return own_classes(model)
    with device_to_count(model.arch):
        network = create(model, own_size(model))
    return classes_in(network, weights.path, model.arch)


def check_weights(model: ModelSpec, weights: Weights, image_size: tuple[int, int] | None = None) -> list[str]:
    """Check that a checkpoint fits a model, by default at its own size, and return notes on it.

    The network is built on the meta device only. Raises BenchError.
    """
    if weights.kind != "file":
        return []
    with device_to_count(model.arch):
        network = create(model, image_size or own_size(model))
    return state_with_notes(network, weights.path, model.arch)[1]


def build(
    model: ModelSpec,
    weights: Weights,
    image_size: tuple[int, int],
    seed: int,
    num_classes: int = 0,
    notes: list[str] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a backbone with its weights; all randomness comes from `seed`.

    Notes about parameters that the weights did not fill are appended to `notes`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = create(model, image_size, num_classes, **kwargs)
    if weights.kind == "file":
        unfilled = load_weights(network, weights.path, model.arch)
        if notes is not None:
            notes += unfilled
    return network
