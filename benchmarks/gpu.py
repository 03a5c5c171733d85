"""Benchmarks of one GPU: forward, extraction, sweep, kNN, training, as shares of its matrix-multiply peak.

    python benchmarks/gpu.py [--part forward --part extraction ...] [--quick]

Prints Markdown tables. A share is multiply-adds per second divided by the measured peak of the same
precision, so that GPUs can be compared. Speeds are medians over rounds; everything took 3.5 minutes on an
H200 with 16 cores.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

PARTS = ("agreement", "forward", "extraction", "sweep", "knn", "training")
MODELS = ("mixmim-b", "mixmim-l", "resnet50", "vit_base_patch16_224")
DEVICE = "cuda"
NOISE = torch.randn(3, 224, 224)


def timed(work: Callable[[], Any]) -> float:
    """Time one call in seconds, including its work on the GPU."""
    torch.cuda.synchronize()
    clock = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - clock


def median_time(work: Callable[[], Any], rounds: int) -> float:
    """Return the median time in seconds over rounds, after one call to warm up."""
    work()
    return statistics.median(timed(work) for _ in range(rounds))


def table(title: str, rows: list[dict[str, str]]) -> None:
    """Print a Markdown table."""
    print(f"\n### {title}\n")
    names = list(rows[0])
    print("| " + " | ".join(names) + " |")
    print("|" + " --- |" * len(names))
    for row in rows:
        print("| " + " | ".join(row[name] for name in names) + " |", flush=True)


def measure_peaks() -> dict[str, float]:
    """Measure the peaks in GMAC/s for float32 (without TF32) and bfloat16."""
    from mixmim_bench.machine import measure_matmul_peak

    peaks = {precision: measure_matmul_peak(DEVICE, precision) for precision in ("float32", "bfloat16")}
    rows = [{"precision": name, "TMAC/s": f"{peak / 1e3:.1f}"} for name, peak in peaks.items()]
    table("Matrix-multiply peak", rows)
    return peaks


def _network(name: str, size: int = 224) -> Any:
    from mixmim_bench.models.build import create
    from mixmim_bench.registry import find_model

    torch.manual_seed(0)
    return create(find_model(name), (size, size)).eval()


def _machine(precision: str, **kwargs: Any) -> Any:
    from mixmim_bench.machine import open_machine

    return open_machine(DEVICE, precision, **kwargs)


def agreement(_: dict[str, float], quick: bool) -> None:
    """Compare features on the GPU with those on the CPU."""
    from mixmim_bench.features.layers import Taps
    from mixmim_bench.machine import open_machine

    rows = []
    for name in MODELS[:1] if quick else MODELS:
        network = _network(name)
        images = torch.randn(8, 3, 224, 224)
        with torch.inference_mode():
            expected = Taps(network).read(images, ["own"], open_machine("cpu").autocast())["own"]
            network.to(DEVICE)
            for precision in ("float32", "bfloat16"):
                machine = _machine(precision)
                values = Taps(network).read(images.to(DEVICE), ["own"], machine.autocast())["own"].cpu()
                cosine = torch.nn.functional.cosine_similarity(expected, values).min()
                error = (values - expected).abs().max() / expected.abs().max()
                rows.append(
                    {
                        "model": name,
                        "precision": precision,
                        "largest difference / largest value": f"{float(error):.1e}",
                        "1 - smallest cosine": f"{1 - float(cosine):.1e}",
                    }
                )
    table("Features on the GPU against those on the CPU (float32), random weights", rows)


def forward(peaks: dict[str, float], quick: bool) -> None:
    """Time forward passes on images already on the GPU."""
    from mixmim_bench.facts import count_gmacs
    from mixmim_bench.features.layers import Taps
    from mixmim_bench.registry import find_model

    rows = []
    for name in MODELS[:1] if quick else MODELS:
        gmacs = count_gmacs(find_model(name), (224, 224))
        network = _network(name).to(DEVICE)
        for precision in ("float32", "bfloat16"):
            for form in ("as in the suite", "channels last", "compiled"):
                if form == "channels last" and name != "resnet50":
                    continue
                if form == "compiled" and (precision == "float32" or name not in MODELS[:1]):
                    continue
                used = network
                if form == "channels last":
                    used = _network(name).to(DEVICE, memory_format=torch.channels_last)
                batch = 256
                images = torch.randn(batch, 3, 224, 224, device=DEVICE)
                if form == "channels last":
                    images = images.contiguous(memory_format=torch.channels_last)
                taps, machine = Taps(used), _machine(precision)
                run: Any = torch.compile(used) if form == "compiled" else None

                def once(
                    run: Any = run, taps: Any = taps, machine: Any = machine, images: Any = images
                ) -> None:
                    with torch.inference_mode():
                        if run is None:
                            taps.read(images, ["own"], machine.autocast())
                        else:
                            with machine.autocast():
                                run(images)

                seconds = median_time(once, 3 if precision == "float32" else 5)
                speed = batch / seconds
                rows.append(
                    {
                        "model": name,
                        "precision": precision,
                        "form": form,
                        "images/s": f"{speed:.0f}",
                        "share of the peak": f"{100 * speed * gmacs / peaks[precision]:.0f} %",
                    }
                )
                torch.cuda.empty_cache()
    table("Forward pass, batch 256, 224 pixels", rows)


def extraction(_: dict[str, float], quick: bool) -> None:
    """Time the extraction of features from JPEG files into the store."""
    from extraction import write_photographs

    from mixmim_bench.data.files import Files
    from mixmim_bench.data.images import Part
    from mixmim_bench.data.loading import ImageDataset, batches, in_groups
    from mixmim_bench.data.transforms import ImageOnly, eval_transform
    from mixmim_bench.facts import preprocessing
    from mixmim_bench.features.engines.torch import TorchReader
    from mixmim_bench.features.extract import extract_to_store
    from mixmim_bench.features.store import FeatureStore
    from mixmim_bench.registry import find_model

    count = 1000 if quick else 8000
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photographs(folder, 1000)
        paths = np.array(sorted(path.name for path in folder.iterdir()))
        transform = eval_transform(preprocessing(find_model("mixmim-b")))
        network = _network("mixmim-b").to(DEVICE)
        for precision in ("float32", "bfloat16"):
            for workers in (0, 8, 15):
                names = paths[np.arange(count if workers else 500) % len(paths)]
                part = Part(
                    np.array([f"{i:06d}" for i in range(len(names))]),
                    np.zeros(len(names), np.int64),
                    Files(folder, names),
                )
                machine = _machine(precision, workers=workers)

                def decode(part: Part = part, machine: Any = machine) -> None:
                    dataset = ImageDataset(part.images, ImageOnly(transform), digests=True)
                    for _ in batches(
                        dataset, in_groups(range(len(part)), machine.batch_size), machine.workers
                    ):
                        pass

                def both(part: Part = part, machine: Any = machine) -> None:
                    entry = FeatureStore(folder / "store").entry({"start": time.perf_counter_ns()}, {})
                    extract_to_store(TorchReader(network, machine), part, transform, machine, {"own": entry})

                alone, together = len(part) / timed(decode), len(part) / timed(both)
                rows.append(
                    {
                        "precision": precision,
                        "workers": str(workers),
                        "decoding alone": f"{alone:.0f}/s",
                        "end to end": f"{together:.0f}/s",
                        "ratio": f"{together / alone:.2f}",
                    }
                )
    table("Extraction of MixMIM-B's features from JPEGs of 500 x 375 pixels, batch 256", rows)


def sweep(peaks: dict[str, float], quick: bool) -> None:
    """Time a path of C with ImageNet's number of classes."""
    from mixmim_bench.probes.logistic import LogisticPath

    n, d, classes = (20_000, 1024, 100) if quick else (200_000, 1024, 1000)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    centres = rng.standard_normal((classes, d), dtype=np.float32)
    x = centres[labels] * 0.15 + rng.standard_normal((n, d), dtype=np.float32)
    path = LogisticPath(np.logspace(-6, -1, 11).tolist(), device=DEVICE)
    seconds = timed(lambda: path.fit(x, labels))
    macs = 2 * n * d * classes * path.n_iter_ / 1e9
    table(
        f"Logistic regression, {n} x {d}, {classes} classes, 11 values of C",
        [
            {
                "seconds": f"{seconds:.1f}",
                "passes": str(path.n_iter_),
                "share of the float32 peak": f"{100 * macs / seconds / peaks['float32']:.0f} %",
                "largest relative gap": f"{(path.gap_path_ / path.objective_path_).max():.1e}",
            }
        ],
    )


