"""Features computed by torch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mixmim_bench.features.layers import Taps
from mixmim_bench.machine import Machine


class TorchReader:
    """Reads features with torch, on any device.

    Args:
        network: a timm model.
        machine: device and precision.
        owned: whether the network is used for nothing else. Then, on a CPU in bfloat16, weights of linear
            layers and convolutions are converted after the first batch, instead of in each pass; features
            stay the same.
    """

    def __init__(self, network: nn.Module, machine: Machine, owned: bool = False) -> None:
        self.machine = machine
        self.taps = Taps(network.to(machine.device).eval())
        self._to_convert = owned and machine.device == "cpu" and machine.precision == "bfloat16"

    @torch.no_grad()
    def read(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the features (b, d) of each layer."""
        if self._to_convert:
            self._to_convert = False
            with _noting_autocast(self.taps.network) as modules:
                values = self.taps.read(images, layers, self.machine.autocast())
            for module, always in modules.items():
                if always:
                    module.to(torch.bfloat16)
            return values
        images = images.to(self.machine.device, non_blocking=True)
        return self.taps.read(images, layers, self.machine.autocast())


@contextmanager
def _noting_autocast(network: nn.Module) -> Iterator[dict[nn.Module, bool]]:
    """Collect the linear layers and convolutions that run, and whether each ran under autocast only.

    Heads run in float32 (see `Taps.read`), and subclasses may use their weights in other ways.
    """
    always: dict[nn.Module, bool] = {}

    def note(module: nn.Module, _: Any) -> None:
        always[module] = always.get(module, True) and torch.is_autocast_enabled("cpu")

    plain = [module for module in network.modules() if type(module) in (nn.Linear, nn.Conv2d)]
    handles = [module.register_forward_pre_hook(note) for module in plain]
    try:
        yield always
    finally:
        for handle in handles:
            handle.remove()
