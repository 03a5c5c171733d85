"""Features computed by OpenVINO, on CPUs.

A network is converted once and kept in the cache. It is stored with features that torch computed of a few
images, and compared with them each time it is opened: a network that computes anything else is never used.
"""

import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixmim_bench.features.engines import Source, Unsuitable
from mixmim_bench.features.engines.agreement import difference_of
from mixmim_bench.features.engines.converted import Converted, converted_network
from mixmim_bench.features.layers import Taps
from mixmim_bench.machine import Machine
from mixmim_bench.memory import is_out_of_memory

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoReader:
    """Reads features with a converted network.

    Args:
        path: the folder of the converted network.
        machine: precision.

    Raises:
        Unsuitable: OpenVINO cannot open the network, or its features differ from torch's.
    """

    def __init__(self, path: Path, machine: Machine) -> None:
        ov = _import()
        self._places = {name: place for place, name in enumerate(Converted(path).manifest()["layers"])}
        hint = _PRECISIONS[machine.precision]
        options = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # decoding needs the same cores
        }
        try:
            self._network = ov.Core().compile_model(path / "network.xml", "CPU", options)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise Unsuitable(f"OpenVINO cannot open the network: {_reason(error)}") from error
        used = self._network.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if used != hint:
            raise Unsuitable(f"OpenVINO computes in {used} on this processor, not in {hint}")
        with np.load(path / "check.npz", allow_pickle=False) as check:
            expected = {name: torch.from_numpy(check[f"layer {name}"]) for name in self._places}
            images = torch.from_numpy(check["images"])
        difference = difference_of(expected, self.read(images, list(self._places)), machine.precision)
        if difference:
            raise Unsuitable(f"OpenVINO computes other features: {difference}")

    def read(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the features (b, d) of each layer for images (b, 3, h, w)."""
        outputs = self._network(images.contiguous().numpy(), share_inputs=True)
        parts = {name: outputs[self._places[name]] for layer in layers for name in layer.split("+")}
        return {
            layer: torch.from_numpy(np.concatenate([parts[name] for name in layer.split("+")], axis=1))
            for layer in layers
        }


def open_converted(source: Source, machine: Machine) -> OpenVinoReader:
    """Open a network with OpenVINO, converting it first if it is not in the cache.

    Raises:
        Unsuitable: it cannot be converted, or its features differ from torch's. This is remembered.
    """
    layers = sorted({name for layer in source.layers for name in layer.split("+")})
    network = converted_network(source.key, layers)
    with network.lock():
        if reason := network.reason_against(machine.precision):
            raise Unsuitable(reason)
        try:
            if not network.is_whole():
                _convert_into(network, source, layers)
            reader = OpenVinoReader(network.path, machine)
        except Unsuitable as error:
            network.refuse(machine.precision, str(error))
            raise
        network.touch()
        return reader


def convert(network: nn.Module, layers: Sequence[str], images: Tensor, into: Converted) -> None:
    """Write a network into an existing folder, with the features of `images` (b, 3, h, w) to compare with.

    Raises Unsuitable.
    """
    ov = _import()
    taps = Taps(network.eval())
    traced = _Traced(taps, layers)
    # other images than those to compare on, or what tracing takes for constants would not show
    example = torch.randn(2, *images.shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = taps.read(images, layers, torch.autocast("cpu", enabled=False))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of every branch
            converted = ov.convert_model(
                traced, example_input=example, input=[ov.PartialShape([-1, *images.shape[1:]])]
            )
        ov.save_model(converted, into.path / "network.xml", compress_to_fp16=False)
    except Exception as error:  # of torch's tracer or of OpenVINO's frontend
        if is_out_of_memory(error) or isinstance(error, OSError):
            raise
        raise Unsuitable(f"OpenVINO cannot convert the network: {_reason(error)}") from error
    arrays = {f"layer {name}": values.numpy() for name, values in expected.items()}
    np.savez(into.path / "check.npz", allow_pickle=False, images=images.numpy(), **arrays)
    into.write_manifest(layers)


class _Traced(nn.Module):
    """A network that returns several layers, for tracing."""

    def __init__(self, taps: Taps, layers: Sequence[str]) -> None:
        super().__init__()
        self.network = taps.network
        self.taps = taps
        self.layers = layers

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        values = self.taps.read(images, self.layers, torch.autocast("cpu", enabled=False))
        return tuple(values[layer] for layer in self.layers)


def _convert_into(network: Converted, source: Source, layers: Sequence[str]) -> None:
    images = source.images()
    shutil.rmtree(network.path, ignore_errors=True)
    made = Converted(network.partial, network.made_by)
    shutil.rmtree(made.path, ignore_errors=True)  # of a process that was killed
    made.path.mkdir()
    try:
        convert(source.build(), layers, images, made)
        made.path.rename(network.path)
    finally:
        shutil.rmtree(made.path, ignore_errors=True)


def _import() -> Any:
    """Import OpenVINO without the package that reports its use over the network."""
    # importing it fails from now on, and OpenVINO falls back on a stub of its own
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino  # type: ignore[import-untyped]

    return openvino


def _reason(error: BaseException) -> str:
    """Return the last line of an error; OpenVINO's begin with places in its own code."""
    return next(
        (line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__
    )
