"""Published checkpoint formats, recognised by their keys and converted to our names.

Our names are those of the released fine-tuned checkpoints. OpenMMLab's differ, and its patch merging
concatenates the four neighbours of a token in another order, so those weights are permuted.
"""

import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mixmim_bench.errors import BenchError, a_few
from mixmim_bench.models.attention import resize_bias_table
from mixmim_bench.models.positions import resize_positions

_WRAPPERS = ("state_dict", "model", "module", "state_dict_ema", "model_ema", "ema_state_dict")
_PREFIXES = ("module.", "model.", "_orig_mod.", "ema_model.")
_COUNTERS = ("n_averaged", "steps")  # stored with the weights of averaged models

_OPENMMLAB_NAMES = (
    (r"^neck\.ln1\.", "decoder_norm."),
    (r"^(backbone|neck)\.", ""),
    (r"^head\.fc\.", "head."),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"\.ln1\.", ".norm1."),
    (r"\.ln2\.", ".norm2."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)

# tensors besides the encoder: computed indices and the pretraining decoder
_COMPUTED = re.compile(r"relative_position_index$")
_DECODER = re.compile(r"^mask_token$|^decoder_")


POSITIONS = "absolute_pos_embed"
_TABLE = ".relative_position_bias_table"


def read_state_dict(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Extract the tensors of a checkpoint, without the prefixes of wrappers around the model.

    Raises BenchError if there are no tensors, or tensors of an unsupported kind.
    """
    content: Any = checkpoint
    while inner := next((content[k] for k in _WRAPPERS if isinstance(content.get(k), Mapping)), None):
        content = inner
    state = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor) and key not in _COUNTERS
    }
    if not state:
        raise BenchError(f"the checkpoint holds no weights, only {', '.join(map(str, list(content)[:5]))}")
    for prefix in _PREFIXES * 2:  # a compiled model inside DDP has two
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    for key, value in state.items():
        if value.is_quantized or value.layout != torch.strided:
            kind, method = ("quantised", "dequantize()") if value.is_quantized else ("sparse", "to_dense()")
            raise BenchError(f"{key} is a {kind} tensor; convert it with tensor.{method} before saving")
    return state


def without_prefix(state: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Find a network with the tensors `names` inside a larger one, such as below `backbone.`.

    Other tensors are skipped with a warning. Raises BenchError if there are several such networks.
    """
    if not names or any(name in state for name in names):
        return dict(state)
    first = next(iter(names))
    candidates = [key.removesuffix(first) for key in state if key.endswith(f".{first}")]
    prefixes = [prefix for prefix in candidates if all(f"{prefix}{name}" in state for name in names)]
    if len(prefixes) > 1:
        raise BenchError(
            f"the checkpoint holds this network {len(prefixes)} times, below "
            f"{' and '.join(map(repr, prefixes))}; save the tensors of one of them"
        )
    if not prefixes:
        return dict(state)
    prefix = prefixes[0]
    skipped = [key for key in state if not key.startswith(prefix)]
    if skipped:
        warnings.warn(
            f"only the tensors below {prefix!r} were loaded; skipped: {a_few(sorted(skipped))}", stacklevel=2
        )
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def in_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the tensor names of any published MixMIM to ours."""
    if not any(key.endswith("patch_embed.projection.weight") for key in state):
        return dict(state)
    return _from_openmmlab(state)


def _from_openmmlab(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in state.items():
        for pattern, ours in _OPENMMLAB_NAMES:
            key = re.sub(pattern, ours, key)
        if re.search(r"\.downsample\.(norm|reduction)\.", key):
            value = _reorder_neighbours(value)
        renamed[key] = value
    return renamed


def _reorder_neighbours(value: Tensor) -> Tensor:
    """Permute the last axis from (channel, row, column) to (column, row, channel)."""
    lead = value.shape[:-1]
    return value.reshape(*lead, -1, 2, 2).movedim((-1, -2, -3), (-3, -2, -1)).reshape(*lead, -1)


def convert(checkpoint: Mapping[str, Any], model: Any) -> dict[str, Tensor]:
    """Convert a published checkpoint to the names, windows and image size of `model`.

    Computed indices are dropped, and so is the pretraining decoder if the model has none. Bias tables and
    position embeddings are interpolated to the model's windows and grid, bicubic.

    Raises:
        BenchError: the weights belong to another network, one whose windows at the weights' image size
            differ from this model's. Exceptions: windows set by the caller, and, with a warning, 224-pixel
            weights in the 384-pixel networks, which the release fine-tunes from them.
    """
    state = in_our_names(read_state_dict(checkpoint))
    state = {k: v for k, v in state.items() if not _COMPUTED.search(k)}
    if not hasattr(model, "mask_token"):
        state = {k: v for k, v in state.items() if not _DECODER.search(k)}
    tables = _tables_of_other_windows(state, model)
    grid = _square(state[POSITIONS].shape[1]) if POSITIONS in state else None
    if tables and grid is not None:
        _check_windows(state, model, grid)
    for key, wanted in ((POSITIONS, model.patch_embed.grid_size), ("decoder_pos_embed", _cells(model))):
        own, theirs = getattr(model, key, None), state.get(key)
        if own is not None and theirs is not None and theirs.shape[-1] == own.shape[-1]:
            grid = _square(theirs.shape[1])
            if theirs.shape != own.shape and grid is not None:
                state[key] = resize_positions(theirs, grid, wanted)
    for key, (_, attention) in tables.items():
        state[key] = resize_bias_table(state[key], _window_of(state[key]), attention.window_size)
    return state


def _tables_of_other_windows(state: Mapping[str, Tensor], model: Any) -> dict[str, Any]:
    """Return the bias tables that differ in size from the model's: key -> (stage, attention)."""
    return {
        key: (stage, attention)
        for key, (stage, attention) in _tables(state, model).items()
        if state[key].shape != attention.relative_position_bias_table.shape
    }


def _tables(state: Mapping[str, Tensor], model: Any) -> dict[str, tuple[int, Any]]:
    """Return the bias tables that both have, with the same number of heads: key -> (stage, attention)."""
    tables = {}
    for stage, layer in enumerate(model.layers):
        for block, module in enumerate(layer.blocks):
            key = f"layers.{stage}.blocks.{block}.attn{_TABLE}"
            heads = module.attn.relative_position_bias_table.shape[1:]
            if key in state and state[key].shape[1:] == heads:
                tables[key] = (stage, module.attn)
    return tables


def _check_windows(state: Mapping[str, Tensor], model: Any, grid: tuple[int, int]) -> None:
    """Check that weights trained on a patch grid have the model's windows for it; raises BenchError."""
    wanted = model.windows_at(grid)
    theirs = {stage: _window_of(state[key]) for key, (stage, _) in _tables(state, model).items()}
    if all(window == wanted[stage] for stage, window in theirs.items()):
        return
    if model.windows_stated:
        return
    pixels = " x ".join(
        str(side * patch) for side, patch in zip(grid, model.patch_embed.patch_size, strict=True)
    )
    origin = f"the weights were trained on {pixels} pixels with windows of {_sides(theirs.values())} tokens"
    if len(theirs) == len(wanted) and model.starts_from([theirs[stage] for stage in sorted(theirs)], grid):
        own = _sides(stage.window_size for stage in model.layers)
        warnings.warn(
            f"{origin} and are interpolated to {own}: a starting point for fine-tuning", stacklevel=2
        )
        return
    raise BenchError(
        f"{origin}, but this network has {_sides(wanted[stage] for stage in theirs)}: they belong to another "
        "network. The windows of mixmim-b and mixmim-l scale with the image; those of mixmim-b-384 and "
        "mixmim-l-384 are 16, 16, 24, 12 at 384 pixels. Choose the model that the weights were trained with"
    )


def _sides(windows: Iterable[tuple[int, int]]) -> str:
    return ", ".join(str(window[0]) for window in windows)


def _square(tokens: int) -> tuple[int, int] | None:
    """Return the square grid with this many tokens, None if there is none."""
    side = round(tokens**0.5)
    return (side, side) if side**2 == tokens else None


def _cells(model: Any) -> tuple[int, int]:
    """Return the decoder grid of a pretraining model; unused for other models."""
    return getattr(model, "cells", (0, 0))


def _window_of(table: Tensor) -> tuple[int, int]:
    """Return the square window size of a bias table ((2w - 1)^2, heads)."""
    side = (round(table.shape[0] ** 0.5) + 1) // 2
    return side, side
