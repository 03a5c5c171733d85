"""Frozen features: one pass of a backbone over images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

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


def extract(
    backbone: nn.Module,
    part: Part,
    transform: Transform,
    machine: Machine,
    skip_unreadable: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Features:
    """Run a timm model over the images of a part: its pooled features, or logits if it has a head.

    Rows come in the order of the part, whatever the number of workers. When memory runs out the batch
    is halved and the pass goes on from there. Raises UnreadableImages.
    """
    dataset = ImageDataset(part.images, transform)
    unreadable = Unreadable(part.images, skip_unreadable)
    x: np.ndarray | None = None
    backbone = backbone.to(machine.device).eval()
    batch_size, done = machine.batch_size, 0
    while done < len(part):
        try:
            groups = in_groups(range(done, len(part)), batch_size)
            for batch in batches(dataset, groups, machine.workers):
                unreadable.add(batch.failures)
                # once one image has failed the rest is only decoded, to name all that fail
                if len(batch.rows) and (skip_unreadable or not unreadable.found):
                    pooled = _forward(backbone, batch.images, machine)
                    if x is None:
                        x = np.empty((len(part), pooled.shape[1]), dtype=np.float32)
                    x[batch.rows.numpy()] = pooled
                done += len(batch.rows) + len(batch.failures)
                advance(len(batch.rows) + len(batch.failures))
        except Exception as error:
            if not is_out_of_memory(error) or batch_size == 1:
                raise
            batch_size = max(1, batch_size // 2)
    unreadable.check()
    kept = np.setdiff1d(np.arange(len(part)), list(unreadable.found))
    if x is None:
        x = np.empty((0, 0), dtype=np.float32)
    return Features(x[kept], part.labels[kept], part.ids[kept], len(unreadable.found), batch_size)


@torch.inference_mode()
def _forward(backbone: Any, images: torch.Tensor, machine: Machine) -> np.ndarray:
    with machine.autocast():
        tokens = backbone.forward_features(images.to(machine.device, non_blocking=True))
    # pooling and head in float32: rounded logits tie, and a tie is decided by the order of the classes
    pooled = backbone.forward_head(tokens.float())
    if pooled.ndim != 2:
        raise ValueError(f"the backbone gives features of shape {tuple(pooled.shape)}, not (b, d)")
    return pooled.cpu().numpy()
