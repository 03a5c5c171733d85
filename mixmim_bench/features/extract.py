"""One pass of a backbone over images, in memory or into the feature store."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mixmim_bench.data.images import Part
from mixmim_bench.data.loading import ImageDataset, Unreadable, batches, in_groups
from mixmim_bench.data.transforms import ImageOnly, Transform
from mixmim_bench.features import OWN
from mixmim_bench.features.layers import Taps
from mixmim_bench.features.store import Entry, Piece, filling
from mixmim_bench.machine import Machine, is_out_of_memory
from mixmim_bench.progress import Advance


@dataclass(frozen=True)
class Features:
    """Pooled features of images, their labels, and the ids of the images they came from."""

    x: np.ndarray  # (n, d) float32; from the store it is mapped from the disk
    y: np.ndarray  # (n,) int64
    ids: np.ndarray  # (n,) of str
    rows: np.ndarray  # (n,) of the part
    digests: np.ndarray  # (n, 16) uint8: of the bytes of each image
    unreadable: int = 0
    batch_size: int = 0

    def __len__(self) -> int:
        return len(self.y)


def forward_all(
    network: nn.Module,
    transform: Transform,
    unreadable: Unreadable,
    machine: Machine,
    layers: Sequence[str] = (OWN,),
    start: int = 0,
    digests: bool = False,
) -> Iterator[Piece]:
    """Run a timm model over images from row `start` on, in their order whatever the number of workers.

    When memory runs out the batch is halved and the pass goes on from there. Where unreadable images are
    not allowed, what follows the first one is only decoded, to name all that fail: such pieces have no rows.
    """
    dataset = ImageDataset(unreadable.images, ImageOnly(transform), digests=digests)
    network = network.to(machine.device).eval()
    taps = Taps(network)
    batch_size, done = machine.batch_size, start
    while done < len(dataset):
        try:
            groups = in_groups(range(done, len(dataset)), batch_size)
            for batch in batches(dataset, groups, machine.workers):
                unreadable.add(batch.failures)
                useful = len(batch.rows) > 0 and (unreadable.allowed or not unreadable.found)
                values = _forward(taps, batch.images, machine, layers) if useful else {}
                done += len(batch.rows) + len(batch.failures)
                rows = batch.rows if useful else batch.rows[:0]
                of_rows = batch.digests[: len(rows)].numpy()
                yield Piece(rows.numpy(), values, of_rows, batch.failures, batch_size)
        except Exception as error:
            if not is_out_of_memory(error) or batch_size == 1:
                raise
            batch_size = max(1, batch_size // 2)


@torch.inference_mode()
def _forward(
    taps: Taps, images: torch.Tensor, machine: Machine, layers: Sequence[str]
) -> dict[str, np.ndarray]:
    images = images.to(machine.device, non_blocking=True)
    read = taps.read(images, layers, machine.autocast())
    return {layer: values.cpu().numpy() for layer, values in read.items()}


def extract(
    backbone: nn.Module,
    part: Part,
    transform: Transform,
    machine: Machine,
    skip_unreadable: bool = False,
    advance: Advance = lambda _: None,
    layer: str = OWN,
) -> Features:
    """Run a timm model over the images of a part, in memory; raises UnreadableImages."""
    unreadable = Unreadable(part.images, skip_unreadable)
    x = np.empty((0, 0), dtype=np.float32)
    digests = np.zeros((len(part), 16), dtype=np.uint8)
    batch_size = machine.batch_size
    for piece in forward_all(backbone, transform, unreadable, machine, (layer,), digests=True):
        if len(piece.rows):
            values = piece.values[layer]
            if not x.size:
                x = np.empty((len(part), values.shape[1]), dtype=np.float32)
            x[piece.rows], digests[piece.rows] = values, piece.digests
        batch_size = piece.batch_size
        advance(len(piece.rows) + len(piece.failures))
    unreadable.check()
    kept = np.setdiff1d(np.arange(len(part)), list(unreadable.found))
    x = x[kept] if x.size else x
    return Features(
        x, part.labels[kept], part.ids[kept], kept, digests[kept], len(unreadable.found), batch_size
    )


def extract_to_store(
    backbone: nn.Module,
    part: Part,
    transform: Transform,
    machine: Machine,
    entries: Mapping[str, Entry],
    skip_unreadable: bool = False,
    advance: Advance = lambda _: None,
) -> int:
    """Fill the entries (layer -> entry) of a part in one pass, from where an interrupted one stopped.

    Another process that fills one of them is waited for. Returns the smallest batch that was used, 0 if
    nothing was left to do. Raises UnreadableImages.
    """
    smallest = 0
    with filling(entries, len(part)) as lacking:
        if lacking is None:
            advance(len(part))
            return 0
        advance(lacking.start)
        unreadable = Unreadable(part.images, skip_unreadable)
        layers = list(lacking.entries)
        passing = forward_all(backbone, transform, unreadable, machine, layers, lacking.start, digests=True)
        for piece in passing:
            if unreadable.allowed or not unreadable.found:
                lacking.add(piece)
            smallest = piece.batch_size
            advance(len(piece.rows) + len(piece.failures))
        unreadable.check()
        lacking.finish()
    return smallest


def features_of(entry: Entry, part: Part, batch_size: int = 0) -> Features:
    """Read an entry that is whole, with the labels and ids of its part."""
    stored = entry.open()
    return Features(
        stored.x,
        part.labels[stored.rows],
        part.ids[stored.rows],
        stored.rows,
        stored.digests,
        len(part) - len(stored.rows),
        batch_size,
    )
