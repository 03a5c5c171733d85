"""Images per second of feature extraction: decoding alone, the model alone, and end to end into the store.

    python benchmarks/extraction.py [--images 256] [--size 224] [--model mixmim-b] [--rounds 3]
        [--engine openvino] [--precision bfloat16] [--batch-size 16]

The images are JPEGs of 500 x 375 pixels, cropped from the photographs in scikit-learn. The slower of the
first two bounds the third; without overlap the third would be 1 / (1 / first + 1 / second).
"""

import dataclasses
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np


def write_photographs(folder: Path, count: int) -> None:
    """Crop JPEGs from scikit-learn's two photographs."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    pictures = itertools.cycle(load_sample_images().images)
    for place, picture in zip(range(count), pictures, strict=False):
        top, left = rng.integers(0, picture.shape[0] - 375), rng.integers(0, picture.shape[1] - 500)
        Image.fromarray(picture[top : top + 375, left : left + 500]).save(
            folder / f"{place:04d}.jpg", quality=90
        )


@click.command()
@click.option("--images", default=256)
@click.option("--size", default=224)
@click.option("--model", default="mixmim-b")
@click.option("--rounds", default=3)
@click.option("--engine", default="torch")
@click.option("--precision", default="float32")
@click.option("--batch-size", default=16)
def main(
    images: int, size: int, model: str, rounds: int, engine: str, precision: str, batch_size: int
) -> None:
    """Time the three in turn, for several rounds."""
    import torch

    from mixmim_bench.data.files import Files
    from mixmim_bench.data.images import Part
    from mixmim_bench.data.loading import ImageDataset, batches, in_groups
    from mixmim_bench.data.transforms import ImageOnly, eval_transform
    from mixmim_bench.features.engines import Source, open_reader
    from mixmim_bench.features.extract import extract_to_store, sample_images
    from mixmim_bench.features.store import FeatureStore
    from mixmim_bench.machine import open_machine
    from mixmim_bench.models.build import create, preprocessing
    from mixmim_bench.registry import find_model

    machine = open_machine("cpu", precision, batch_size=batch_size)
    print(machine.describe())
    spec = find_model(model)
    transform = eval_transform(dataclasses.replace(preprocessing(spec), size=(size, size)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photographs(folder, images)
        paths = np.array(sorted(path.name for path in folder.iterdir()))
        part = Part(paths, np.zeros(len(paths), np.int64), Files(folder, paths))

        source = Source(
            {"benchmark": model, "size": size},
            lambda: create(spec, (size, size)),
            ["own"],
            lambda: sample_images(part.images, transform),
        )
        reader = open_reader(engine, source, machine)

        def decode() -> None:
            dataset = ImageDataset(part.images, ImageOnly(transform), digests=True)
            for _ in batches(dataset, in_groups(range(images), machine.batch_size), 0):
                pass

        def compute() -> None:
            batch = torch.randn(machine.batch_size, 3, size, size)
            for _ in range(images // machine.batch_size):
                reader.read(batch, ["own"])

        def both() -> None:
            entry = FeatureStore(folder / "store").entry({"start": time.perf_counter_ns()}, {})
            extract_to_store(reader, part, transform, machine, {"own": entry})

        speeds: dict[str, list[float]] = {"decode only": [], "model only": [], "end to end": []}
        compute()
        for _ in range(rounds):
            for what, work in zip(speeds, (decode, compute, both), strict=True):
                speeds[what].append(images / timed(work))
    medians = {what: float(np.median(values)) for what, values in speeds.items()}
    for what, speed in medians.items():
        print(f"{what}: {speed:.1f} images/s")
    bound = min(medians["decode only"], medians["model only"])
    in_turn = 1 / (1 / medians["decode only"] + 1 / medians["model only"])
    print(f"end to end / the slower of the two: {medians['end to end'] / bound:.2f}")
    print(f"end to end / one after the other:   {medians['end to end'] / in_turn:.2f}")


def timed(work: Any) -> float:
    """Time one call in seconds."""
    clock = time.perf_counter()
    work()
    return time.perf_counter() - clock


if __name__ == "__main__":
    main()
