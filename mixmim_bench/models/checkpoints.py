"""Read checkpoints without running code from them, and load them with a check of every key."""

import json
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from mixmim_bench.errors import BenchError
from mixmim_bench.models.formats import in_our_names, read_state_dict, without_prefix


def read_checkpoint(path: str | Path) -> Mapping[str, Any]:
    """Read a checkpoint file, in any format and without running code from it; raises BenchError."""
    path = Path(path)
    try:
        if _is_safetensors(path):
            return {**load_file(path), **_settings_of(path)}
        with torch.serialization.safe_globals([Namespace]), path.open("rb") as file:
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files fail in many ways, down to KeyError
        raise BenchError(f"{path} cannot be read as a checkpoint: {_why(path, error)}") from error
    if not isinstance(checkpoint, Mapping):
        raise BenchError(f"{path} holds a {type(checkpoint).__name__}, not named tensors")
    return checkpoint


def _settings_of(path: Path) -> dict[str, Any]:
    """Return the settings of a pretraining from the metadata of a safetensors file, if it has them."""
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("settings", "")
    with suppress(ValueError):  # of another program
        settings = json.loads(text)
        return {"settings": settings} if isinstance(settings, dict) else {}
    return {}


def _is_safetensors(path: Path) -> bool:
    """Whether a file starts with the length of a JSON header and the header itself."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _why(path: Path, error: Exception) -> str:
    """Explain why a file cannot be read as a checkpoint, and how to fix it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "it is empty"
    if start.lstrip().startswith(b"<"):
        return "it is a web page; download the file itself"
    refused = _REFUSED.search(str(error))
    if refused:
        return (
            f"it contains an object of type {refused[1]}, and code in a checkpoint is never run. If you "
            "trust it, save its tensors alone: torch.save(checkpoint['state_dict'], PATH), or use safetensors"
        )
    if all(byte >= 32 or byte in b"\t\n\r\f" for byte in start):
        return "it is a text file, not named tensors"
    if isinstance(error, EOFError) or (start[:2] == b"PK" and not zipfile.is_zipfile(path)):
        return "it is truncated; download it again"
    if start[:1] != b"\x80" and start[:2] != b"PK" and not _is_safetensors(path):
        return "it is neither a torch.save nor a safetensors file"
    if "weights_only" in str(error):
        return "it contains more than named tensors and plain values, and code in a checkpoint is never run"
    return next(iter(str(error).splitlines()), "") or type(error).__name__


# torch's message for a class that it does not load
_REFUSED = re.compile(r"GLOBAL ([\w.]+) was not an allowed")


def load_weights(network: nn.Module, path: str | Path, arch: str) -> list[str]:
    """Load a checkpoint into a network and return notes on it; see `state_with_notes`."""
    state, notes = state_with_notes(network, path, arch)
    network.load_state_dict(state, strict=False)
    return notes


