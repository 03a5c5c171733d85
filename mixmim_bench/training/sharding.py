"""Fully sharded training (FSDP2): each process holds a share of the weights, gradients and optimizer state.

Blocks are gathered one after the other as they are computed, in float32, so that the numbers are those of
training with whole copies.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def shard(network: nn.Module, device: torch.device) -> nn.Module:
    """Shard a network in place, block by block, over all processes; returns it."""
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    network.to(device)
    for block in repeated_blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    return network


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the modules that a network mainly repeats, such as the blocks of a transformer."""
    found: dict[type, list[nn.Module]] = defaultdict(list)
    for module in network.modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            for child in module.children():
                if any(True for _ in child.children()) and not isinstance(child, nn.Sequential):
                    found[type(child)].append(child)
    repeated = [blocks for blocks in found.values() if len(blocks) > 1]
    return max(repeated, key=len, default=[])


def whole_weights(network: nn.Module) -> dict[str, Any]:
    """Gather the weights in every process."""
    return get_model_state_dict(network, options=StateDictOptions(full_state_dict=True))


def whole_state(
    network: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Gather the weights and the optimizer state in the main process, where they are needed to be saved."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_state_dict(network, optimizer, options=options)


def set_whole_state(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, Any],
    of_optimizer: Mapping[str, Any],
) -> None:
    """Set the weights and the optimizer state from whole ones, which every process has."""
    set_state_dict(
        network,
        optimizer,
        model_state_dict=dict(weights),
        optim_state_dict=dict(of_optimizer),
        options=StateDictOptions(full_state_dict=True),
    )
