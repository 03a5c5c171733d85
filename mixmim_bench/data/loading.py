"""From images to batches: decoding, transforming and counting what cannot be read."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mixmim_bench.data.images import Loadable, UnreadableImage
from mixmim_bench.data.transforms import Transform
from mixmim_bench.data.workers import Batch, in_workers
from mixmim_bench.errors import UnreadableImages, counted
from mixmim_bench.seeding import seed_everything

AHEAD = 2  # batches that are prepared before they are needed


# row; pixels, or why there are none; digest of the bytes
_Item = tuple[int, Tensor | str, bytes]


class ImageDataset(Dataset):
    """Decodes and transforms images; one that cannot be read gives the reason in place of pixels.

    With `seed`, what a random transform draws depends on seed, `epoch` and row alone, so it is the same
    for any number of worker processes. With `digests` the images' bytes are hashed on the way.
    """

    def __init__(
        self, images: Any, transform: Transform, seed: int | None = None, digests: bool = False
    ) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self.digests = digests
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> _Item:
        try:
            image = self.images.load(row)
            digest = self.images.digest(row) if self.digests else b""
        except UnreadableImage as error:
            return row, str(error), b""
        if self.seed is not None:
            seed_everything(self.seed, self.epoch, row)
        return row, self.transform(image), digest


def collate(items: Sequence[_Item]) -> Batch:
    """Stack what could be read."""
    rows, images, digests, failures = [], [], [], []
    for row, image, digest in items:
        if isinstance(image, str):
            failures.append((row, image))
        else:
            rows.append(row)
            images.append(image)
            digests.append(
                torch.frombuffer(bytearray(digest), dtype=torch.uint8) if digest else torch.empty(0)
            )
    return Batch(
        torch.tensor(rows, dtype=torch.int64),
        torch.stack(images) if images else torch.empty(0),
        torch.stack(digests) if images else torch.empty(0),
        failures,
    )


def batches(dataset: ImageDataset, groups: Sequence[list[int]], workers: int) -> Iterator[Batch]:
    """Load groups of rows in the order given, one batch a group.

    Without worker processes a thread prepares the next batch while this one is computed with, unless the
    transform draws at random: then it would draw from the generators that the training draws from. Raises
    BenchError for a worker process that dies or stalls.
    """
    if workers == 0 and dataset.seed is None:
        yield from _ahead(dataset, groups)
        return
    yield from in_workers(dataset, groups, collate, workers)


def _ahead(dataset: ImageDataset, groups: Sequence[list[int]]) -> Iterator[Batch]:
    with ThreadPoolExecutor(1) as thread:
        loading: deque[Future[Batch]] = deque()
        for group in [*groups, *([None] * AHEAD)]:
            if group is not None:
                loading.append(thread.submit(lambda rows: collate([dataset[row] for row in rows]), group))
            if loading and (group is None or len(loading) > AHEAD):
                yield loading.popleft().result()


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
            found = f"{len(self.found)} of {counted(len(self.images), 'image')}"
            raise UnreadableImages(
                f"{found} cannot be read: {'; '.join(first)}"
                f"{'; …' if len(self.found) > 3 else ''}. Repair or remove them, or let the task leave "
                "them out with `skip_unreadable = true` in its [data]"
            )
