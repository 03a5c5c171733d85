"""Decode and transform images into batches, and collect unreadable images."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mixmim_bench.data.batch import Batch
from mixmim_bench.data.images import Loadable, UnreadableImage, decoded_to
from mixmim_bench.data.targets import Targets
from mixmim_bench.data.transforms import JointTransform
from mixmim_bench.data.workers import in_workers
from mixmim_bench.errors import UnreadableImages, counted
from mixmim_bench.seeding import seed_everything

AHEAD = 2  # batches prepared in advance


class Item(NamedTuple):
    """A transformed image with its target, or the reason it is unreadable."""

    row: int
    image: Tensor | None = None
    target: Any = None
    digest: bytes = b""  # of the image's bytes
    failure: str = ""


class ImageDataset(Dataset):
    """Decodes images and transforms them with their targets.

    Args:
        images: the images.
        transform: maps an image and its target (None without `targets`) to both.
        targets: the targets to load with the images.
        seed: if set, random transforms depend only on seed, `epoch` and row, whatever the number of worker
            processes.
        digests: whether to hash the images' bytes.
    """

    def __init__(
        self,
        images: Any,
        transform: JointTransform,
        targets: Targets | None = None,
        seed: int | None = None,
        digests: bool = False,
    ) -> None:
        self.images = images
        self.transform = transform
        self.targets = targets
        self.seed = seed
        self.digests = digests
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Item:
        try:
            with decoded_to(getattr(self.transform, "least", 0)):
                image = self.images.load(row)
            target = None if self.targets is None else self.targets.load(row)
            digest = self.images.digest(row) if self.digests else b""
            if self.seed is not None:
                seed_everything(self.seed, self.epoch, row)
            return Item(row, *self.transform(image, target), digest)
        except UnreadableImage as error:
            return Item(row, failure=str(error))

    def collate(self, items: Sequence[Item]) -> Batch:
        """Stack the readable images."""
        readable = [item for item in items if item.image is not None]
        images = [item.image for item in readable if item.image is not None]
        digests = [
            torch.frombuffer(bytearray(item.digest), dtype=torch.uint8) for item in readable if item.digest
        ]
        return Batch(
            torch.tensor([item.row for item in readable], dtype=torch.int64),
            torch.stack(images) if images else torch.empty(0),
            None if self.targets is None else self.targets.collate([item.target for item in readable]),
            torch.stack(digests) if digests else torch.empty(0),
            {item.row: item.failure for item in items if item.image is None},
        )


def batches(dataset: ImageDataset, groups: Sequence[list[int]], workers: int) -> Iterator[Batch]:
    """Load groups of rows in order, one batch per group.

    Without worker processes, a background thread prepares the next batches, unless the transform is random:
    it would draw from the same generators as training.

    Raises:
        BenchError: a worker process died or stalled.
    """
    if workers == 0 and dataset.seed is None:
        yield from _ahead(dataset, groups)
        return
    yield from in_workers(dataset, groups, dataset.collate, min(workers, len(groups)))


def _ahead(dataset: ImageDataset, groups: Sequence[list[int]]) -> Iterator[Batch]:
    with ThreadPoolExecutor(1) as thread:
        loading: deque[Future[Batch]] = deque()
        for group in groups:
            loading.append(thread.submit(lambda rows: dataset.collate([dataset[row] for row in rows]), group))
            if len(loading) > AHEAD:
                yield loading.popleft().result()
        while loading:
            yield loading.popleft().result()


def in_groups(rows: Sequence[int], size: int) -> list[list[int]]:
    """Split rows into groups of `size`; the last group may be smaller."""
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


@dataclass
class Unreadable:
    """Unreadable images, and whether the task allows skipping them.

    Attributes:
        images: the images being loaded.
        allowed: whether unreadable images are skipped.
        found: row -> reason.
    """

    images: Loadable
    allowed: bool
    found: dict[int, str] = field(default_factory=dict)

    def add(self, failures: Mapping[int, str]) -> None:
        """Record failures: row -> reason."""
        self.found.update(failures)

    def check(self) -> None:
        """Raise UnreadableImages if there are any and they are not allowed."""
        if self.found and not self.allowed:
            first = [f"{self.images.name(row)} ({self.found[row]})" for row in list(self.found)[:3]]
            count = f"{len(self.found)} of {counted(len(self.images), 'image')}"
            raise UnreadableImages(
                f"{count} cannot be read: {'; '.join(first)}"
                f"{'; …' if len(self.found) > 3 else ''}. Repair or remove them, or skip them: "
                "`skip_unreadable = true` in the task's [data], or `pretrain --skip-unreadable`"
            )
