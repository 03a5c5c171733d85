"""Inference engines: how the features of a frozen network are computed.

An engine is a module with a `Reader` and a function that opens one. Features of different engines differ by
rounding only, so the engine is part of the feature key and of the provenance of a result, but not of the
identity of a run.
"""

import importlib.util
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol

from mixmim_bench.errors import BenchError
from mixmim_bench.specs import COMPILE, OPENVINO, TORCH

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mixmim_bench.machine import Machine

# Seconds of torch's forward passes from which a conversion (5 to 35 s) pays, and torch's speed by precision,
# in GMACs per second and thread, to estimate them. Constants, so that a command always makes the same choice.
PAYS_FROM_S = 120.0
TORCH_GMACS_PER_S = {"float32": 30.0, "bfloat16": 60.0}


class Reader(Protocol):
    """Reads the features of images from a frozen network."""

    def read(self, images: "Tensor", layers: Sequence[str]) -> "Mapping[str, Tensor]":
        """Return the features (b, d) of each layer, float32, for images (b, 3, h, w) on any device.

        They are on the machine's device, where they may still be being computed.
        """


class Unsuitable(BenchError):
    """An engine cannot compute a network, or computes different features."""


@dataclass(frozen=True)
class Source:
    """A network to be opened by an engine.

    Attributes:
        key: JSON values that identify the network and its weights.
        build: builds the network with its weights.
        layers: those that will be read; torch can read others too.
        sample: returns a few normalised images (b, 3, h, w), real ones, on which engines are compared.
    """

    key: Mapping[str, Any]
    build: "Callable[[], nn.Module]"
    layers: Sequence[str]
    sample: "Callable[[], Tensor]"

    def images(self) -> "Tensor":
        """Return the images to compare engines on; raises BenchError if none can be read."""
        images = self.sample()
        if not len(images):
            raise BenchError("none of the images to compare engines on can be read")
        return images


def open_reader(engine: str, source: Source, machine: "Machine") -> Reader:
    """Open a network with an engine; raises Unsuitable."""
    if engine == OPENVINO:
        from mixmim_bench.features.engines.openvino import open_converted

        return open_converted(source, machine)
    if engine == COMPILE:
        from mixmim_bench.features.engines.compiled import open_compiled

        return open_compiled(source, machine)
    from mixmim_bench.features.engines.torch import TorchReader

    return TorchReader(source.build(), machine, owned=True)


def is_installed() -> bool:
    """Whether OpenVINO is installed; does not import it."""
    return importlib.util.find_spec(OPENVINO) is not None


def engine_with_version(engine: str) -> str:
    """Return the name of an engine with its version, for the provenance of results."""
    return f"{engine} {metadata.version(TORCH if engine == COMPILE else engine)}"


def usable_engines(machine: "Machine") -> tuple[str, ...]:
    """Return the engines that a machine can use."""
    on_cpu = (OPENVINO,) if machine.device == "cpu" and is_installed() else ()
    return (TORCH, *on_cpu, COMPILE)


def check_engine(engine: str, machine: "Machine") -> None:
    """Check that a machine can use an engine requested by name, or 'auto'; raises BenchError."""
    if engine != OPENVINO:
        return
    if not is_installed():
        raise BenchError(
            "--engine openvino: OpenVINO is not installed; `pip install openvino`, or use --engine torch"
        )
    if machine.device != "cpu":
        raise BenchError(f"--engine openvino computes on a CPU, not on {machine.device}; use --engine torch")


def choose_engine(machine: "Machine", gmacs: float) -> str:
    """Choose the engine for a network: OpenVINO on an x86 CPU if the work pays for a conversion.

    Args:
        machine: the machine to compute on.
        gmacs: the work, in GMACs of forward passes.
    """
    seconds = gmacs / (machine.threads * TORCH_GMACS_PER_S[machine.precision])
    faster = platform.machine() in ("x86_64", "AMD64") and machine.precision_is_native
    return OPENVINO if OPENVINO in usable_engines(machine) and faster and seconds >= PAYS_FROM_S else TORCH
