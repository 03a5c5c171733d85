"""Features computed by a network that torch.compile has compiled, on any device.

Compiling takes minutes and a C++ compiler on a CPU; compiled features differ by rounding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mixmim_bench.features.engines import Source, Unsuitable
from mixmim_bench.features.engines.agreement import difference_of
from mixmim_bench.features.engines.torch import TorchReader
from mixmim_bench.machine import Machine


class CompiledReader(TorchReader):
    """Reads features with a compiled network; see `TorchReader`."""

    def __init__(self, network: nn.Module, machine: Machine) -> None:
        super().__init__(network, machine)

        def read(images: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
            return self.taps.read(images, layers, self.machine.autocast())

        self._compiled = torch.compile(read)

    @torch.no_grad()
    def read(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the features (b, d) of each layer."""
        return self._compiled(self._to_device(images), tuple(layers))


def open_compiled(source: Source, machine: Machine) -> CompiledReader:
    """Compile a network, and compare it with the original in float32 on a few images; raises Unsuitable."""
    layers = list(source.layers)
    images = source.images()
    plain = Machine(device=machine.device)
    expected = TorchReader(source.build(), plain).read(images, layers)
    reader = CompiledReader(source.build(), machine)
    try:
        computed = reader.read(images, layers)
    except Exception as error:  # of the compiler
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise Unsuitable(f"torch.compile cannot compile the network: {reason}") from error
    if difference := difference_of(expected, computed, machine.precision):
        raise Unsuitable(f"the compiled network computes other features: {difference}")
    return reader
