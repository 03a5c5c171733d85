"""Networks of a Python session as architectures of timm, for this process.

A network is identified by its code, its structure and its buffers; its weights are written to the cache
folder and loaded like any checkpoint. So it takes the same way through the suite as a model with a name.
"""

import copy
import hashlib
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from timm.models import register_model
from torch import Tensor, nn

from mixmim_bench.atomic import write_whole
from mixmim_bench.cache import cache_folder
from mixmim_bench.codehash import code_digest
from mixmim_bench.errors import BenchError
from mixmim_bench.specs import OF_SESSION, digest

__all__: list[str] = []  # timm adds the architectures that are registered
default_cfgs: dict[str, dict[str, Any]] = {}
_TEMPLATES: dict[str, "_Template"] = {}
FOLDER = "objects"  # in the cache folder
_TIMM = ("forward_features", "forward_head", "reset_classifier", "num_features")  # timm's interface


class WithHead(nn.Module):
    """Any network that maps images to features, with timm's interface and a linear classifier.

    Features are (B, D); maps (B, D, H, W) and tokens (B, N, D) are averaged.
    """

    def __init__(
        self, body: nn.Module, width: int, head: nn.Module | None = None, num_classes: int = 0
    ) -> None:
        super().__init__()
        self.body = body
        self.num_features = self.head_hidden_size = width
        self.num_classes = num_classes
        self.head: nn.Module = nn.Identity() if head is None else head

    def forward_features(self, images: Tensor) -> Tensor:
        return pooled(self.body(images))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        return features if pre_logits else self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        del global_pool
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()


def pooled(features: Any) -> Tensor:
    """Average maps and tokens; raises BenchError for other outputs."""
    if isinstance(features, Tensor) and features.ndim == 2:
        return features
    if isinstance(features, Tensor) and features.ndim in (3, 4):
        return features.mean(1) if features.ndim == 3 else features.mean((2, 3))
    shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
    raise BenchError(
        f"the network returns {shape}, not features (B, D), maps (B, D, H, W) or tokens (B, N, D); wrap it "
        "in a module whose forward returns one of them"
    )


@dataclass(frozen=True)
class _Template:
    network: Any  # with timm's interface
    sized: bool  # whether it can be told another image size

    def build(self, num_classes: int | None, img_size: tuple[int, int] | None) -> Any:
        """Copy the network, with new weights in a classifier of another size."""
        network = copy.deepcopy(self.network)
        if self.sized and img_size is not None:
            network.set_input_size(img_size=img_size)
        if num_classes is not None and num_classes != network.num_classes:
            network.reset_classifier(num_classes)
        return network


@dataclass(frozen=True)
class Registered:
    """The architecture of a network, its own image size (h, w) if known, and the file of its weights."""

    arch: str
    checkpoint: Path


def register_network(network: nn.Module, name: str, config: Mapping[str, Any], classifier: str) -> Registered:
    """Register a network, and write its weights to the cache folder.

    Args:
        network: with timm's interface, or any module that maps images (B, 3, H, W) to features.
        name: of the model.
        config: its preprocessing, with the keys of timm's; it is tried with images of its `input_size`.
        classifier: the name of the submodule that is its classifier, whose inputs are the features; '' if its
            outputs are the features.

    Raises:
        BenchError: the network does not run on images of that size, or returns no features.
    """
    network = _copied(network, name)
    template = _as_timm(network, name, config["input_size"][-2:], classifier)
    state = {key: value for key, value in template.state_dict().items() if isinstance(value, Tensor)}
    buffers = dict(template.named_buffers())
    loose = {key: value for key, value in buffers.items() if key not in state}
    shapes = [[key, list(value.shape)] for key, value in state.items()]
    about = {key: str(value) for key, value in config.items()}
    key = digest([code_digest(network), classifier, _hash(loose), shapes, about])
    arch = f"{OF_SESSION}{key}"
    sized = hasattr(template, "set_input_size")
    if arch not in _TEMPLATES:
        _register(arch, template, config, sized)
    _TEMPLATES[arch] = _Template(template, sized)
    content = save({name: value.detach().clone().contiguous() for name, value in sorted(state.items())})
    path = cache_folder() / FOLDER / hashlib.sha256(content).hexdigest()[:16] / f"{name}.safetensors"
    if path.is_file():
        path.touch()
    else:
        write_whole(path, content)
    return Registered(arch, path)


