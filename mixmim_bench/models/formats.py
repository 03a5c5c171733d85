"""Published checkpoint formats, recognised by their keys and brought to the names of our network.

Our names are those of the released fine-tuned checkpoints. OpenMMLab's differ, and its patch merging
lists the four neighbours of a token in another order, so those weights are permuted.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mixmim_bench.errors import BenchError
from mixmim_bench.models.attention import resize_bias_table
from mixmim_bench.models.positions import resize_positions

_WRAPPERS = ("state_dict", "model", "module", "state_dict_ema", "model_ema", "ema_state_dict")
_PREFIXES = ("module.", "model.", "_orig_mod.", "ema_model.")
_COUNTERS = ("n_averaged", "steps")  # beside the weights of an averaged model

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

# What a checkpoint may hold beyond the encoder: indices that are computed, and the pretraining decoder.
_COMPUTED = re.compile(r"relative_position_index$")
_DECODER = re.compile(r"^mask_token$|^decoder_")


POSITIONS = "absolute_pos_embed"
_TABLE = ".relative_position_bias_table"


def read_state_dict(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Find the tensors in a checkpoint, without the prefixes of what wrapped the model.

    Raises BenchError if the mapping holds no tensors.
    """
    found: Any = checkpoint
    while inner := next((found[k] for k in _WRAPPERS if isinstance(found.get(k), Mapping)), None):
        found = inner
    state = {
        key: value
        for key, value in found.items()
        if isinstance(key, str) and isinstance(value, Tensor) and key not in _COUNTERS
    }
    if not state:
        raise BenchError(f"the checkpoint holds no weights, only {', '.join(map(str, list(found)[:5]))}")
    for prefix in _PREFIXES * 2:  # a compiled model inside DDP has two
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def in_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the tensors of a MixMIM as our network does, whoever wrote them."""
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
    """Bring a published checkpoint to the names, windows and image size of `model`.

    Computed indices are left out, and the decoder of a pretraining checkpoint where the model has none.
    Bias tables are interpolated to the model's windows, position embeddings brought to its grid. Raises
    BenchError for weights of the model's image size that have other windows: a network that can be
    interpolated to this one and is another one.
    """
    state = in_our_names(read_state_dict(checkpoint))
    state = {k: v for k, v in state.items() if not _COMPUTED.search(k)}
    if not hasattr(model, "mask_token"):
        state = {k: v for k, v in state.items() if not _DECODER.search(k)}
    tables = _tables_of_other_windows(state, model)
    if tables and POSITIONS in state and state[POSITIONS].shape == model.absolute_pos_embed.shape:
        raise BenchError(_other_windows(state, model, tables))
    for key, grid in ((POSITIONS, model.patch_embed.grid_size), ("decoder_pos_embed", _cells(model))):
        own, theirs = getattr(model, key, None), state.get(key)
        if own is not None and theirs is not None and theirs.shape[-1] == own.shape[-1]:
            side = round(theirs.shape[1] ** 0.5)
            if theirs.shape != own.shape and side**2 == theirs.shape[1]:
                state[key] = resize_positions(theirs, (side, side), grid)
    for key, attention in tables.items():
        state[key] = resize_bias_table(state[key], _window_of(state[key]), attention.window_size)
    return state


def _tables_of_other_windows(state: Mapping[str, Tensor], model: Any) -> dict[str, Any]:
    """Find the bias tables that are of another size than the model's: key -> its attention."""
    found = {}
    for name, module in model.named_modules():
        table = getattr(module, _TABLE[1:], None)
        theirs = state.get(name + _TABLE)
        if table is None or theirs is None or theirs.shape[1:] != table.shape[1:]:
            continue
        if theirs.shape != table.shape:
            found[name + _TABLE] = module
    return found


def _cells(model: Any) -> tuple[int, int]:
    """Return the grid of a pretraining model's decoder; of any other one it is not asked."""
    return getattr(model, "cells", (0, 0))


def _window_of(table: Tensor) -> tuple[int, int]:
    """Return the square window that a bias table ((2w - 1)^2, heads) was made for."""
    side = (round(table.shape[0] ** 0.5) + 1) // 2
    return side, side


def _other_windows(state: Mapping[str, Tensor], model: Any, tables: Mapping[str, Any]) -> str:
    first = [key for key in tables if ".blocks.0." in key]  # a stage's blocks have one window
    theirs = ", ".join(str(_window_of(state[key])[0]) for key in first)
    ours = ", ".join(str(tables[key].window_size[0]) for key in first)
    size = " x ".join(map(str, model.patch_embed.img_size))
    return (
        f"the weights were made for {size} pixels with windows of {theirs} tokens where this network has "
        f"{ours}: another network. The windows of mixmim-b and mixmim-l scale with the image; those of "
        "mixmim-b-384 and mixmim-l-384 are 16, 16, 24, 12. Name the model that the weights were made for"
    )
