"""Batches of transformed images and targets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


@dataclass(frozen=True)
class Batch:
    """Transformed images with their targets, and the images that could not be read.

    Attributes:
        rows: rows of the dataset (b,).
        images: (b, 3, H, W).
        targets: the result of `Targets.collate`, None if not requested.
        digests: of the images' bytes (b, 16), empty if not requested.
        failures: the reason for each row that could not be read.
    """

    rows: Tensor
    images: Tensor
    targets: Any
    digests: Tensor
    failures: Mapping[int, str]

    def map(self, change: Callable[[Tensor], Any]) -> "Batch":
        """Apply a function to every tensor."""
        return _mapped(torch.Tensor, change, self)

    def pin_memory(self) -> "Batch":
        return self.map(Tensor.pin_memory)


def joined(parts: Sequence[Batch]) -> Batch:
    """Concatenate batches, whose targets are tensors, lists, or None."""
    if len(parts) == 1:
        return parts[0]
    with_images = [part for part in parts if len(part.rows)] or [parts[0]]
    every = [part.targets for part in with_images]
    targets: Any = every[0]
    if isinstance(targets, Tensor):
        targets = torch.cat(every)
    elif targets is not None:
        targets = [target for each in every for target in each]
    return Batch(
        torch.cat([part.rows for part in parts]),
        torch.cat([part.images for part in with_images]),
        targets,
        torch.cat([part.digests for part in with_images]),
        {row: reason for part in parts for row, reason in part.failures.items()},
    )


def as_arrays(batch: Batch) -> Batch:
    """Convert tensors to arrays, which are pickled instead of shared."""
    return batch.map(Tensor.numpy)


def as_tensors(batch: Batch) -> Batch:
    """Undo `as_arrays`."""
    return _mapped(np.ndarray, torch.from_numpy, batch)


def _mapped(kind: type, change: Callable[[Any], Any], batch: Batch) -> Batch:
    values = (batch.rows, batch.images, batch.targets, batch.digests)
    rows, images, targets, digests = tree_map_only(kind, change, values)
    return Batch(rows, images, targets, digests, batch.failures)
