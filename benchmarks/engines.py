"""Images per second of a frozen network with each engine and precision, beside the matrix-multiply peak.

    python benchmarks/engines.py [-m mixmim-b -m resnet50 ...] [--size 224] [--rounds 5] [--memory]

The engines take turns, so that other work on the machine meets all of them; medians over the rounds. With
`--memory`, the peak memory of converting and of computing, each in a process of its own.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

BATCHES = (1, 8, 32)


@click.command()
@click.option(
    "-m", "--model", "models", multiple=True, default=["mixmim-b", "resnet50", "vit_base_patch16_224"]
)
@click.option("--size", default=224)
@click.option("--rounds", default=5)
@click.option("--memory", is_flag=True)
def main(models: tuple[str, ...], size: int, rounds: int, memory: bool) -> None:
    """Print a table a model."""
    from tabulate import tabulate

    for model in models:
        print(f"\n{model} at {size} pixels\n")
        rows = peak_memory(model, size) if memory else speeds(model, size, rounds)
        print(tabulate(rows, headers="keys", tablefmt="github"))


def speeds(model: str, size: int, rounds: int) -> list[dict[str, Any]]:
    """Time engines and precisions in turn."""
    import torch

    from mixmim_bench.counting import count_on_meta
    from mixmim_bench.features.engines.openvino import OpenVinoReader
    from mixmim_bench.features.engines.torch import TorchReader
    from mixmim_bench.machine import computes_in_bfloat16, open_machine
    from mixmim_bench.registry import find_model

    precisions = ["float32", "bfloat16"] if computes_in_bfloat16("cpu") else ["float32"]
    machines = {name: open_machine("cpu", name) for name in precisions}
    with tempfile.TemporaryDirectory() as folder:
        clock = time.perf_counter()
        into = convert_into(Path(folder), model, size)
        print(f"converted in {time.perf_counter() - clock:.1f} s (a process of its own, with imports)")
        readers: dict[str, Any] = {}
        for precision, machine in machines.items():
            readers[f"torch {precision}"] = TorchReader(build(model, size), machine, owned=True)
            clock = time.perf_counter()
            readers[f"openvino {precision}"] = OpenVinoReader(into, machine)
            print(f"opened in {time.perf_counter() - clock:.1f} s in {precision}, compilation included")
        images = torch.randn(max(BATCHES), 3, size, size)
        times: dict[tuple[str, int], list[float]] = {}
        for _ in range(rounds + 1):
            for batch in BATCHES:
                for name, reader in readers.items():
                    clock = time.perf_counter()
                    reader.read(images[:batch], ["own"])
                    times.setdefault((name, batch), []).append(time.perf_counter() - clock)
    gmacs = count_on_meta(find_model(model), (size, size)).macs / 1e9
    rows = []
    for name in readers:
        peak = machines[name.split()[1]].matmul_gmacs_per_s
        row = {"engine": name}
        for batch in BATCHES:
            speed = batch / np.median(times[name, batch][1:])
            row[f"batch {batch}"] = f"{speed:.2f} ({100 * speed * gmacs / peak:.0f} %)"
        rows.append(row)
    return rows


def build(model: str, size: int) -> Any:
    """Build a network without weights."""
    import torch

    from mixmim_bench.models.build import create
    from mixmim_bench.registry import find_model

    torch.manual_seed(0)
    return create(find_model(model), (size, size)).eval()


def convert_into(folder: Path, model: str, size: int) -> Path:
    """Convert a network in a process of its own."""
    in_process("convert", folder, model, size)
    return folder / "network"


def peak_memory(model: str, size: int) -> list[dict[str, Any]]:
    """Measure the peak memory of converting and of computing a batch of 8."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        return [
            {"step": "convert", "GB": in_process("convert", path, model, size)},
            {
                "step": "compute with openvino, opened from the cache",
                "GB": in_process("read", path, model, size),
            },
            {"step": "compute with torch", "GB": in_process("torch", path, model, size)},
        ]


def in_process(step: str, folder: Path, model: str, size: int) -> str:
    """Run one step of this file in a process; returns its peak memory in GB."""
    request = json.dumps({"step": step, "folder": str(folder), "model": model, "size": size})
    folder_of_this = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {folder_of_this!r}); import engines; engines.step({request!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def step(request: str) -> None:
    """Convert or compute, and print the peak memory of this process in GB."""
    import torch

    from mixmim_bench.cost import peak_memory_mb
    from mixmim_bench.features.engines.converted import Converted
    from mixmim_bench.features.engines.openvino import OpenVinoReader, convert
    from mixmim_bench.features.engines.torch import TorchReader
    from mixmim_bench.machine import Machine

    asked = json.loads(request)
    path, model, size = Path(asked["folder"]) / "network", asked["model"], asked["size"]
    machine = Machine(device="cpu")
    images = torch.randn(8, 3, size, size)
    if asked["step"] == "convert":
        path.mkdir()
        convert(build(model, size), ["own"], images[:4], Converted(path, {}))
    elif asked["step"] == "read":
        OpenVinoReader(path, machine).read(images, ["own"])
    else:
        TorchReader(build(model, size), machine, owned=True).read(images, ["own"])
    print(f"{peak_memory_mb() / 2**10:.2f}")


if __name__ == "__main__":
    main()
