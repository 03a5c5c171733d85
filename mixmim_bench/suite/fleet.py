"""The processes that do the runs of a suite: one per device, or one that can be ended after a time limit."""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mixmim_bench import processes
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.errors import BenchError, counted, nearest

ALL = "all"
LOCAL = "auto"  # the Ray cluster that this machine belongs to, or one of this machine alone
CPU = "cpu"
TWO_ON_CPU = "cpu,cpu starts two processes that share the CPU"


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The worker processes of a suite.

    Attributes:
        devices: one process each.
        settings: of `open_machine`, without the device.
        roots: where the images are.
        timeout_s: seconds for each run; 0: no limit.
    """

    devices: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    roots: DataRoots = field(default_factory=DataRoots)
    timeout_s: float = 0.0

    def __post_init__(self) -> None:
        _check_one_process("--devices and --timeout-per-run start processes of their own")

    def names(self) -> list[str]:
        """Return names of the processes for messages; a single one needs none."""
        if len(self.devices) == 1:
            return [""]
        return [f"{CPU}:{i}" if device == CPU else device for i, device in enumerate(self.devices)]


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster and what runs need of it.

    Attributes:
        address: of the cluster, or 'auto'.
        settings: of `open_machine` on the nodes, without the device.
        roots: where the images are.
        gpus_per_run: 0 for the CPU; None: one if the nodes have GPUs.
        timeout_s: seconds for each run; 0: no limit.
    """

    address: str = LOCAL
    settings: Mapping[str, Any] = field(default_factory=dict)
    roots: DataRoots = field(default_factory=DataRoots)
    gpus_per_run: float | None = None
    timeout_s: float = 0.0

    def __post_init__(self) -> None:
        if importlib.util.find_spec("ray") is None:
            raise BenchError("--ray needs Ray: pip install 'mixmim-bench[ray]'")
        _check_one_process("--ray starts tasks on the nodes of a cluster")


def _check_one_process(what: str) -> None:
    if processes.count() > 1:
        raise BenchError(
            f"{what}, and this is one of {processes.count()} processes of torchrun or accelerate launch: "
            "leave out one or the other"
        )


def parse_devices(text: str, gpus: int) -> tuple[str, ...]:
    """Parse the devices of a fleet: GPUs by index, `all`, or `cpu` once for each process.

    Args:
        text: such as '0,1', 'cuda:0,cuda:1', 'all', 'cpu,cpu' or 'cpu:0,cpu:1'.
        gpus: how many there are.

    Raises:
        BenchError: a device is unknown, does not exist, or is named twice; or GPUs and CPU are mixed.
    """
    known = [f"cuda:{i}" for i in range(gpus)]
    if text.strip() == ALL:
        if not known:
            raise BenchError(f"--devices {ALL}: this machine has no GPU; {TWO_ON_CPU}")
        return tuple(known)
    devices = [_device(name.strip(), text, known) for name in text.split(",")]
    on_gpu = [device for device in devices if device != CPU]
    if on_gpu and len(on_gpu) < len(devices):
        raise BenchError(f"--devices {text}: name GPUs or the CPU, not both")
    twice = [device for device in on_gpu if on_gpu.count(device) > 1]
    if twice:
        raise BenchError(f"--devices {text}: {twice[0]} is named twice; each GPU does one run at a time")
    return tuple(devices)


def _device(name: str, text: str, known: list[str]) -> str:
    if re.fullmatch(rf"{CPU}(:\d+)?", name):
        return CPU
    device = f"cuda:{name}" if name.isdecimal() else name
    if device in known:
        return device
    if not re.fullmatch(r"cuda:\d+", device):
        hint = nearest(name, [*known, CPU, ALL])
        raise BenchError(f"--devices {text}: no device {name!r}; {hint}")
    there = (
        f"it has {counted(len(known), 'GPU')}: {', '.join(known)}"
        if known
        else f"it has no GPU; {TWO_ON_CPU}"
    )
    raise BenchError(f"--devices {text}: no {device} in this machine; {there}")