def _copied(network: Any, name: str) -> Any:
    """Copy a network to the CPU, in float32 and without what parallelises it."""
    while isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        network = network.module
    try:
        return copy.deepcopy(network).cpu().float().eval()
    except Exception as error:  # locks, tensors of a computation, and so on
        raise BenchError(
            f"{name} cannot be copied ({type(error).__name__}: {error}); build it again without tensors of a "
            "computation, locks or open files in it, and load its weights"
        ) from error


def _as_timm(network: Any, name: str, image_size: tuple[int, int], classifier: str) -> Any:
    if all(hasattr(network, each) for each in _TIMM) and not classifier:
        return network
    head = None
    if classifier:
        try:
            head = network.get_submodule(classifier)
        except AttributeError as error:
            raise BenchError(f"{name}: no submodule {classifier!r}: {error}") from error
        if not isinstance(head, nn.Linear):
            raise BenchError(
                f"{name}: the classifier {classifier!r} is a {type(head).__name__}, not nn.Linear"
            )
        parent, _, leaf = classifier.rpartition(".")
        setattr(network.get_submodule(parent), leaf, nn.Identity())
    try:
        with torch.no_grad():
            width = pooled(network(torch.zeros(2, 3, *image_size))).shape[1]
    except BenchError as error:
        raise BenchError(f"{name}: {error}") from error
    except Exception as error:  # whatever a user's network raises
        height, other = image_size
        raise BenchError(
            f"{name}: it does not run on images (2, 3, {height}, {other}) in float32: "
            f"{type(error).__name__}: {error}"
        ) from error
    if head is not None and head.in_features != width:
        raise BenchError(
            f"{name}: {classifier!r} takes {head.in_features} features, and the rest returns {width}"
        )
    return WithHead(network, width, head, head.out_features if head is not None else 0)


def _register(arch: str, template: Any, config: Mapping[str, Any], sized: bool) -> None:
    own = dict(getattr(template, "pretrained_cfg", None) or {})
    default_cfgs[arch] = {
        **config,
        "classifier": own.get("classifier") or "head",
        "first_conv": own.get("first_conv"),
        "num_classes": template.num_classes,
        "fixed_input_size": sized,
    }

    def build(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        num_classes: int | None = None,
        img_size: tuple[int, int] | None = None,
    ) -> Any:
        del pretrained, pretrained_cfg, pretrained_cfg_overlay, cache_dir
        network = _TEMPLATES[arch].build(num_classes, img_size)
        network.pretrained_cfg = timm.models.get_pretrained_cfg(arch).to_dict()
        return network

    build.__name__ = build.__qualname__ = arch
    build.__module__ = __name__
    register_model(build)


@dataclass(frozen=True)
class SavedWeights:
    """Weights of a network of a Python session in the cache folder."""

    path: Path  # of their folder

    @property
    def key(self) -> str:
        """The key of the weights."""
        return self.path.name

    @property
    def name(self) -> str:
        """The name of the model."""
        return next((file.stem for file in self.path.iterdir()), "")

    def bytes(self) -> int:
        """Return the size on disk."""
        return sum(file.stat().st_size for file in self.path.iterdir())

    def last_used(self) -> datetime:
        """Return when they were used last."""
        return datetime.fromtimestamp(max(file.stat().st_mtime for file in self.path.iterdir()), UTC)

    def remove(self) -> bool:
        """Remove them; the next session that needs them writes them again."""
        shutil.rmtree(self.path)
        return True


def saved_weights() -> list[SavedWeights]:
    """List what is saved of networks of Python sessions."""
    folder = cache_folder() / FOLDER
    return [SavedWeights(each) for each in sorted(folder.glob("*")) if each.is_dir() and any(each.iterdir())]


def is_object(arch: str) -> bool:
    """Return whether an architecture is a network of this process."""
    return arch in _TEMPLATES


def device_to_count(arch: str) -> torch.device:
    """Return where a network is built to be looked at: without memory, but for those of this process.

    Their forward passes may look at values, and they may hold tensors that are no buffers.
    """
    return torch.device("cpu" if is_object(arch) else "meta")


def checkpoint_filter_fn(state: Mapping[str, Tensor], network: Any) -> dict[str, Tensor]:
    """Convert weights to the image size of a network, as the module that it comes from does."""
    module = sys.modules.get(type(network).__module__)
    convert = getattr(module, "checkpoint_filter_fn", None) if module is not sys.modules[__name__] else None
    return dict(convert(state, network)) if convert is not None else dict(state)


def _hash(tensors: Mapping[str, Tensor]) -> str:
    hashed = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        hashed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hashed.update(value.detach().contiguous().numpy().tobytes())
    return hashed.hexdigest()
