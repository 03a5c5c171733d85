"""Extract features in one pass of a backbone over images, into memory or the feature store."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from mixmim_bench import processes
from mixmim_bench.data.batch import Batch
from mixmim_bench.data.images import Loadable, Part
from mixmim_bench.data.loading import ImageDataset, Unreadable, batches, in_groups
from mixmim_bench.data.transforms import ImageOnly, Transform
from mixmim_bench.errors import BenchError
from mixmim_bench.features import OWN
from mixmim_bench.features.engines import Reader
from mixmim_bench.features.store import Entry, Filling, Piece, filling
from mixmim_bench.features.together import Call, share_of_follower, shares
from mixmim_bench.machine import Machine
from mixmim_bench.memory import is_out_of_memory
from mixmim_bench.progress import Advance

SAMPLED = 4  # images on which engines are compared


@dataclass(frozen=True)
class Features:
    """Pooled features of images, with the labels and ids of the images."""

    x: np.ndarray  # (n, d) float32; memory-mapped if from the store
    y: np.ndarray  # (n,) int64
    ids: np.ndarray  # (n,) of str
    rows: np.ndarray  # (n,) indices into the part
    digests: np.ndarray  # (n, 16) uint8, hashes of the image bytes
    unreadable: int = 0
    batch_size: int = 0

    def __len__(self) -> int:
        return len(self.y)


def forward_all(
    reader: Reader,
    transform: Transform,
    unreadable: Unreadable,
    machine: Machine,
    layers: Sequence[str] = (OWN,),
    rows: range | None = None,
    digests: bool = False,
) -> Iterator[Piece]:
    """Run a network over images, or some consecutive rows of them, in order for any number of workers.

    On running out of memory the batch size is halved and the pass continues. If unreadable images are not
    allowed, images after the first failure are only decoded, to report all failures: their pieces have no
    rows.
    """
    dataset = ImageDataset(unreadable.images, ImageOnly(transform), digests=digests)
    rows = range(len(dataset)) if rows is None else rows
    batch_size, done = machine.batch_size, rows.start
    running: deque[_Running] = deque()
    while done < rows.stop:
        try:
            groups = in_groups(range(done, rows.stop), batch_size)
            for batch in batches(dataset, groups, machine.workers):
                unreadable.add(batch.failures)
                needed = len(batch.rows) > 0 and (unreadable.allowed or not unreadable.found)
                values = _to_host(reader.read(batch.images, layers), machine) if needed else {}
                done += len(batch.rows) + len(batch.failures)
                running.append(_Running(batch, values, batch_size, machine.asynchronous))
                if len(running) > machine.asynchronous:  # a GPU computes the next batch meanwhile
                    yield running.popleft().finish()
        except Exception as error:
            if not is_out_of_memory(error) or batch_size == 1:
                raise
            batch_size = max(1, batch_size // 2)
        while running:
            yield running.popleft().finish()


def _to_host(features: Mapping[str, torch.Tensor], machine: Machine) -> dict[str, torch.Tensor]:
    """Start copies of features to the host; on a GPU they are still running."""
    if not machine.asynchronous:
        return {layer: values.cpu() for layer, values in features.items()}
    return {
        layer: torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
        for layer, values in features.items()
    }


class _Running:
    """A batch whose forward pass was started."""

    def __init__(
        self, batch: Batch, values: Mapping[str, torch.Tensor], batch_size: int, asynchronous: bool
    ) -> None:
        self.batch = batch
        self.values = values
        self.batch_size = batch_size
        self.copied = torch.cuda.Event() if asynchronous else None
        if self.copied is not None:
            self.copied.record()

    def finish(self) -> Piece:
        """Wait for the features."""
        if self.copied is not None:
            self.copied.synchronize()
        rows = self.batch.rows if self.values else self.batch.rows[:0]
        return Piece(
            rows.numpy(),
            {layer: values.numpy() for layer, values in self.values.items()},
            self.batch.digests[: len(rows)].numpy(),
            self.batch.failures,
            self.batch_size,
        )


def sample_images(images: Loadable, transform: Transform, count: int = SAMPLED) -> torch.Tensor:
    """Read a few images, normalised (b, 3, h, w); b is smaller if some are unreadable."""
    rows = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).astype(np.int64))
    dataset = ImageDataset(images, ImageOnly(transform))
    (batch,) = batches(dataset, [rows.tolist()], 0)
    return batch.images


def extract(
    reader: Reader,
    part: Part,
    transform: Transform,
    machine: Machine,
    skip_unreadable: bool = False,
    advance: Advance = lambda _: None,
    layer: str = OWN,
) -> Features:
    """Extract the features of a part into memory; raises UnreadableImages."""
    unreadable = Unreadable(part.images, skip_unreadable)
    x = np.empty((0, 0), dtype=np.float32)
    digests = np.zeros((len(part), 16), dtype=np.uint8)
    batch_size = machine.batch_size
    for piece in forward_all(reader, transform, unreadable, machine, (layer,), digests=True):
        if len(piece.rows):
            values = piece.values[layer]
            if not x.size:
                x = np.empty((len(part), values.shape[1]), dtype=np.float32)
            x[piece.rows], digests[piece.rows] = values, piece.digests
        batch_size = piece.batch_size
        advance(len(piece.rows) + len(piece.failures))
    unreadable.check()
    rows = np.setdiff1d(np.arange(len(part)), list(unreadable.found))
    x = x[rows] if x.size else x
    return Features(
        x, part.labels[rows], part.ids[rows], rows, digests[rows], len(unreadable.found), batch_size
    )


def extract_together(
    reader: Reader,
    part: Part,
    transform: Transform,
    machine: Machine,
    skip_unreadable: bool = False,
    advance: Advance = lambda _: None,
    layer: str = OWN,
) -> Features:
    """Extract like `extract`, each process of a job its share; every one returns the features of all."""
    if processes.count() == 1:
        return extract(reader, part, transform, machine, skip_unreadable, advance, layer)
    rows = np.arange(len(part))[processes.share(len(part))]
    error: BenchError | None = None
    mine: Features | None = None
    try:
        if len(rows):
            mine = extract(reader, part.take(rows), transform, machine, skip_unreadable, advance, layer)
    except BenchError as raised:
        error = raised
    processes.raise_together(error)
    advance(len(part) - len(rows))
    gathered = [
        each for each in processes.gather((int(rows[0]) if len(rows) else 0, mine)) if each[1] is not None
    ]
    shares = [(start, each) for start, each in gathered if len(each)] or gathered[:1]
    return Features(
        x=np.concatenate([each.x for _, each in shares]),
        y=np.concatenate([each.y for _, each in shares]),
        ids=np.concatenate([each.ids for _, each in shares]),
        rows=np.concatenate([start + each.rows for start, each in shares]),
        digests=np.concatenate([each.digests for _, each in shares]),
        unreadable=sum(each.unreadable for _, each in gathered),
        batch_size=min(each.batch_size for _, each in shares),
    )


def extract_to_store(
    reader: Reader,
    part: Part,
    transform: Transform,
    machine: Machine,
    entries: Mapping[str, Entry],
    skip_unreadable: bool = False,
    advance: Advance = lambda _: None,
    call: Call | None = None,
) -> int:
    """Fill the entries (layer -> entry) of a part in one pass, resuming an interrupted one.

    Waits for other processes that are filling the same entries.

    Args:
        reader: the network.
        part: the images.
        transform: of each image.
        machine: device and batch size.
        entries: what to fill.
        skip_unreadable: whether unreadable images are left out.
        advance: counts images.
        call: calls the other processes of a job, if there are any, to `help_to_store` some layers; returns
            whether they come.

    Returns:
        The smallest batch size used, 0 if all entries were complete.

    Raises:
        UnreadableImages: an image cannot be decoded, unless `skip_unreadable`.
    """
    used = [0]
    with filling(entries, len(part)) as incomplete:
        if incomplete is None:
            advance(len(part))
            return 0
        unreadable = Unreadable(part.images, skip_unreadable)
        with shares(incomplete, machine.batch_size, call) as units:
            for unit in units:
                used += _fill(unit, reader, transform, unreadable, machine, advance)
            unreadable.check()
            incomplete.finish()
    return min(filter(None, used), default=0)


def help_to_store(
    reader: Reader,
    part: Part,
    transform: Transform,
    machine: Machine,
    entries: Mapping[str, Entry],
    skip_unreadable: bool = False,
) -> None:
    """Take part in `extract_to_store` of the main process, which does or reports what this one cannot do."""
    unreadable = Unreadable(part.images, skip_unreadable)
    with suppress(BenchError):
        for unit in share_of_follower(entries, len(part), machine.batch_size):
            _fill(unit, reader, transform, unreadable, machine)
            unreadable.check()


def _fill(
    unit: Filling,
    reader: Reader,
    transform: Transform,
    unreadable: Unreadable,
    machine: Machine,
    advance: Advance = lambda _: None,
) -> list[int]:
    """Fill what is missing of some rows, as far as images are readable; returns the batch sizes used."""
    advance(unit.start - unit.rows.start)
    rows, used = range(unit.start, unit.rows.stop), []
    layers = list(unit.entries)
    for piece in forward_all(reader, transform, unreadable, machine, layers, rows, digests=True):
        if unreadable.allowed or not unreadable.found:
            unit.add(piece)
        used.append(piece.batch_size)
        advance(len(piece.rows) + len(piece.failures))
    return used[-1:]


def features_of(entry: Entry, part: Part, batch_size: int = 0) -> Features:
    """Open a complete entry, with the labels and ids of its part."""
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
