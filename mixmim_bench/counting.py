"""Parameters and multiply-adds, counted by torch on the meta device and by fvcore on real tensors.

One multiply-add is one "FLOP" in the papers, in fvcore and in timm. `gmacs` is fvcore's total: the
multiply-adds of convolutions, linear layers and attention, plus 5 operations per element for a LayerNorm.
"""

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mixmim_bench.models.build import create, own_classes, own_size, try_out
from mixmim_bench.models.objects import device_to_count
from mixmim_bench.specs import ModelSpec

# Operations with multiply-adds; a count that omits one of them is flagged.
MULTIPLYING = (
    "aten::scaled_dot_product_attention",
    "aten::baddbmm",
    "aten::_transformer_encoder_layer_fwd",
    "aten::_native_multi_head_attention",
    "aten::einsum",
    "aten::conv_transpose2d",
)
_MAC_OPERATORS = (
    "conv",
    "linear",
    "matmul",
    "addmm",
    "bmm",
    "einsum",
    "scaled_dot_product_attention",
)


@dataclass(frozen=True)
class Count:
    """The operations of one image, the model's own classifier included."""

    macs: int  # multiply-adds of convolutions, linear layers, matrix products and attention
    total: int  # plus fvcore's few operations per element for norms (fvcore itself: some pools too)
    uncounted: tuple[str, ...] = ()  # operations with multiply-adds that were omitted


def count_parameters(model: ModelSpec) -> int:
    """Count the parameters of a model at its own size, classifier and frozen tables included."""
    with device_to_count(model.arch):
        return parameters_in(create(model, own_size(model), own_classes(model)))


def parameters_in(network: nn.Module) -> int:
    """Count the parameters of a network, plus the frozen tables that publications include."""
    tables = [network.get_buffer(name) for name in getattr(network, "frozen_tables", ())]
    return sum(tensor.numel() for tensor in [*network.parameters(), *tables])


# -- torch's counter, on the meta device -------------------------------------------------------------


def count_on_meta(model: ModelSpec, image_size: tuple[int, int]) -> Count:
    """Count with torch's counter on the meta device, without memory or compute; raises BenchError."""
    try_out(model, image_size)
    with device_to_count(model.arch):
        network = create(model, image_size, own_classes(model)).eval()
        return count_forward(lambda: network(torch.empty(1, 3, *image_size)))


def count_forward(forward: Callable[[], Any]) -> Count:
    """Count what a forward pass computes with torch's counter."""
    with FlopCounterMode(display=False, custom_mapping=_PER_ELEMENT) as counter:
        forward()
    flops = counter.get_flop_counts().get("Global", {})
    norms = sum(flops.get(operator, 0) for operator in _PER_ELEMENT)
    total = sum(flops.values())  # this counter counts two operations per multiply-add
    return Count(macs=(total - norms) // 2, total=total // 2)


def _layer_norm(shape: Sequence[int], _: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    del args, kwargs
    return 2 * (5 if weight is not None else 4) * math.prod(shape)


def _group_norm(shape: Sequence[int], *args: Any, **kwargs: Any) -> int:
    del args, kwargs
    return 2 * 5 * math.prod(shape)


def _batch_norm(shape: Sequence[int], *args: Any, **kwargs: Any) -> int:
    del args, kwargs
    return 2 * 2 * math.prod(shape)


# fvcore's rules, doubled since this counter counts two operations per multiply-add
_PER_ELEMENT = {
    torch.ops.aten.native_layer_norm: _layer_norm,
    torch.ops.aten.native_group_norm: _group_norm,
    torch.ops.aten._native_batch_norm_legit_no_training: _batch_norm,
}


# -- fvcore, on real tensors -------------------------------------------------------------------------


def count_by_fvcore(network: nn.Module, image_size: tuple[int, int]) -> Count:
    """Count one image with fvcore, attention included.

    Gradients are enabled while tracing: without them torch takes fast paths that fvcore does not see.
    """
    with _tracing():
        analysis = _quiet(FlopCountAnalysis(network.eval(), torch.zeros(1, 3, *image_size)))
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
        return _count_of(analysis)


def _count_of(analysis: FlopCountAnalysis) -> Count:
    by_operator = analysis.by_operator()
    uncounted = tuple(op for op in analysis.unsupported_ops() if op in MULTIPLYING)
    macs = sum(int(by_operator.get(name, 0)) for name in _MAC_OPERATORS)
    return Count(macs, int(analysis.total()), uncounted)


def count_module(module: nn.Module, shapes: Sequence[Any]) -> tuple[Count, Count]:
    """Count a part of a network by torch's counter and by fvcore.

    shapes: of the input of its forward method: a shape, or a list of shapes for a list of tensors.
    """
    twin = copy.deepcopy(module).eval()
    on_meta = copy.deepcopy(twin).to("meta")
    by_torch = count_forward(lambda: on_meta(*_zeros(shapes, "meta")))
    with _tracing():
        analysis = _quiet(FlopCountAnalysis(twin.cpu().float(), tuple(_zeros(shapes, "cpu"))))
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
        return by_torch, _count_of(analysis)


def _zeros(shapes: Sequence[Any], device: str) -> list[Any]:
    return [
        _zeros(shape, device) if isinstance(shape, list) else torch.zeros(shape, device=device)
        for shape in shapes
    ]


def count_activations(network: nn.Module, image_size: tuple[int, int]) -> int:
    """Count the activations of one image with fvcore; fused attention counts its result only."""
    with _tracing():
        analysis = _quiet(ActivationCountAnalysis(network.eval(), torch.zeros(1, 3, *image_size)))
        analysis.set_op_handle("aten::scaled_dot_product_attention", _outputs)
        return int(analysis.total())


@contextmanager
def _tracing() -> Iterator[None]:
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        yield


def _quiet(analysis: Any) -> Any:
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")


def _outputs(inputs: list[Any], outputs: list[Any]) -> int:
    del inputs
    return math.prod(outputs[0].type().sizes())


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Count fused attention, which fvcore omits: q k^T and the product with v."""
    del outputs
    q, k, v = (value.type().sizes() for value in inputs[:3])
    return math.prod(q[:-2]) * q[-2] * k[-2] * (q[-1] + v[-1])
