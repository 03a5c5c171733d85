"""The machine: device, precision, threads, batch size and workers."""

import os
import platform
import shutil
import time
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from mixmim_bench.errors import BenchError
from mixmim_bench.specs import AUTO

CPU_BATCH, GPU_BATCH = 64, 256
MOST_WORKERS = 16
BATCHES_PER_WORKER = 3  # two prefetched, one in preparation
SHARED_MEMORY = Path("/dev/shm")  # Linux passes batches here


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The device and settings that the suite computes with."""

    device: str
    precision: str = "float32"
    batch_size: int = CPU_BATCH  # for inference; changes results only by rounding
    workers: int = 0  # processes that decode images

    @property
    def asynchronous(self) -> bool:
        """Whether computing returns before it is done, so that the host can prepare the next batch."""
        return self.device.startswith("cuda")

    def autocast(self) -> torch.autocast:
        """Return a context that computes in the chosen precision; parameters stay float32."""
        kind = torch.device(self.device).type
        return torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bfloat16")

    @property
    def threads(self) -> int:
        """The CPU threads for computation."""
        return torch.get_num_threads()

    @property
    def precision_is_native(self) -> bool:
        """Whether the device supports the precision without emulation."""
        return self.precision == "float32" or computes_in_bfloat16(self.device)

    @property
    def is_slower_than_needed(self) -> bool:
        """Whether a GPU that supports bfloat16 natively computes in float32."""
        return self.asynchronous and self.precision == "float32" and computes_in_bfloat16(self.device)

    @cached_property
    def matmul_gmacs_per_s(self) -> float:
        """The matrix-multiply peak in GMACs per second, measured once."""
        return measure_matmul_peak(self.device, self.precision)

    def describe(self) -> dict[str, Any]:
        """Describe the hardware that a measured speed depends on."""
        return {
            "device": torch.cuda.get_device_name(self.device) if self.asynchronous else _processor(),
            "threads": self.threads,
        }


def measure_matmul_peak(device: str, precision: str) -> float:
    """Measure the matrix-multiply peak in GMACs per second: the best of a few large products."""
    n = 8192 if device.startswith("cuda") else 1024  # large enough to fill the device
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a = torch.randn(n, n, device=device, dtype=kind)
    best = 0.0
    for _ in range(5):
        clock = time.perf_counter()
        (a @ a)[0, 0].item()
        best = max(best, n**3 / (time.perf_counter() - clock) / 1e9)
    return best


def open_machine(
    device: str = AUTO,
    precision: str = "float32",
    threads: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
) -> Machine:
    """Choose the device and precision, and set the number of threads.

    Args:
        device: a torch device; 'auto' uses a GPU if available.
        precision: 'float32' or 'bfloat16'; 'auto' uses bfloat16 if the device supports it natively.
        threads: the number of CPU threads; torch's default if None.
        batch_size: images per batch for inference; by default 64, on a GPU 256, halved if memory runs out.
        workers: processes that decode images; by default 0, on a GPU by cores and free shared memory.

    Raises:
        BenchError: the device is not available.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if device == AUTO:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)  # Accelerate uses the current device
    except (RuntimeError, AssertionError) as error:
        raise BenchError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    if precision == AUTO:
        precision = "bfloat16" if computes_in_bfloat16(device) else "float32"
    if batch_size is None:
        batch_size = GPU_BATCH if device.startswith("cuda") else CPU_BATCH
    if workers is None:
        workers = _workers_for_gpu(batch_size) if device.startswith("cuda") else 0
    return Machine(device=device, precision=precision, batch_size=batch_size, workers=workers)


def _workers_for_gpu(batch_size: int) -> int:
    """Choose the number of worker processes: one per spare core, as far as /dev/shm holds their batches."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores - 1, MOST_WORKERS)
    if SHARED_MEMORY.is_dir():
        batch_bytes = 4 * 3 * 224**2 * batch_size
        workers = min(workers, shutil.disk_usage(SHARED_MEMORY).free // (BATCHES_PER_WORKER * batch_bytes))
    return max(workers, 0)


def computes_in_bfloat16(device: str) -> bool:
    """Whether a device supports bfloat16 natively; emulated, it is slower than float32."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # older versions of torch do not report capabilities
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