def knn(peaks: dict[str, float], quick: bool) -> None:
    """Time nearest neighbours in a large bank."""
    from mixmim_bench.probes.neighbours import nearest

    bank, queries, d = (50_000, 10_000, 1024) if quick else (400_000, 50_000, 1024)
    rng = np.random.default_rng(0)
    x, q = (rng.standard_normal((n, d), dtype=np.float32) for n in (bank, queries))
    nearest(x[:20_000], q[:2000], 20, DEVICE)
    seconds = timed(lambda: nearest(x, q, 20, DEVICE))
    share = bank * queries * d / 1e9 / seconds / peaks["float32"]
    table(
        f"20 nearest of {bank} x {d} for {queries} queries",
        [{"seconds": f"{seconds:.1f}", "share of the float32 peak": f"{100 * share:.0f} %"}],
    )


def training(peaks: dict[str, float], quick: bool) -> None:
    """Time fine-tuning with mixup, on constant inputs from worker processes."""
    from contextlib import nullcontext

    from accelerate.state import AcceleratorState
    from timm.data import Mixup

    from mixmim_bench.data.images import Arrays, Part
    from mixmim_bench.data.transforms import ImageOnly
    from mixmim_bench.facts import count_gmacs
    from mixmim_bench.models.build import create
    from mixmim_bench.protocols.contract import TRAIN_WORK
    from mixmim_bench.registry import find_model
    from mixmim_bench.training import contract, loop
    from mixmim_bench.training.objectives import Classifying

    class Stages:
        def stage(self, *_: Any) -> Any:
            return nullcontext(lambda _: None)

        def say(self, *_: Any) -> None: ...

    class Timing(Classifying):
        """Records the start time of each step."""

        def __init__(self) -> None:
            super().__init__(10, Mixup(0.8, 1.0, num_classes=10, label_smoothing=0.1), 0.1)
            self.clocks: list[float] = []

        def prepare(self, *args: Any) -> Any:
            torch.cuda.synchronize()
            self.clocks.append(time.perf_counter())
            return super().prepare(*args)

    gmacs = count_gmacs(find_model("mixmim-b"), (224, 224))
    rows = []
    for precision in ("float32", "bfloat16"):
        batch = 128
        count = batch * (4 if quick or precision == "float32" else 16)
        pixels = np.random.default_rng(0).integers(0, 255, (count, 32, 32, 3), dtype=np.uint8)
        part = Part(
            np.array([f"{i:05d}" for i in range(count)]), np.arange(count) % 10, Arrays(pixels, "noise")
        )
        network = create(find_model("mixmim-b"), (224, 224), 10).to(DEVICE)
        schedule = contract.Schedule(epochs=2, batch_size=batch, lr=1e-4, weight_decay=0.05, layer_decay=0.7)
        environment = contract.Environment(machine=_machine(precision, workers=8), seed=0, stages=Stages())
        AcceleratorState._reset_state(reset_partial_state=True)  # one process, both precisions
        objective = Timing()
        transform = ImageOnly(_noise)
        loop.train(network, part, transform, objective, schedule, environment, "training", 0.0)
        seconds = statistics.median(np.diff(objective.clocks[1:]))
        rows.append(
            {
                "precision": precision,
                "images/s": f"{batch / seconds:.0f}",
                "share of the peak": f"{100 * TRAIN_WORK * gmacs * batch / seconds / peaks[precision]:.0f} %",
            }
        )
    table("Fine-tuning MixMIM-B at 224 pixels, batch 128, inputs without cost", rows)


def _noise(image: Any) -> torch.Tensor:
    """Return the same random input for every image: free to load, and as slow to train on as real ones."""
    del image
    return NOISE


@click.command(help=__doc__)
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS)
@click.option("--quick", is_flag=True, help="Small sizes, to check that everything runs.")
def main(parts: tuple[str, ...], quick: bool) -> None:
    """Measure the selected parts."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    peaks = measure_peaks()
    for part in parts:
        clock = time.perf_counter()
        globals()[part](peaks, quick)
        print(f"\n({part}: {time.perf_counter() - clock:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
