"""The processes of a job started by `torchrun` or `accelerate launch`, and what they tell each other.

The main process leads: it alone plans, writes and shows progress; the others take part in its trainings.
Messages go through gloo groups of their own, so that they need no GPU and may wait for hours. Without a
launcher there is one process, and nothing here imports torch.
"""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

from mixmim_bench.errors import BenchError, UnreadableImages

PATIENCE = timedelta(days=30)  # for the next run: the main process may do other work meanwhile
IN_STEP = timedelta(hours=2)  # for the others within a run; then they are stuck


class ProcessLost(BenchError):
    """Another process of the job has ended."""


class InAll(BenchError):
    """An error that every process raises at the same place, so that they can go on together."""


def in_all(error: BaseException) -> bool:
    """Whether every process raises an error: InAll, and what each finds in the same features."""
    return isinstance(error, InAll | UnreadableImages)


def index() -> int:
    """Return the index of this process in the job."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """Return the number of processes of the job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_index() -> int:
    """Return the index of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_count() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def environment_of_one() -> dict[str, str]:
    """Return the environment for a child process that does not take part in the job."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    }


def is_main() -> bool:
    """Whether this process leads."""
    return index() == 0


def connect(device: str) -> None:
    """Connect the processes of the job, which all call this; does nothing for one process."""
    if count() > 1:
        from accelerate import PartialState

        PartialState(cpu=device == "cpu")
        _group(PATIENCE)
        _group(IN_STEP)
        atexit.register(_disconnect)


def _disconnect() -> None:
    """End the threads of the groups, which may abort the process if it ends before them."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


@cache
def _group(timeout: timedelta) -> Any:
    from torch import distributed

    return distributed.new_group(backend="gloo", timeout=timeout)


@contextmanager
def talking() -> Iterator[None]:
    """Turn the errors of a lost connection into ProcessLost."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if count() > 1 and any(sign in text for sign in ("onnection", "gloo", "NCCL", "socket")):
            raise ProcessLost(
                f"process {index()} of {count()} lost another one, whose own error says why; finished "
                "results and checkpoints are saved: rerun the command to resume "
                f"({text.splitlines()[0][:200]})"
            ) from error
        raise


def total(*values: float) -> list[float]:
    """Sum each value over the processes."""
    if count() == 1:
        return list(values)
    import torch

    summed = torch.tensor(values, dtype=torch.float64)
    with talking():
        torch.distributed.all_reduce(summed, group=_group(IN_STEP))
    return summed.tolist()


def gather(value: Any) -> list[Any]:
    """Return the values of all processes, in order."""
    if count() == 1:
        return [value]
    from torch import distributed

    values = [None] * count()
    with talking():
        distributed.all_gather_object(values, value, group=_group(IN_STEP))
    return values


def broadcast(value: Any = None) -> Any:
    """Return the value of the main process, for which the others may wait for days."""
    if count() == 1:
        return value
    import torch

    values = [value]
    with talking():
        torch.distributed.broadcast_object_list(
            values, src=0, group=_group(PATIENCE), device=torch.device("cpu")
        )
    return values[0]


_leads = False  # whether the other processes wait for what this one broadcasts


@contextmanager
def leading() -> Iterator[None]:
    """Lead the processes that follow (`suite.follow`); they end when the main process has done its work.

    Also if runs failed. After an interruption they are not waiting, and end with the job.
    """
    global _leads
    _leads = True
    try:
        yield
    except SystemExit as ended:
        if ended.code in (None, 0, 1):
            broadcast()
        raise
    finally:
        _leads = False
    broadcast()


def leads() -> bool:
    """Whether this process leads others, which wait for what it broadcasts."""
    return _leads


def raise_together(error: BenchError | None) -> None:
    """Raise InAll in every process if there is an error in any; in a single process, the error itself."""
    if count() == 1:
        if error is not None:
            raise error
    elif total(error is not None)[0]:
        raise InAll(next(text for text in gather(str(error or "")) if text))


def share(items: int, together: int = 1) -> slice:
    """Return the share of this process in some items, contiguous and in multiples of `together`."""
    units = items // together
    start, stop = (units * place // count() * together for place in (index(), index() + 1))
    return slice(start, stop)