def state_with_notes(
    network: nn.Module, path: str | Path, arch: str
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Read a checkpoint for a network, which may be on the meta device.

    Only the classifier may be missing or have another size.

    Returns:
        The tensors, and notes on what the checkpoint does not fill and on tensors interpolated to sizes that
        the weights were not trained for.

    Raises:
        BenchError: tensors are missing, unexpected or of another shape; the message lists them.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        state = _checked_state(network, path, arch)
    notes = [str(warning.message) for warning in caught if warning.category is UserWarning]
    unfilled = sorted(_classifier_keys(network) & set(network.state_dict()) - set(state))
    if unfilled:
        notes.append(
            f"{Path(path).name} has no classifier for this network; newly initialised: {', '.join(unfilled)}"
        )
    return state, notes


def _checked_state(network: nn.Module, path: str | Path, arch: str) -> dict[str, torch.Tensor]:
    checkpoint = read_checkpoint(path)
    try:
        state = fit_state(network, checkpoint, arch)
    except BenchError as error:
        raise BenchError(f"{path} does not fit {arch}: {error}") from error
    own = network.state_dict()
    # batch counters are not weights, and old checkpoints do not have them
    own = {key: value for key, value in own.items() if not key.endswith("num_batches_tracked")}
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    head = _classifier_keys(network)
    body = set(state) - head
    if set(own) != body:
        head |= _head_keys(arch)
    # a classifier is loaded whole or not at all: another size is skipped, a missing bias is an error
    fitting = {key.rpartition(".")[0] for key in head & set(own) if _same_shape(state, own, key)}
    fitting -= {
        key.rpartition(".")[0] for key in head & set(own) & set(state) if not _same_shape(state, own, key)
    }
    wanted = {key for key in own if key not in head or key.rpartition(".")[0] in fitting}
    state = {key: value for key, value in state.items() if key in wanted or key not in head}
    missing = sorted(wanted - set(state))
    unexpected = sorted(set(state) - set(own))
    misshapen = sorted(k for k in wanted & set(state) if state[k].shape != own[k].shape)
    if missing or unexpected or misshapen:
        raise BenchError(
            f"{path} does not fit {arch}:{_list('missing', missing)}"
            f"{_list('unexpected', unexpected)}{_list('of another shape', misshapen)}"
            f"{_made_for(checkpoint, arch) or _copy_of_another_library(state, own)}"
        )
    mistyped = sorted(
        f"{key} {str(state[key].dtype).removeprefix('torch.')}"
        for key in state
        if state[key].is_floating_point() != own[key].is_floating_point()
    )
    if mistyped:
        raise BenchError(f"{path} does not fit {arch}:{_list('of another type', mistyped)}")
    non_finite = sorted(
        k for k, v in state.items() if v.is_floating_point() and not v.is_meta and not v.isfinite().all()
    )
    if non_finite:
        raise BenchError(f"{path} holds non-finite values:{_list('tensors', non_finite)}")
    return state


def classes_in(network: nn.Module, path: str | Path, arch: str) -> int:
    """Return the number of classes of a checkpoint's classifier, 0 if it has none; raises BenchError."""
    state = fit_state(network, read_checkpoint(path), arch)
    weights = [key for key in _classifier_keys(network) if key.endswith(".weight")]
    return next((len(state[key]) for key in weights if key in state), 0)


def _made_for(checkpoint: Mapping[str, Any], arch: str) -> str:
    """Name the registered network that a checkpoint fits, if it is not this one."""
    state = in_our_names(read_state_dict(checkpoint))
    for other in timm.list_models("mixmim_*"):
        with torch.device("meta"):
            own = timm.create_model(other, num_classes=0).state_dict()
        if other != arch and all(key in state and state[key].shape == own[key].shape for key in own):
            return f"; these are weights of {other}"
    return ""


def _copy_of_another_library(state: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Explain that only the names differ, if the tensors have the same shapes in the same order."""
    shapes = [[value.shape for value in tensors.values()] for tensors in (state, own)]
    if set(state) & set(own) or shapes[0][: len(shapes[1])] != shapes[1]:
        return ""
    return (
        "; its order and shapes match another library's copy of this network: rename its tensors to timm's "
        f"names, such as {next(iter(state))} to {next(iter(own))}"
    )


def fit_state(network: nn.Module, checkpoint: Mapping[str, Any], arch: str) -> dict[str, torch.Tensor]:
    """Convert a checkpoint to the names and sizes of a network, with the filter of its timm module."""
    module = __import__(timm.models.model_entrypoint(arch).__module__, fromlist=["_"])
    filter_fn = getattr(module, "checkpoint_filter_fn", None)
    own = [name for name, _ in network.named_parameters() if name not in _classifier_keys(network)]
    state = without_prefix(read_state_dict(checkpoint), own)
    return dict(filter_fn(state, network)) if filter_fn else state


def _classifier_keys(network: nn.Module) -> set[str]:
    """Return the names of the classifier's tensors, even if it was removed from the network."""
    names = getattr(network, "pretrained_cfg", {}).get("classifier") or ()
    names = (names,) if isinstance(names, str) else names
    return {f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")}


def _head_keys(arch: str) -> set[str]:
    """Return the tensors an architecture has only with a classifier; some heads are more than one layer."""
    with torch.device("meta"):
        whole, bare = timm.create_model(arch), timm.create_model(arch, num_classes=0)
    return set(whole.state_dict()) - set(bare.state_dict())


def _same_shape(state: Mapping[str, Any], own: Mapping[str, Any], key: str) -> bool:
    return key in state and state[key].shape == own[key].shape


def _list(what: str, keys: list[str]) -> str:
    if not keys:
        return ""
    return f" {len(keys)} {what} ({', '.join(keys[:4])}{', …' if len(keys) > 4 else ''})"
