"""From images to batches: decoding, transforming and counting what cannot be read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mixmim_bench.data.images import Loadable, UnreadableImage
from mixmim_bench.data.transforms import Transform
from mixmim_bench.errors import UnreadableImages
from mixmim_bench.seeding import seed_everything


@dataclass(frozen=True)
class Batch:
    """Transformed images (b, 3, H, W), the rows (b,) they came from, and those that failed."""

    rows: Tensor
    images: Tensor
    failures: list[tuple[int, str]]

    def pin_memory(self) -> "Batch":
        return Batch(self.rows, self.images.pin_memory(), self.failures)


class ImageDataset(Dataset):
    """Decodes and transforms images; one that cannot be read gives the reason in place of pixels.

    With `seed`, what a random transform draws depends on seed, `epoch` and row alone, so it is the same
    for any number of worker processes.
    """

    def __init__(self, images: Loadable, transform: Transform, seed: int | None = None) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[int, Tensor | str]:
        try:
            image = self.images.load(row)
        except UnreadableImage as error:
            return row, str(error)
        if self.seed is not None:
            seed_everything(self.seed, self.epoch, row)
        return row, self.transform(image)


def collate(items: Sequence[tuple[int, Any]]) -> Batch:
    """Stack what could be read."""
    good = [(row, image) for row, image in items if not isinstance(image, str)]
    return Batch(
        torch.tensor([row for row, _ in good], dtype=torch.int64),
        torch.stack([image for _, image in good]) if good else torch.empty(0),
        [(row, reason) for row, reason in items if isinstance(reason, str)],
    )


def batches(dataset: ImageDataset, groups: Sequence[list[int]], workers: int) -> Iterator[Batch]:
    """Load groups of rows in the order given, one batch a group."""
    yield from DataLoader(
        dataset,
        batch_sampler=groups,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )


def in_groups(rows: Sequence[int], size: int) -> list[list[int]]:
    """Cut rows into groups of `size`; the last one may be smaller."""
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


@dataclass
class Unreadable:
    """Images that could not be decoded, and whether the task lets them be left out."""

    images: Loadable
    allowed: bool
    found: dict[int, str] = field(default_factory=dict)

    def add(self, failures: Sequence[tuple[int, str]]) -> None:
        """Remember failures."""
        self.found.update(failures)

    def check(self) -> None:
        """Raise UnreadableImages if there are any and the task does not allow them."""
        if self.found and not self.allowed:
            first = [f"{self.images.name(row)} ({self.found[row]})" for row in list(self.found)[:3]]
            raise UnreadableImages(
                f"{len(self.found)} of {len(self.images)} images cannot be read: {'; '.join(first)}"
                f"{'; …' if len(self.found) > 3 else ''}. Mend or remove them, or let the task leave "
                "them out with `skip_unreadable = true` in its [data]"
            )
