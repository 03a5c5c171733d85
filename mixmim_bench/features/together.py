"""The processes of a job fill entries of the feature store together.

The main process holds the entries, as a single process would, and joins the chunks at the end. Everyone takes
units of chunks, each under a lock that ends with its process: a unit whose process has died is taken over by
the main process, or resumed after its last chunk by the next job. Units begin at multiples of the batch size,
so that batches, and thus features, are the same bit for bit as in one pass. Nothing here sends messages.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress

from filelock import FileLock, Timeout

from mixmim_bench import processes
from mixmim_bench.atomic import write_whole
from mixmim_bench.features import store
from mixmim_bench.features.store import Entry, Filling

UNITS = 8  # for each process: so few are left to wait for at the end

Call = Callable[[Sequence[str]], bool]  # calls the others to fill some layers; returns whether they come


def units_of(images: int, batch_size: int, count: int) -> list[range]:
    """Split images into units of whole chunks and whole batches, some for each of `count` processes."""
    step = math.lcm(store.CHUNK_ROWS, batch_size)
    size = max(1, math.ceil(images / (UNITS * count * step))) * step
    return [range(start, min(start + size, images)) for start in range(0, images, size)]


class _Locks:
    """The locks of units, and the marker that is there while others may take part; in the first entry."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.entry = min(entries.values(), key=lambda entry: entry.key)
        self.folder = self.entry.folder / "chunks"
        self.marker = self.folder / "job"

    def of(self, unit: range) -> FileLock:
        return FileLock(self.folder / f"{unit.start:09d}.lock")

    def invite(self) -> None:
        with self.entry.disk_errors():
            write_whole(self.marker, b"")

    def close(self) -> None:
        with suppress(OSError):
            self.marker.unlink(missing_ok=True)


@contextmanager
def shares(filling: Filling, batch_size: int, call: Call | None) -> Iterator[Iterator[Filling]]:
    """Yield what the main process fills, in order; all of it if no others are called or come.

    It keeps the locks of units until the context ends, so that nobody writes chunks when they are joined.
    """
    if call is None:
        yield iter([filling])
        return
    locks = _Locks(filling.entries)
    with ExitStack() as held:
        held.callback(locks.close)
        locks.invite()
        if call(list(filling.entries)):
            yield _units_of_main(
                filling, units_of(filling.images, batch_size, processes.count()), locks, held
            )
        else:
            locks.close()
            yield iter([filling])


def _units_of_main(
    filling: Filling, units: Sequence[range], locks: _Locks, held: ExitStack
) -> Iterator[Filling]:
    """Yield the units that nobody has, then those of others, which may have left them incomplete."""
    of_others = []
    for unit in units:
        try:
            held.enter_context(locks.of(unit).acquire(timeout=0))
        except Timeout:
            of_others.append(unit)
        else:
            yield filling.of(unit)
    for unit in of_others:
        held.enter_context(store.acquire(locks.of(unit), locks.entry))
        yield filling.of(unit)


def share_of_follower(entries: Mapping[str, Entry], images: int, batch_size: int) -> Iterator[Filling]:
    """Yield what another process fills: units that nobody has, beginning at its own share."""
    locks, units = _Locks(entries), units_of(images, batch_size, processes.count())
    first = len(units) * processes.index() // processes.count()
    for unit in [*units[first:], *units[:first]]:
        if not locks.marker.exists():  # complete, or given up
            return
        with suppress(Timeout), locks.of(unit).acquire(timeout=0):
            if locks.marker.exists():
                yield Filling(entries, images, unit)
