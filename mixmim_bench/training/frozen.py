"""Linear heads on layers of a frozen backbone, trained together on images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from timm.optim import Lars
from torch import Tensor, nn

from mixmim_bench.features.engines import Reader
from mixmim_bench.machine import Machine
from mixmim_bench.seeding import generator


class FrozenProbe(nn.Module):
    """A frozen backbone with linear heads, optionally behind a BatchNorm without weights.

    layers: the layer of each head. No gradient goes through the backbone.
    """

    def __init__(
        self,
        backbone: Reader,
        layers: Sequence[str],
        num_classes: int,
        *,
        batch_norm: bool,
        init_std: float,
        seed: int,
        machine: Machine,
        size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.machine = machine
        self.layers = list(layers)
        images = torch.zeros(1, 3, *size, device=machine.device)
        widths = {layer: read.shape[1] for layer, read in self._read(images).items()}
        self.norms = nn.ModuleDict(
            {
                layer.replace("+", " "): nn.BatchNorm1d(width, affine=False, eps=1e-6)
                for layer, width in widths.items()
                if batch_norm
            }
        )
        self.heads = nn.ModuleList(nn.Linear(widths[layer], num_classes) for layer in self.layers)
        for place, head in enumerate(self.heads):
            nn.init.trunc_normal_(head.weight, std=init_std, generator=generator(seed, place))  # type: ignore[arg-type]
            nn.init.zeros_(head.bias)  # type: ignore[arg-type]

    def _read(self, images: Tensor) -> Mapping[str, Tensor]:
        """Read the features of all layers, as many images at a time as for inference."""
        layers = list(dict.fromkeys(self.layers))
        pieces = [self.backbone.read(piece, layers) for piece in images.split(self.machine.batch_size)]
        return {layer: torch.cat([piece[layer] for piece in pieces]) for layer in layers}

    def _normed(self, layer: str, features: Tensor) -> Tensor:
        key = layer.replace("+", " ")
        return self.norms[key](features) if key in self.norms else features

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the logits (b, K) of each head."""
        features = {layer: self._normed(layer, x) for layer, x in self._read(images).items()}
        return [head(features[layer]) for head, layer in zip(self.heads, self.layers, strict=True)]

    @torch.inference_mode()
    def logits(self, place: int, features: np.ndarray) -> np.ndarray:
        """Return the logits (n, K) of one head for features (n, d) of its layer."""
        self.eval()
        blocks = []
        for start in range(0, len(features), 8192):
            block = torch.from_numpy(np.array(features[start : start + 8192])).to(self.machine.device)
            blocks.append(self.heads[place](self._normed(self.layers[place], block)).cpu().numpy())
        return np.concatenate(blocks)

    def optimizer(self, name: str, rates: Sequence[float], momentum: float) -> torch.optim.Optimizer:
        """Return LARS or SGD with a learning rate per head; LARS does not adapt biases, as in MAE."""
        groups: list[dict[str, Any]] = []
        for head, lr in zip(self.heads, rates, strict=True):
            groups.append({"params": [head.weight], "lr": lr, "always_adapt": True})
            groups.append({"params": [head.bias], "lr": lr, "always_adapt": False})
        if name == "lars":
            return Lars(groups, momentum=momentum, trust_coeff=0.001)
        return torch.optim.SGD(
            [{"params": group["params"], "lr": group["lr"]} for group in groups], momentum=momentum
        )
