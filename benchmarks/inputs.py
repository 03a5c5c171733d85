"""Images per second of decoding and transforming, against ImageFolder with torchvision's transforms.

    python benchmarks/inputs.py [--images 256] [--rounds 5]

JPEGs of 500 x 375 pixels, cropped from the photographs in scikit-learn, are resized to 256 and cropped to 224
in batches of 32, with the same number of worker processes on both sides. With exact resizing the outputs are
identical, which is checked first.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from extraction import write_photographs

from mixmim_bench.specs import Preprocessing

SETTINGS = Preprocessing(
    size=(224, 224),
    crop_pct=0.875,
    crop_mode="center",
    interpolation="bicubic",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


@click.command()
@click.option("--images", default=256)
@click.option("--rounds", default=5)
def main(images: int, rounds: int) -> None:
    """Time the three in turn, for several rounds, with 0 and 2 workers."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    from mixmim_bench.data.layouts.folder import ImageFolder
    from mixmim_bench.data.loading import ImageDataset, batches, in_groups
    from mixmim_bench.data.transforms import ImageOnly, eval_transform

    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "all" / "photo").mkdir(parents=True)
        write_photographs(Path(name) / "all" / "photo", images)
        steps = [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(SETTINGS.mean, SETTINGS.std),
        ]
        theirs = datasets.ImageFolder(f"{name}/all", transforms.Compose(steps))
        part = ImageFolder(Path(name), ["all"]).part("all")
        groups = in_groups(range(images), 32)

        def peer(workers: int) -> torch.Tensor:
            return torch.cat([x for x, _ in DataLoader(theirs, 32, num_workers=workers)])

        def ours(workers: int, **changes: str) -> torch.Tensor:
            dataset = ImageDataset(part.images, ImageOnly(eval_transform(replace(SETTINGS, **changes))))
            return torch.cat([batch.images for batch in batches(dataset, groups, workers)])

        assert torch.equal(peer(0), ours(0)), "the outputs differ"
        for workers in (0, 2):
            times: list[list[float]] = [[], [], []]
            for _ in range(rounds):
                for place, run in enumerate((peer, ours, lambda w: ours(w, resize="fast"))):
                    clock = time.perf_counter()
                    run(workers)
                    times[place].append(time.perf_counter() - clock)
            medians = np.median(times, axis=1)
            speeds = ", ".join(f"{images / seconds:.0f}" for seconds in medians)
            ratios = medians[0] / medians
            print(f"{workers} workers: ImageFolder, ours, ours fast: {speeds} images/s; ", end="")
            print(f"ratio {ratios[1]:.2f}, fast {ratios[2]:.2f}")


if __name__ == "__main__":
    main()
