"""Published checkpoint formats, recognised by their keys and brought to the names of our network.

Our names are those of the released fine-tuned checkpoints. OpenMMLab's differ, and its patch merging
lists the four neighbours of a token in another order, so those weights are permuted.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mixmim_bench.errors import BenchError

_WRAPPERS = ("state_dict", "model", "module", "state_dict_ema", "model_ema", "ema_state_dict")
_PREFIXES = ("module.", "model.", "_orig_mod.", "ema_model.")
_COUNTERS = ("n_averaged", "steps")  # beside the weights of an averaged model

_OPENMMLAB_NAMES = (
    (r"^backbone\.", ""),
    (r"^head\.fc\.", "head."),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"\.ln1\.", ".norm1."),
    (r"\.ln2\.", ".norm2."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)

# What a checkpoint may hold beyond the encoder: indices that are computed, and the pretraining decoder.
_EXTRAS = re.compile(r"relative_position_index$|^mask_token$|^decoder_|^neck\.")


def read_state_dict(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Find the tensors in a checkpoint, and name them as our network does.

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
    if any(".projection." in key or ".ln1." in key for key in state):
        return _from_openmmlab(state)
    return state


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

    The decoder of a pretraining checkpoint and computed indices are left out. Bias tables are
    interpolated to the model's windows; the position embedding is the model's own at another size.
    """
    from timm.layers import resize_rel_pos_bias_table

    state = {k: v for k, v in read_state_dict(checkpoint).items() if not _EXTRAS.search(k)}
    modules = dict(model.named_modules())
    for key, value in state.items():
        if key.endswith("relative_position_bias_table"):
            attention = modules.get(key.rpartition(".")[0])
            table = getattr(attention, "relative_position_bias_table", None)
            if (
                attention is not None
                and table is not None
                and table.shape[1:] == value.shape[1:]
                and table.shape != value.shape
            ):
                state[key] = resize_rel_pos_bias_table(
                    value, new_window_size=attention.window_size, new_bias_shape=table.shape
                )
    key = "absolute_pos_embed"
    own = getattr(model, key, None)
    if own is not None and key in state:
        same_width = state[key].shape[-1] == own.shape[-1]
        if same_width and state[key].shape != own.shape:
            state[key] = torch.as_tensor(own.detach().clone())
    return state
