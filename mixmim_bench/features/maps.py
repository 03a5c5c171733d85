"""Feature maps of a frozen network, kept in memory for a training of heads on them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixmim_bench import processes
from mixmim_bench.data.hashing import WIDTH
from mixmim_bench.data.images import Part, UnreadableImage
from mixmim_bench.data.loading import ImageDataset, Unreadable, batches, in_groups
from mixmim_bench.data.transforms import JointTransform
from mixmim_bench.machine import Machine
from mixmim_bench.memory import available_bytes
from mixmim_bench.progress import Advance

SHARE_OF_MEMORY = 0.4  # that maps and label maps may take


class StoredMaps:
    """The maps of images as rows (n, D) float16, in place of the images."""

    def __init__(self, images: Any, maps: Tensor) -> None:
        self.images = images
        self.maps = maps
        self.digests = np.zeros((len(maps), WIDTH), dtype=np.uint8)
        self.failures: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.maps)

    def load(self, row: int) -> Tensor:
        """Return the maps of an image; raises UnreadableImage."""
        if row in self.failures:
            raise UnreadableImage(self.failures[row])
        return self.maps[row]

    def name(self, row: int) -> str:
        return self.images.name(row)

    def digest(self, row: int) -> bytes:
        return self.digests[row].tobytes()


class StoredLabels:
    """Transformed label maps (n, h, w)."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, row: int) -> Tensor:
        return self.labels[row]

    def collate(self, loaded: Sequence[Any]) -> Tensor:
        return torch.stack(list(loaded)) if loaded else torch.empty(0)


def unchanged(image: Any, target: Any) -> tuple[Any, Any]:
    """Return stored maps and labels as they are: a transform."""
    return image, target


def fits(n: int, width: int, size: int) -> bool:
    """Return whether n maps of `width` values and label maps of size x size pixels fit into memory.

    In every process of a job, beside what training needs.
    """
    free = SHARE_OF_MEMORY * available_bytes() / processes.local_count()
    (too_large,) = processes.total(n * (2 * width + 2 * size * size) > free)
    return not too_large


def store_maps(
    part: Part,
    transform: JointTransform,
    read: Callable[[Tensor], Tensor],
    shape: tuple[int, int],
    machine: Machine,
    skip_unreadable: bool,
    advance: Advance,
) -> Part:
    """Compute the maps of all images once; they take the place of the images in the part that is returned.

    Args:
        part: images with label maps, which all have the same size once they are transformed.
        transform: of an image and its label map.
        read: maps images (b, 3, H, W) to rows (b, D).
        shape: the width D, and the side of the label maps.
        machine: device, precision, images per batch.
        skip_unreadable: skip images that cannot be read, instead of an error.
        advance: receives the number of images done.

    Raises:
        UnreadableImages: some images cannot be read.
    """
    n, (width, side) = len(part), shape
    stored: Any = StoredMaps(part.images, torch.zeros(n, width, dtype=torch.float16))
    labels: Any = StoredLabels(torch.zeros(n, side, side, dtype=torch.int16))
    unreadable = Unreadable(part.images, skip_unreadable)
    dataset = ImageDataset(part.images, transform, part.targets, digests=True)
    for batch in batches(dataset, in_groups(range(n), machine.batch_size), machine.workers):
        unreadable.add(batch.failures)
        unreadable.check()
        stored.failures.update(batch.failures)
        if len(batch.rows):
            with torch.no_grad(), machine.autocast():
                stored.maps[batch.rows] = read(batch.images.to(machine.device)).cpu()
            labels.labels[batch.rows] = batch.targets
            stored.digests[batch.rows.numpy()] = batch.digests.numpy()
        advance(len(batch.rows) + len(batch.failures))
    return Part(part.ids, labels, stored)
