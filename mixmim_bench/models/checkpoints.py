"""Weights: where they are, what they are, and loading them with a check of every key."""

import hashlib
import pickle
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from mixmim_bench.cache import cache_folder
from mixmim_bench.errors import BenchError, MissingWeights
from mixmim_bench.models.formats import read_state_dict
from mixmim_bench.specs import ModelSpec, WeightsSpec

HUB_TIMEOUT_S = 5.0

RANDOM = {"kind": "random", "name": "random init", "sha256": ""}


def weights_folder() -> Path:
    """Return the folder where checkpoints are looked for."""
    return cache_folder() / "weights"


def is_present(weights: WeightsSpec) -> bool:
    """Whether the file of a published checkpoint is on this machine."""
    return (weights_folder() / weights.file).is_file()


def resolve_weights(model: ModelSpec, choice: str) -> dict[str, Any]:
    """Find the weights: 'random', the path of a file, or 'auto' for the registered ones.

    Raises MissingWeights, which says what to put where, if 'auto' finds none.
    """
    if choice == "random":
        return dict(RANDOM)
    if choice == "auto":
        return _registered(model)
    path = Path(choice).expanduser()
    if not path.is_file():
        raise BenchError(f"--weights {choice}: there is no such file (or say 'auto' or 'random')")
    return _described(path, path.name)


def _described(path: Path, name: str) -> dict[str, Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"kind": "file", "name": name, "sha256": sha256, "path": str(path)}


def _registered(model: ModelSpec) -> dict[str, Any]:
    """Take the first registered checkpoint that is here, or the one that timm would load."""
    for weights in model.weights:
        if is_present(weights):
            found = _described(weights_folder() / weights.file, weights.name)
            if not found["sha256"].startswith(weights.sha256):
                raise BenchError(
                    f"{found['path']} is not {weights.name}: its SHA-256 starts with "
                    f"{found['sha256'][:8]}, not {weights.sha256}; remove the file"
                )
            return found
    hub = _from_hub(model)
    if hub is not None:
        return hub
    raise MissingWeights(_how_to_get(model))


def _from_hub(model: ModelSpec) -> dict[str, Any] | None:
    """Find the file that timm would load from the Hugging Face hub, downloading it if it can."""
    config = timm.models.get_pretrained_cfg(model.arch)
    if config is None or not config.hf_hub_id:
        return None
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    names = ("model.safetensors", "pytorch_model.bin")
    for name in names:
        path = try_to_load_from_cache(config.hf_hub_id, name)
        if isinstance(path, str):
            return _described(Path(path), f"hf-hub:{config.hf_hub_id}")
    if not _hub_answers():
        return None
    for name in names:
        try:
            path = hf_hub_download(config.hf_hub_id, name)
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
            continue
        return _described(Path(path), f"hf-hub:{config.hf_hub_id}")
    return None


def _hub_answers() -> bool:
    """Whether the hub can be reached; the hub's own client would try for most of a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except Exception:  # its HTTP library's errors differ between versions
        return False
    return True


def _how_to_get(model: ModelSpec) -> str:
    ways = [
        f"put {w.url} (SHA-256 {w.sha256}…) at {weights_folder() / w.file}" for w in model.weights if w.url
    ]
    config = timm.models.get_pretrained_cfg(model.arch)
    if config is not None and config.hf_hub_id:
        ways.append(f"download {config.hf_hub_id} from the Hugging Face hub while online")
    ways.append("give a checkpoint with --weights PATH")
    ways.append("or take random weights on purpose with --weights random")
    return f"{model.name}: no pretrained weights on this machine: " + "; ".join(ways)


# -- loading ---------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> Mapping[str, Any]:
    """Read a checkpoint file without running code from it; raises BenchError."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        raise BenchError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(found, Mapping):
        raise BenchError(f"{path} holds a {type(found).__name__}, not named tensors")
    return found


def load_weights(network: nn.Module, path: str | Path, arch: str) -> None:
    """Load a checkpoint into a network; only the classifier may be absent or of another size.

    Raises BenchError that lists what is missing, left over or of another shape.
    """
    network.load_state_dict(checked_state(network, path, arch), strict=False)


def checked_state(network: nn.Module, path: str | Path, arch: str) -> dict[str, torch.Tensor]:
    """Read what a checkpoint holds for a network (which may be on the meta device); see load_weights."""
    state = fit_state(network, read_checkpoint(path), arch)
    own = network.state_dict()
    head = _classifier_keys(network)
    wanted = {key for key in own if key not in head or _same_shape(state, own, key)}
    state = {key: value for key, value in state.items() if key in wanted or key not in head}
    missing = sorted(wanted - set(state))
    unexpected = sorted(set(state) - set(own))
    misshapen = sorted(k for k in wanted & set(state) if state[k].shape != own[k].shape)
    if missing or unexpected or misshapen:
        raise BenchError(
            f"{path} does not fit {arch}: {_list('missing', missing)}"
            f"{_list('unexpected', unexpected)}{_list('of another shape', misshapen)}"
        )
    return state


def fit_state(network: nn.Module, checkpoint: Mapping[str, Any], arch: str) -> dict[str, torch.Tensor]:
    """Bring a checkpoint to the names and sizes of a network, by the filter of its timm module."""
    module = __import__(timm.models.model_entrypoint(arch).__module__, fromlist=["_"])
    filter_fn = getattr(module, "checkpoint_filter_fn", None)
    state = read_state_dict(checkpoint)
    return dict(filter_fn(state, network)) if filter_fn else state


def _classifier_keys(network: nn.Module) -> set[str]:
    """Name the tensors of the classifier, also of one that was removed from the network."""
    names = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    names = (names,) if isinstance(names, str) else names
    return {f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")}


def _same_shape(state: Mapping[str, Any], own: Mapping[str, Any], key: str) -> bool:
    return key in state and state[key].shape == own[key].shape


def _list(what: str, keys: list[str]) -> str:
    if not keys:
        return ""
    return f"{len(keys)} {what} ({', '.join(keys[:4])}{', …' if len(keys) > 4 else ''}) "
