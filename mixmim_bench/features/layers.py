"""Pooled features by name: what can be read out of a network in one forward pass.

| name | what it is |
| --- | --- |
| `own` | what the model's own head reads (`forward_head(pre_logits=True)`) |
| `logits` | what that head gives |
| `stage1`, `stage2`, … | the mean of a stage's tokens, of networks with stages |
| `cls`, `mean` | the class token, the mean of the patch tokens, of networks with one grid (ViT) |
| `block1`, `block2`, … | the mean of a block's patch tokens, of networks with one grid |
| `last4` | the last four blocks side by side: class tokens (DINO), or means of tokens where there are none |
| `cls+mean`, `last4+mean` | names joined by `+` stand side by side (DINOv2) |

The network's final norm is applied to what has its width and follows the last merging, as DINO and iBOT do;
no norm is ever made up.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mixmim_bench.errors import BenchError, nearest
from mixmim_bench.features import LOGITS, OWN
from mixmim_bench.specs import AUTO

_LAST = re.compile(r"last(\d+)")
_STAGE = re.compile(r"stage(\d+)")
_STEMS = ("act", "bn", "conv", "stem")  # timm lists what comes before the first stage too
_BLOCK = re.compile(r"block(\d+)")


class Taps:
    """Where the features of a timm model are read."""

    def __init__(self, network: Any) -> None:
        self.network = network
        modules = dict(network.named_modules())
        paths = [str(info.get("module", "")) for info in getattr(network, "feature_info", None) or ()]
        paths = [path for path in paths if path in modules and not path.startswith(_STEMS)]
        self.flat = bool(paths) and all(path == f"blocks.{i}" for i, path in enumerate(paths))
        self.stages: list[nn.Module] = [] if self.flat else [modules[path] for path in paths]
        self.prefix: int = (getattr(network, "num_prefix_tokens", 0) or 0) if self.flat else 0
        self.blocks: list[tuple[nn.Module, Any]]  # with their stages, if there are any
        if self.flat:
            self.blocks = [(modules[path], None) for path in paths]
        else:
            self.blocks = [
                (block, stage) for stage in self.stages for block in getattr(stage, "blocks", None) or ()
            ]
        norm = getattr(network, "norm", None)
        self.norm: Any = norm if isinstance(norm, nn.Module) else None

    def names(self) -> list[str]:
        """Name what `auto` tries."""
        found = [OWN]
        if self.flat:
            found += ["cls", "mean"] if self.prefix else ["mean"]
        else:
            found += [f"stage{i}" for i in range(1, len(self.stages))]  # the last one is the model's own
        return [*found, "last4"] if len(self.blocks) >= 4 else found

    def check(self, layer: str) -> None:
        """Raise BenchError for a layer that the network does not have."""
        known = [*self.names(), LOGITS]
        known += [f"stage{i + 1}" for i in range(len(self.stages))]
        known += [f"block{i + 1}" for i in range(len(self.blocks) if self.flat else 0)]
        known += [f"last{i + 1}" for i in range(len(self.blocks))]
        for name in layer.split("+"):
            if name not in known:
                raise BenchError(
                    f"no layer {name!r} in {type(self.network).__name__}; {nearest(name, known)}"
                )

    def read(self, images: Tensor, layers: Sequence[str], autocast: Any) -> dict[str, Tensor]:
        """Run the network on images (b, 3, H, W): the features (b, d) of each layer, in float32."""
        parts = {name for layer in layers for name in layer.split("+")}
        with self._hooks(parts) as seen:
            with autocast:
                tokens = self.network.forward_features(images)
            # pooling and head in float32: rounded logits tie, and the order of the classes decides a tie
            tokens = tree_map(torch.Tensor.float, tokens)  # some networks give several
            pooled = {name: self._pool(name, tokens, seen) for name in parts}
        return {layer: torch.cat([pooled[name] for name in layer.split("+")], dim=1) for layer in layers}

    @contextmanager
    def _hooks(self, parts: set[str]) -> Iterator[dict[nn.Module, Tensor]]:
        """Keep what the modules give that the parts are made of."""
        seen: dict[nn.Module, Tensor] = {}
        grids: dict[nn.Module, tuple[int, int]] = {}

        def keep(module: nn.Module, _: Any, output: Tensor) -> None:
            stage: Any = stages_of.get(module)
            if hasattr(stage, "tokens_of_windows"):
                output = stage.tokens_of_windows(output, grids[stage])
            seen[module] = output.float()

        def note_grid(stage: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            grids[stage] = (inputs[0].shape[1], inputs[0].shape[2])

        wanted = [module for name in parts for module in self._modules(name)]
        stages_of = {block: stage for block, stage in self.blocks if stage is not None}
        handles = [module.register_forward_hook(keep) for module in dict.fromkeys(wanted)]
        handles += [
            stage.register_forward_pre_hook(note_grid)
            for stage in {stages_of[module]: None for module in wanted if module in stages_of}
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def _modules(self, name: str) -> list[nn.Module]:
        """Say which modules a part is made of, apart from the final tokens."""
        if match := _STAGE.fullmatch(name):
            return [self.stages[int(match[1]) - 1]]
        if match := _BLOCK.fullmatch(name):
            return [self.blocks[int(match[1]) - 1][0]]
        if match := _LAST.fullmatch(name):
            return [block for block, _ in self.blocks[-int(match[1]) :]]
        return []

    def _pool(self, name: str, tokens: Any, seen: dict[nn.Module, Tensor]) -> Tensor:
        if name in (OWN, LOGITS):
            pooled = self.network.forward_head(tokens, pre_logits=name == OWN)
        elif name == "cls":
            pooled = tokens[:, 0]
        elif name == "mean":
            pooled = tokens[:, self.prefix :].mean(1)
        else:
            modules = self._modules(name)
            class_tokens = bool(_LAST.fullmatch(name)) and self.prefix > 0
            pooled = torch.cat(
                [self._pool_module(module, seen[module], class_tokens) for module in modules], 1
            )
        if pooled.ndim != 2:
            raise ValueError(f"the backbone gives features of shape {tuple(pooled.shape)}, not (b, d)")
        return pooled

    def _pool_module(self, module: nn.Module, tokens: Tensor, class_tokens: bool) -> Tensor:
        """Pool (b, n, c), (b, h, w, c) or (b, c, h, w), normalised if it is of the last stage."""
        if tokens.ndim == 4 and getattr(self.network, "output_fmt", "NCHW") != "NHWC":
            tokens = tokens.permute(0, 2, 3, 1)
        of_last = self.flat or module is self.stages[-1] or dict(self.blocks).get(module) is self.stages[-1]
        if of_last and self.norm is not None:
            tokens = self.norm(tokens)
        if class_tokens:
            return tokens[:, 0]
        return tokens[:, self.prefix :].mean(1) if tokens.ndim == 3 else tokens.mean((1, 2))


def choose_layers(network: Any, layer: str) -> list[str]:
    """List the layers that a choice stands for: one, or all that `auto` tries; raises BenchError."""
    taps = Taps(network)
    if layer == AUTO:
        return taps.names()
    taps.check(layer)
    return [layer]
