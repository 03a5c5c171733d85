"""Frozen features: one pass of a backbone over images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map

from mixmim_bench.data.images import Part
from mixmim_bench.data.loading import ImageDataset, Unreadable, batches, in_groups
from mixmim_bench.data.transforms import Transform
from mixmim_bench.machine import Machine, is_out_of_memory


@dataclass(frozen=True)
class Features:
    """Pooled features of images, their labels, and the ids of the images they came from."""

    x: np.ndarray  # (n, d) float32
    y: np.ndarray  # (n,) int64
    ids: np.ndarray  # (n,) of str
    unreadable: int = 0
    batch_size: int = 0

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Outputs:
    """What a network gives for one batch: values (b, d) of the rows (b,), and rows that failed with why."""

    rows: np.ndarray
    values: np.ndarray
    failures: list[tuple[int, str]]
    batch_size: int


def forward_all(
    network: nn.Module,
    transform: Transform,
    unreadable: Unreadable,
    machine: Machine,
    pre_logits: bool = False,
) -> Iterator[Outputs]:
    """Run a timm model over images, in their order whatever the number of workers.

    The values are logits, or pooled features: with `pre_logits`, or without a classifier. When memory runs
    out the batch is halved and the pass goes on from there. Where unreadable images are not allowed, what
    follows the first one is only decoded, to name all that fail.
    """
    dataset = ImageDataset(unreadable.images, transform)
    network = network.to(machine.device).eval()
    batch_size, done = machine.batch_size, 0
    while done < len(dataset):
        try:
            groups = in_groups(range(done, len(dataset)), batch_size)
            for batch in batches(dataset, groups, machine.workers):
                unreadable.add(batch.failures)
                useful = unreadable.allowed or not unreadable.found
                rows, images = (batch.rows, batch.images) if useful else (batch.rows[:0], batch.images[:0])
                values = (
                    _forward(network, images, machine, pre_logits)
                    if len(rows)
                    else np.empty((0, 0), np.float32)
                )
                done += len(batch.rows) + len(batch.failures)
                yield Outputs(rows.numpy(), values, batch.failures, batch_size)
        except Exception as error:
            if not is_out_of_memory(error) or batch_size == 1:
                raise
            batch_size = max(1, batch_size // 2)


def extract(
    backbone: nn.Module,
    part: Part,
    transform: Transform,
    machine: Machine,
    skip_unreadable: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Features:
    """Run a timm model over the images of a part: its pooled features, or logits if it has a head.

    Raises UnreadableImages.
    """
    unreadable = Unreadable(part.images, skip_unreadable)
    x = np.empty((0, 0), dtype=np.float32)
    batch_size = machine.batch_size
    for outputs in forward_all(backbone, transform, unreadable, machine):
        if len(outputs.rows):
            if not x.size:
                x = np.empty((len(part), outputs.values.shape[1]), dtype=np.float32)
            x[outputs.rows] = outputs.values
        batch_size = outputs.batch_size
        advance(len(outputs.rows) + len(outputs.failures))
    unreadable.check()
    kept = np.setdiff1d(np.arange(len(part)), list(unreadable.found))
    x = x[kept] if x.size else x
    return Features(x, part.labels[kept], part.ids[kept], len(unreadable.found), batch_size)


@torch.inference_mode()
def _forward(backbone: Any, images: torch.Tensor, machine: Machine, pre_logits: bool) -> np.ndarray:
    with machine.autocast():
        tokens = backbone.forward_features(images.to(machine.device, non_blocking=True))
    # pooling and head in float32: rounded logits tie, and a tie is decided by the order of the classes
    tokens = tree_map(torch.Tensor.float, tokens)  # some networks give several
    pooled = backbone.forward_head(tokens, pre_logits=pre_logits)
    if pooled.ndim != 2:
        raise ValueError(f"the backbone gives features of shape {tuple(pooled.shape)}, not (b, d)")
    return pooled.cpu().numpy()
