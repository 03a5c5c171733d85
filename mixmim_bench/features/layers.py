"""Pooled features by name, read from a network in one forward pass.

| name | features |
| --- | --- |
| `own` | the input of the model's own head (`forward_head(pre_logits=True)`) |
| `logits` | the output of that head |
| `stage1`, `stage2`, … | the mean of a stage's tokens, for networks with stages |
| `cls`, `mean` | the class token, the mean of the patch tokens, for single-grid networks (ViT) |
| `block1`, `block2`, … | the mean of a block's patch tokens, for single-grid networks |
| `last4` | the last four blocks concatenated: class tokens (DINO), else mean tokens |
| `cls+mean`, `last4+mean` | names joined by `+` are concatenated (DINOv2) |

The network's final norm is applied to the last stage, or to every block of a single-grid network, as in DINO
and iBOT; no other norm is added.
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
_STEMS = ("act", "bn", "conv", "stem")  # timm also lists modules before the first stage
_BLOCK = re.compile(r"block(\d+)")


class Taps:
    """Reads features from the layers of a timm model with forward hooks."""

    def __init__(self, network: Any) -> None:
        self.network = network
        modules = dict(network.named_modules())
        infos = {str(info.get("module", "")): info for info in getattr(network, "feature_info", None) or ()}
        paths = [path for path in infos if path in modules and not path.startswith(_STEMS)]
        one_grid = len({infos[path].get("reduction") for path in paths}) == 1
        self.flat = one_grid and all(path == f"blocks.{i}" for i, path in enumerate(paths))
        self.stages: list[nn.Module] = [] if self.flat else [modules[path] for path in paths]
        self.prefix: int = (getattr(network, "num_prefix_tokens", 0) or 0) if self.flat else 0
        self.blocks: list[tuple[nn.Module, Any]]  # with their stages, if any
        if self.flat:
            self.blocks = [(modules[path], None) for path in paths]
        else:
            self.blocks = [
                (block, stage) for stage in self.stages for block in getattr(stage, "blocks", None) or ()
            ]
        norm = getattr(network, "norm", None)
        self.norm: Any = norm if isinstance(norm, nn.Module) else None

    def names(self) -> list[str]:
        """Return the layers that `auto` tries."""
        names = [OWN]
        if self.flat:
            names += ["cls", "mean"] if self.prefix else ["mean"]
        else:
            names += [f"stage{i}" for i in range(1, len(self.stages))]  # the last stage is `own`
        return [*names, "last4"] if len(self.blocks) >= 4 else names

    def check(self, layer: str) -> None:
        """Raise BenchError if the network does not have a layer."""
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
        """Run the network on images (b, 3, H, W) and return the features (b, d) of each layer, in float32."""
        parts = {name for layer in layers for name in layer.split("+")}
        with self._hooks(parts) as outputs:
            with autocast:
                tokens = self.network.forward_features(images)
            # pooling and head in float32: rounded logits tie, and ties are decided by class order
            tokens = tree_map(torch.Tensor.float, tokens)  # some networks return several tensors
            pooled = {name: self._pool(name, tokens, outputs) for name in parts}
        return {layer: torch.cat([pooled[name] for name in layer.split("+")], dim=1) for layer in layers}

    @contextmanager
    def _hooks(self, parts: set[str]) -> Iterator[dict[nn.Module, Tensor]]:
        """Collect the outputs of the modules that the parts are computed from."""
        outputs: dict[nn.Module, Tensor] = {}
        grids: dict[nn.Module, tuple[int, int]] = {}

        def keep(module: nn.Module, _: Any, output: Tensor) -> None:
            stage: Any = stages_of.get(module)
            if hasattr(stage, "tokens_of_windows"):
                output = stage.tokens_of_windows(output, grids[stage])
            outputs[module] = output.float()

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
            yield outputs
        finally:
            for handle in handles:
                handle.remove()

    def _modules(self, name: str) -> list[nn.Module]:
        """Return the modules that a part is computed from, besides the final tokens."""
        if match := _STAGE.fullmatch(name):
            return [self.stages[int(match[1]) - 1]]
        if match := _BLOCK.fullmatch(name):
            return [self.blocks[int(match[1]) - 1][0]]
        if match := _LAST.fullmatch(name):
            return [block for block, _ in self.blocks[-int(match[1]) :]]
        return []

    def _pool(self, name: str, tokens: Any, outputs: dict[nn.Module, Tensor]) -> Tensor:
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
                [self._pool_module(module, outputs[module], class_tokens) for module in modules], 1
            )
        if pooled.ndim != 2:
            raise ValueError(f"the backbone returns features of shape {tuple(pooled.shape)}, not (b, d)")
        return pooled

    def _pool_module(self, module: nn.Module, tokens: Tensor, class_tokens: bool) -> Tensor:
        """Pool tokens (b, n, c), (b, h, w, c) or (b, c, h, w), normalised if they are of the last stage."""
        if tokens.ndim == 4 and getattr(self.network, "output_fmt", "NCHW") != "NHWC":
            tokens = tokens.permute(0, 2, 3, 1)
        in_last_stage = (
            self.flat or module is self.stages[-1] or dict(self.blocks).get(module) is self.stages[-1]
        )
        if in_last_stage and self.norm is not None:
            tokens = self.norm(tokens)
        if class_tokens:
            return tokens[:, 0]
        return tokens[:, self.prefix :].mean(1) if tokens.ndim == 3 else tokens.mean((1, 2))


def choose_layers(network: Any, layer: str) -> list[str]:
    """Resolve a layer option to a list: the layer itself, or all that `auto` tries; raises BenchError."""
    taps = Taps(network)
    if layer == AUTO:
        return taps.names()
    taps.check(layer)
    return [layer]
