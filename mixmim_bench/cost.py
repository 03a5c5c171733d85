"""Model cost: parameters, multiply-adds from two counters, and measured speed and memory.

One multiply-add is one "FLOP" in the papers, in fvcore and in timm. `gmacs` is fvcore's total: the
multiply-adds of convolutions, linear layers and attention, plus 5 operations per element for a LayerNorm.
"""

import json
import logging
import math
import os
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mixmim_bench.errors import BenchError
from mixmim_bench.machine import Machine, measure_matmul_peak, open_machine
from mixmim_bench.models.build import create, own_classes, own_size, try_out
from mixmim_bench.specs import Cost, ModelSpec

# Operations with multiply-adds; a count that omits one of them is flagged.
MULTIPLYING = (
    "aten::scaled_dot_product_attention",
    "aten::baddbmm",
    "aten::_transformer_encoder_layer_fwd",
    "aten::_native_multi_head_attention",
    "aten::einsum",
    "aten::conv_transpose2d",
)
STALLED_S = 3600  # seconds before a measurement is given up
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
    with torch.device("meta"):
        return parameters_in(create(model, own_size(model), own_classes(model)))


def parameters_in(network: nn.Module) -> int:
    """Count the parameters of a network, plus the frozen tables that publications include."""
    tables = [network.get_buffer(name) for name in getattr(network, "frozen_tables", ())]
    return sum(tensor.numel() for tensor in [*network.parameters(), *tables])


# -- torch's counter, on the meta device -------------------------------------------------------------


def count_on_meta(model: ModelSpec, image_size: tuple[int, int]) -> Count:
    """Count with torch's counter on the meta device, without memory or compute; raises BenchError."""
    try_out(model, image_size)
    with torch.device("meta"):
        network = create(model, image_size, own_classes(model)).eval()
        with FlopCounterMode(display=False, custom_mapping=_PER_ELEMENT) as counter:
            network(torch.empty(1, 3, *image_size))
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
        by_operator = analysis.by_operator()
        uncounted = tuple(op for op in analysis.unsupported_ops() if op in MULTIPLYING)
    macs = sum(int(by_operator.get(name, 0)) for name in _MAC_OPERATORS)
    return Count(macs, int(analysis.total()), uncounted)


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


# -- speed and memory, in a fresh process ------------------------------------------------------------


def measure(model: ModelSpec, image_size: tuple[int, int], machine: Machine) -> Cost:
    """Measure a model at one size in a separate process; raises BenchError if that fails."""
    request = {
        "model": {"name": model.name, "arch": model.arch, "kwargs": dict(model.kwargs)},
        "image_size": list(image_size),
        "device": machine.device,
        "precision": machine.precision,
        "threads": torch.get_num_threads(),
    }
    values = _run_in_child(model, request)
    return Cost(
        model=model.name,
        arch=model.arch,
        image_size=image_size,
        precision=machine.precision,
        **{**machine.describe(), **values, "uncounted": tuple(values["uncounted"])},
    )


def _run_in_child(model: ModelSpec, request: dict[str, Any]) -> dict[str, Any]:
    """Run this module on a request in a child process that exits when this one does, even if killed."""
    command = [sys.executable, "-m", "mixmim_bench.cost", json.dumps(request)]
    read_end, write_end = os.pipe()  # the child reads EOF once this process has closed the write end
    try:
        child = subprocess.Popen(
            command, stdin=read_end, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            output, errors = child.communicate(timeout=STALLED_S)
        except subprocess.TimeoutExpired:
            raise BenchError(
                f"could not measure the cost of {model.name}: no result within {STALLED_S} s"
            ) from None
        finally:
            child.kill()
    finally:
        os.close(read_end)
        os.close(write_end)
    if child.returncode != 0:
        last = errors.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
        raise BenchError(f"could not measure the cost of {model.name}: {last[0]}")
    return json.loads(output.strip().splitlines()[-1])


def _end_with_parent() -> None:
    """Exit as soon as standard input is closed; the parent holds it open while it runs."""
    while os.read(0, 1):  # not sys.stdin: holding its lock at exit is an error
        pass
    os._exit(1)


def _measure_in_process(request: dict[str, Any], repeats: int = 5, seconds: float = 4.0) -> dict[str, Any]:
    """Count, then time forward passes: the median of up to `repeats` batches, fewer if `seconds` run out."""
    machine = open_machine(request["device"], request["precision"], request["threads"])
    model = ModelSpec(**request["model"])
    size = (request["image_size"][0], request["image_size"][1])
    torch.manual_seed(0)
    before = _peak_memory_mb()
    network = create(model, size, own_classes(model)).to(machine.device).eval()
    cuda = machine.device.startswith("cuda")
    counted = count_on_meta(model, size)
    # about the work of four images of a base model at 224 pixels, sixteen times that on a GPU
    batch_size = max(1, min(64, round((16 if cuda else 1) * 65e9 / max(counted.macs, 1))))
    images = torch.randn(batch_size, 3, *size, device=machine.device)
    times: list[float] = []
    peak = machine.matmul_gmacs_per_s
    with torch.inference_mode(), machine.autocast():
        network(images)
        while len(times) < repeats and sum(times) < seconds:
            clock = time.perf_counter()
            network(images)
            if cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - clock)
    memory = torch.cuda.max_memory_allocated() / 2**20 if cuda else _peak_memory_mb() - before
    peak = max(
        peak, measure_matmul_peak(machine.device, machine.precision)
    )  # another program may have been running
    images_per_s = batch_size / statistics.median(times)
    by_fvcore = count_by_fvcore(network.cpu().float(), size)
    uncounted = by_fvcore.uncounted
    if by_fvcore.macs != counted.macs and not uncounted:
        uncounted = (f"the counters disagree: {by_fvcore.macs} and {counted.macs} multiply-adds",)
    return {
        "params_m": parameters_in(network) / 1e6,
        "gmacs": by_fvcore.total / 1e9,
        "uncounted": uncounted,
        "activations_m": count_activations(network, size) / 1e6,
        "images_per_s": images_per_s,
        "batch_size": batch_size,
        "peak_share": images_per_s * counted.macs / 1e9 / peak,
        "peak_memory_mb": memory,
    }


def _peak_memory_mb() -> float:
    """Return the peak memory of this process."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    if sys.platform == "linux":  # getrusage would count the parent's memory at the fork
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    print(json.dumps(_measure_in_process(json.loads(sys.argv[1]))))
