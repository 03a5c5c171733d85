"""Measured cost of a model: speed and memory, in a fresh process, with its counts."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from mixmim_bench import processes
from mixmim_bench.counting import count_activations, count_by_fvcore, count_on_meta, parameters_in
from mixmim_bench.errors import BenchError
from mixmim_bench.features import LOGITS, OWN
from mixmim_bench.features.engines import Reader, engine_with_version
from mixmim_bench.features.engines.torch import TorchReader
from mixmim_bench.machine import Machine, measure_matmul_peak, open_machine
from mixmim_bench.models.build import create, own_classes
from mixmim_bench.models.objects import is_object
from mixmim_bench.specs import COMPILE, OPENVINO, TORCH, Cost, ModelSpec

SAMPLED_EVERY_S = 0.02
STALLED_S = 3600  # seconds before a measurement is given up


def measure(model: ModelSpec, image_size: tuple[int, int], machine: Machine, engine: str = TORCH) -> Cost:
    """Measure a model at one size with an engine; raises BenchError if that fails.

    It is done in separate processes, except for a network that only this one has.
    """
    request = {
        "model": {"name": model.name, "arch": model.arch, "kwargs": dict(model.kwargs)},
        "image_size": list(image_size),
        "device": machine.device,
        "precision": machine.precision,
        "threads": torch.get_num_threads(),
        "engine": engine,
        "converted": "",
    }
    with tempfile.TemporaryDirectory() as folder:
        values: dict[str, Any] = {}
        if is_object(model.arch):  # another process does not have it
            if engine != TORCH:
                raise BenchError(f"the cost of {model.name}, an object of this process, is that of torch")
            return _as_cost(model, image_size, machine, engine, _measure_here(request))
        if engine == OPENVINO:  # in a process of its own, whose memory does not count
            request["converted"] = folder
            values = _run_in_child(model, "convert", request)
        values |= _run_in_child(model, "measure", request)
    return _as_cost(model, image_size, machine, engine, values)


def _as_cost(
    model: ModelSpec, image_size: tuple[int, int], machine: Machine, engine: str, values: Mapping[str, Any]
) -> Cost:
    return Cost(
        model=model.name,
        arch=model.arch,
        image_size=image_size,
        precision=machine.precision,
        engine=engine_with_version(engine),
        **{**machine.describe(), **values, "uncounted": tuple(values["uncounted"])},
    )


def _measure_here(request: dict[str, Any]) -> dict[str, Any]:
    """Measure in this process, whose peak memory may be of other work: on a CPU it is sampled."""
    process, ended = psutil.Process(), threading.Event()
    before = highest = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not ended.wait(SAMPLED_EVERY_S):
            highest = max(highest, process.memory_info().rss)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        with torch.random.fork_rng():
            values = _measure(request)
    except Exception as error:  # whatever a user's network raises
        raise BenchError(f"could not measure the cost: {type(error).__name__}: {error}") from error
    finally:
        ended.set()
        watching.join()
    if not request["device"].startswith("cuda"):
        values["peak_memory_mb"] = (highest - before) / 2**20
    return values


def _run_in_child(model: ModelSpec, step: str, request: dict[str, Any]) -> dict[str, Any]:
    """Run a step of this module in a child process that exits when this one does, even if killed."""
    command = [sys.executable, "-m", "mixmim_bench.cost", step, json.dumps(request)]
    read_end, write_end = os.pipe()  # the child reads EOF once this process has closed the write end
    try:
        child = subprocess.Popen(
            command,
            stdin=read_end,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=processes.environment_of_one(),
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


def _convert(request: dict[str, Any]) -> dict[str, Any]:
    """Count, and convert the network for OpenVINO."""
    from mixmim_bench.features.engines.converted import Converted
    from mixmim_bench.features.engines.openvino import convert

    model, size = _model_and_size(request)
    network = _create(model, size)
    converted = Converted(Path(request["converted"]), {})
    convert(network, [_output_of(model)], torch.randn(2, 3, *size), converted)
    return _count(model, network, size)


def _measure(request: dict[str, Any], repeats: int = 5, seconds: float = 4.0) -> dict[str, Any]:
    """Time forward passes: the median of up to `repeats` batches, fewer if `seconds` run out.

    With torch, count too.
    """
    machine = open_machine(request["device"], request["precision"], request["threads"])
    model, size = _model_and_size(request)
    macs = count_on_meta(model, size).macs
    cuda = machine.device.startswith("cuda")
    # about the work of four images of a base model at 224 pixels, sixteen times that on a GPU
    batch_size = max(1, min(64, round((16 if cuda else 1) * 65e9 / max(macs, 1))))
    peak = machine.matmul_gmacs_per_s
    before = peak_memory_mb()
    network, reader = _open(request, model, size, machine)
    images = torch.randn(batch_size, 3, *size, device=machine.device)
    layers = [_output_of(model)]
    times: list[float] = []
    reader.read(images, layers)
    while len(times) < repeats and sum(times) < seconds:
        clock = time.perf_counter()
        reader.read(images, layers)
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - clock)
    memory = torch.cuda.max_memory_allocated() / 2**20 if cuda else peak_memory_mb() - before
    # measured again: another program may have been running
    peak = max(peak, measure_matmul_peak(machine.device, machine.precision))
    images_per_s = batch_size / statistics.median(times)
    return {
        **({} if network is None else _count(model, network.cpu().float(), size)),
        "images_per_s": images_per_s,
        "batch_size": batch_size,
        "peak_share": images_per_s * macs / 1e9 / peak,
        "peak_memory_mb": memory,
    }


def _open(
    request: dict[str, Any], model: ModelSpec, size: tuple[int, int], machine: Machine
) -> tuple[nn.Module | None, Reader]:
    """Open the converted network, or build one for torch, which is returned too."""
    if request["converted"]:
        from mixmim_bench.features.engines.openvino import OpenVinoReader

        return None, OpenVinoReader(Path(request["converted"]), machine)
    network = _create(model, size)
    if request["engine"] == COMPILE:
        from mixmim_bench.features.engines.compiled import CompiledReader

        return network, CompiledReader(network, machine)
    return network, TorchReader(network, machine, owned=True)


def _create(model: ModelSpec, size: tuple[int, int]) -> nn.Module:
    torch.manual_seed(0)
    return create(model, size, own_classes(model)).eval()


def _output_of(model: ModelSpec) -> str:
    return LOGITS if own_classes(model) else OWN


def _model_and_size(request: dict[str, Any]) -> tuple[ModelSpec, tuple[int, int]]:
    height, width = request["image_size"]
    return ModelSpec(**request["model"]), (height, width)


def _count(model: ModelSpec, network: nn.Module, size: tuple[int, int]) -> dict[str, Any]:
    macs = count_on_meta(model, size).macs
    by_fvcore = count_by_fvcore(network, size)
    uncounted = by_fvcore.uncounted
    if by_fvcore.macs != macs and not uncounted:
        uncounted = (f"the counters disagree: {by_fvcore.macs} and {macs} multiply-adds",)
    return {
        "params_m": parameters_in(network) / 1e6,
        "gmacs": by_fvcore.total / 1e9,
        "uncounted": uncounted,
        "activations_m": count_activations(network, size) / 1e6,
    }


def peak_memory_mb() -> float:
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
    print(json.dumps({"convert": _convert, "measure": _measure}[sys.argv[1]](json.loads(sys.argv[2]))))
