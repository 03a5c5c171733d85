"""Running out of memory: recognised, raised instead of killing the process, and described in records."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size

from mixmim_bench.machine import Machine


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the GPU or the machine ran out of memory."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, Exception):
        return False
    texts = ("std::bad_alloc", "not enough memory", "out of memory", "could not create a primitive")
    return should_reduce_batch_size(error) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    )


def halved(what: str, asked: int, used: int) -> str:
    """Describe a fallback from batch size `asked` to `used` for lack of memory."""
    return f"{what}: out of memory at batch size {asked}, used {used}"


def available_bytes() -> int:
    """Return the memory still available to this process, within any container limit."""
    available = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        if limit != "max":
            # the page cache counts as used, but is reclaimed on demand
            cached = int(statistics.get("inactive_file", 0)) + int(statistics.get("active_file", 0))
            available = min(available, max(int(limit) - used + cached, 0))
    except (OSError, ValueError):
        pass
    return available


@contextmanager
def memory_errors(machine: Machine) -> Iterator[None]:
    """Make running out of memory raise instead of killing the process.

    Linux kills a process that allocates too much. With its data limited to just under the available
    memory, the allocation fails instead, and the batch can be halved.
    """
    if torch.device(machine.device).type != "cpu" or platform.system() != "Linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    limit = held + int(0.95 * available_bytes())
    ceilings = [limit] + [bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(ceilings), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
