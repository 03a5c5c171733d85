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

from mixmim_bench import processes
from mixmim_bench.errors import BenchError
from mixmim_bench.specs import AUTO

CPU_BATCH, GPU_BATCH = 64, 256
MOST_WORKERS = 16
BATCHES_PER_WORKER = 3  # two prefetched, one in preparation
SHARED_MEMORY = Path("/dev/shm")  # Linux passes batches here


_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The device and settings that the suite computes with."""

    device: str
    precision: str = "float32"
    batch_size: int = CPU_BATCH  # for inference; changes results only by rounding
    given_batch_size: int = 0  # by the user; also of images that are trained on at a time
    workers: int = 0  # processes that decode images
    grad_checkpointing: bool = False  # recompute activations in the backward pass, which saves memory
    compile_training: bool = False  # torch.compile
    sharded: bool = False  # of several processes, each holds a share of weights and optimizer state

    @property
    def asynchronous(self) -> bool:
        """Whether computing returns before it is done, so that the host can prepare the next batch."""
        return self.device.startswith("cuda")

    def autocast(self) -> torch.autocast:
        """Return a context that computes in the chosen precision; parameters stay float32."""
        kind = torch.device(self.device).type
        return torch.autocast(kind, _HALF.get(self.precision), enabled=self.precision in _HALF)

    @property
    def threads(self) -> int:
        """The CPU threads for computation."""
        return torch.get_num_threads()

    @property
    def precision_is_native(self) -> bool:
        """Whether the device supports the precision without emulation."""
        return self.precision != "bfloat16" or computes_in_bfloat16(self.device)

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
    kind = _HALF.get(precision, torch.float32)
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
    grad_checkpointing: bool = False,
    compile_training: bool = False,
    sharded: bool = False,
    beside: int = 1,
) -> Machine:
    """Choose the device and precision, set the number of threads, and connect the processes of a job.

    Args:
        device: a torch device; 'auto' uses a GPU if available, each process of a job its own.
        precision: 'float32', 'bfloat16' or, on a GPU, 'float16'; 'auto' uses bfloat16 if the device supports
            it natively.
        threads: the number of CPU threads; torch's default if None.
        batch_size: images per batch for inference, by default 64, on a GPU 256, halved if memory runs out;
            and images that are trained on at a time, by default as many as make sense on the device.
        workers: processes that decode images; by default 0, on a GPU by cores and free shared memory.
        grad_checkpointing: recompute activations in the backward pass.
        compile_training: use torch.compile for training.
        sharded: shard weights and optimizer state over the processes of a job.
        beside: how many processes of a suite share the cores and memory, by default evenly.

    Raises:
        BenchError: the device is not available.
    """
    if device == AUTO:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and processes.count() > 1:
        device = f"cuda:{processes.local_index()}"
    try:
        torch.empty(1, device=device)
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)  # Accelerate uses the current device
    except (RuntimeError, AssertionError) as error:
        raise BenchError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    if precision == AUTO:
        precision = "bfloat16" if computes_in_bfloat16(device) else "float32"
    if precision == "float16" and not device.startswith("cuda"):
        raise BenchError(f"float16 needs a GPU, not {device!r}; use bfloat16 or float32")
    if sharded and processes.count() == 1:
        raise BenchError(
            "--fsdp shards over several processes; start them with torchrun or accelerate launch"
        )
    processes.connect(device)
    if threads is None and beside > 1:
        threads = max(1, _threads_of_torch() // beside)
    if threads is not None:  # after connecting, which sets it too on a CPU
        torch.set_num_threads(threads)
    given = batch_size or 0
    if batch_size is None:
        batch_size = GPU_BATCH if device.startswith("cuda") else CPU_BATCH
    if workers is None:
        workers = _workers_for_gpu(batch_size, beside) if device.startswith("cuda") else 0
    return Machine(
        device=device,
        precision=precision,
        batch_size=batch_size,
        given_batch_size=given,
        workers=workers,
        grad_checkpointing=grad_checkpointing,
        compile_training=compile_training,
        sharded=sharded,
    )


@cache
def _threads_of_torch() -> int:
    """Return torch's number of threads before this package has changed it."""
    return torch.get_num_threads()


def _workers_for_gpu(batch_size: int, beside: int = 1) -> int:
    """Choose the number of worker processes: one per spare core, as far as /dev/shm holds their batches."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    beside *= processes.local_count()  # which share cores and memory
    workers = min(cores // beside - 1, MOST_WORKERS)
    if SHARED_MEMORY.is_dir():
        batch_bytes = 4 * 3 * 224**2 * batch_size
        free = shutil.disk_usage(SHARED_MEMORY).free // beside
        workers = min(workers, free // (BATCHES_PER_WORKER * batch_bytes))
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
