"""Load batches in worker processes, and handle workers that fail.

Batches are passed in shared memory. On Linux this is /dev/shm, which containers often limit to 64 MB; batches
that do not fit are sent through a pipe, which is slower but unlimited. A worker that dies, or sends nothing
for `STALLED_S` seconds, raises an error.
"""

import multiprocessing
import pickle
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mixmim_bench.data.batch import Batch, as_arrays, as_tensors
from mixmim_bench.errors import BenchError

STALLED_S = 600  # seconds without a batch
POLL_S = 5  # seconds after which to look whether the workers are alive


@dataclass(frozen=True)
class _Piped:
    """A batch as arrays, sent through a pipe, and the reason."""

    batch: Batch
    reason: str


@dataclass(frozen=True)
class _HandOver:
    """Collates items and, in a worker, moves the batch to shared memory.

    Torch would do so in a thread, where a failure prints an error and drops the batch.
    """

    collate: Callable[[Sequence[Any]], Batch]

    def __call__(self, items: Sequence[Any]) -> Batch | _Piped:
        batch = self.collate(items)
        if get_worker_info() is None:
            return batch
        try:
            return batch.map(Tensor.share_memory_)
        except (RuntimeError, OSError) as error:
            return _Piped(as_arrays(batch), str(error))


def in_workers(
    dataset: Dataset,
    groups: Sequence[list[int]],
    collate: Callable[[Sequence[Any]], Batch],
    workers: int,
) -> Iterator[Batch]:
    """Load groups of rows in order, one batch per group; with 0 workers, in this process.

    Raises:
        BenchError: a worker died or stalled.
    """
    loaded = _start(dataset, groups, _HandOver(collate), workers)
    try:
        for batch in _in_time(loaded):
            if isinstance(batch, _Piped):
                _warn_about_pipes(workers, batch.reason)
                batch = as_tensors(batch.batch)
            yield batch
    except RuntimeError as error:
        reason = _reason(f"{error} {error.__cause__}", _signal(loaded), workers)
        if not reason:
            raise
        raise BenchError(reason) from error


def _start(dataset: Dataset, groups: Sequence[list[int]], collate: _HandOver, workers: int) -> Iterator[Any]:
    """Start the workers."""

    def start(context: BaseContext | None) -> Iterator[Any]:
        with warnings.catch_warnings():
            # more workers than cores
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            warnings.filterwarnings("ignore", message="Got pickle error")  # handled below
            loader = DataLoader(
                dataset,
                batch_sampler=groups,
                collate_fn=collate,
                num_workers=workers,
                multiprocessing_context=context,
                pin_memory=torch.cuda.is_available(),
                timeout=min(POLL_S, STALLED_S) if workers else 0,
            )
            return iter(loader)

    context = _context(workers)
    try:
        return start(context)
    except (pickle.PicklingError, AttributeError, TypeError):  # cannot be sent to another process
        if context is None:
            raise
        return start(None)


def _in_time(loaded: Iterator[Any]) -> Iterator[Any]:
    """Yield batches; every few seconds without one, torch looks whether a worker has died."""
    since = time.monotonic()
    while True:
        try:
            batch = next(loaded)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader timed out" not in str(error) or time.monotonic() - since >= STALLED_S:
                raise
        else:
            yield batch
            since = time.monotonic()


def _signal(loaded: Iterator[Any]) -> str:
    """Return the description of the signal that ended a worker, '' if none did."""
    codes = [worker.exitcode or 0 for worker in getattr(loaded, "_workers", ())]
    ended = [code for code in codes if code < 0]
    return (signal.strsignal(-ended[0]) or "") if ended else ""


def _context(workers: int) -> BaseContext | None:
    """Return how to start workers: not as copies of a process in which OpenVINO's threads run."""
    if not workers or "openvino" not in sys.modules or sys.platform == "win32":
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mixmim_bench.data.loading"])  # once, not in each worker
    return context


def _warn_about_pipes(workers: int, reason: str) -> None:
    """Warn once per process."""
    if "Too many open files" in reason:
        cause, fix = "the limit on open files is too low", "raise `ulimit -n`"
    else:
        cause, fix = "/dev/shm is too small", "enlarge it (docker run --shm-size=8g)"
    text = (
        f"{cause} for the batches of {workers} workers, so they are sent through pipes, which is slower; "
        f"{fix} or use fewer --workers"
    )
    if text not in _warned:
        _warned.add(text)
        warnings.warn(text, stacklevel=2)


_warned: set[str] = set()


def _reason(text: str, ended_by: str, workers: int) -> str:
    """Explain torch's worker errors, given the signal that ended a worker, if any; '' for other errors."""
    if "DataLoader timed out" in text:
        return (
            f"no batch from the {workers} worker processes for {STALLED_S} s: the disk is not responding, or "
            "they are suspended; rerun the command to resume; --workers 0 reads without worker processes"
        )
    if "DataLoader worker" not in text or not ("killed by signal" in text or "exited unexpectedly" in text):
        return ""
    ended_by = text.partition("killed by signal: ")[2].partition(".")[0] or ended_by
    if ended_by.startswith("Bus error"):
        cause = "/dev/shm is full: enlarge it (docker run --shm-size=8g), or use fewer --workers"
    elif ended_by.startswith("Killed"):
        cause = "probably for lack of memory: use fewer --workers, or a smaller --batch-size"
    else:
        cause = "rerun the command to resume; --workers 0 reads without worker processes"
    return f"a worker process died while reading images ({ended_by or 'it exited'}): {cause}"
