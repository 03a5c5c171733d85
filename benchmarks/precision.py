"""Does bfloat16 matter? Features of MixMIM-B on Fashion-MNIST in float32 and in bfloat16, and probes on both.

    python benchmarks/precision.py [--images FOLDER] [--weights PATH] [--train 5000] [--size 32]

Prints the cosine similarity of the two features of each of the 10,000 test images, the accuracies of logistic
regressions on them, and McNemar's test (mid-p) of the difference. The weights are random unless a checkpoint
is given. FOLDER contains the four .gz files of Fashion-MNIST (Debian: dataset-fashion-mnist).
"""

import dataclasses
import gzip
import time
from pathlib import Path

import click
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mixmim_bench.models  # noqa: F401 (registers the models)
from mixmim_bench.data.images import Arrays, Part
from mixmim_bench.data.transforms import eval_transform
from mixmim_bench.features.engines.torch import TorchReader
from mixmim_bench.features.extract import extract
from mixmim_bench.machine import open_machine
from mixmim_bench.models.build import build, preprocessing
from mixmim_bench.registry import find_model
from mixmim_bench.scoring.statistics import mcnemar_mid_p
from mixmim_bench.weights.find import resolve_weights


def read(folder: Path, name: str, n: int) -> Part:
    """Read the first n images of a part: 't10k' or 'train'."""
    with gzip.open(folder / f"{name}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)[:n]
    with gzip.open(folder / f"{name}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)[:n].astype(np.int64)
    return Part(np.array([f"{name}{i}" for i in range(len(labels))]), labels, Arrays(pixels, name))


@click.command(help=__doc__)
@click.option("--images", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
@click.option("--weights", default="random")
@click.option("--train", default=5000)
@click.option("--size", default=32)
def main(images: Path, weights: str, train: int, size: int) -> None:
    """Extract, compare and probe."""
    parts = {"train": read(images, "train", train), "test": read(images, "t10k", 10_000)}
    spec = find_model("mixmim-b")
    network = build(spec, resolve_weights(spec, weights), (size, size), seed=0)
    transform = eval_transform(dataclasses.replace(preprocessing(spec), size=(size, size), crop_pct=1.0))
    features, correct = {}, {}
    for precision in ("float32", "bfloat16"):
        machine, clock = open_machine("cpu", precision), time.perf_counter()
        x = {
            name: extract(TorchReader(network, machine), part, transform, machine)
            for name, part in parts.items()
        }
        speed = sum(map(len, parts.values())) / (time.perf_counter() - clock)
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        probe.fit(x["train"].x, x["train"].y)
        features[precision] = x["test"].x
        correct[precision] = probe.predict(x["test"].x) == x["test"].y
        print(f"{precision}: top-1 {100 * correct[precision].mean():.2f} %, {speed:.0f} images/s", flush=True)
    a, b = features["float32"], features["bfloat16"]
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    print(f"cosine: minimum {cosine.min():.6f}, median {np.median(cosine):.6f}")
    wins = [
        int((correct["float32"] & ~correct["bfloat16"]).sum()),
        int((correct["bfloat16"] & ~correct["float32"]).sum()),
    ]
    print(f"correct in float32 only {wins[0]}, in bfloat16 only {wins[1]}, mid-p {mcnemar_mid_p(*wins):.2f}")


if __name__ == "__main__":
    main()
