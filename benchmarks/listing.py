"""Start-up of a dataset of the size of ImageNet: seconds to list it, and memory with worker processes.

    python benchmarks/listing.py [--classes 1000] [--images 1281] [--folder FOLDER]

Creates empty files in class folders (1.28 million by default, which takes minutes), lists them without and
with a cached index, and iterates with workers while adding up the memory of all processes (shared pages
once).
"""

import os
import tempfile
import time
from pathlib import Path

import click


@click.command()
@click.option("--classes", default=1000)
@click.option("--images", default=1281, help="Images per class in train; val has 50 per class.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Folder for the files, created if missing and kept. Default: temporary.",
)
def main(classes: int, images: int, folder: Path | None) -> None:
    """List, list again, and read with 0, 2 and 4 workers."""
    with tempfile.TemporaryDirectory() as name:
        root = folder or Path(name)
        os.environ["MIXMIM_BENCH_CACHE"] = f"{name}/cache"
        make_files(root / "many", classes, images)
        task = Path(name) / "many.toml"
        task.write_text(
            f'schema = 1\nversion = 1\nkind = "classification"\ntitle = "Many"\nnum_classes = {classes}\n'
            'metrics = ["top1"]\n[data]\nlayouts = [{ layout = "folder:ImageFolder", ids = "name" }]\n'
            f'root = "{root.absolute()}/many"\n'
            '[split]\ntrain = "train[:99%]"\nval = "train[99%:]"\ntest = "val"\n'
        )
        measure(task)


def make_files(root: Path, classes: int, images: int) -> None:
    """Create empty files in the class folders that do not exist yet."""
    for part, count in (("train", images), ("val", 50)):
        for label in range(classes):
            folder = root / part / f"n{label:08d}"
            if folder.is_dir():
                continue
            folder.mkdir(parents=True)
            for image in range(count):
                (folder / f"n{label:08d}_{part}{image}.JPEG").touch()


def measure(path: Path) -> None:
    """Print seconds and megabytes of a task."""
    from mixmim_bench.data.dataset import open_task
    from mixmim_bench.suite.taskfile import read_task

    task = read_task(path)
    for what in ("no index", "cached index", "cached index"):
        clock = time.perf_counter()
        data = open_task(task)
        total = sum(map(len, data.parts.values()))
        print(f"{total} images, {what}: {time.perf_counter() - clock:.1f} s")
    for workers in (0, 2, 4):
        print(f"{workers} workers: {memory_of(data.parts['train'], workers):.0f} MB in total")


def memory_of(part: object, workers: int) -> float:
    """Return the peak memory of this process and its workers during a pass, counting shared pages once."""
    import psutil
    from torch.utils.data import DataLoader, Dataset

    class Names(Dataset):
        def __len__(self) -> int:
            return len(part)  # type: ignore[arg-type]

        def __getitem__(self, row: int) -> str:
            return part.images.stamp(row)  # type: ignore[attr-defined]

    peak = 0.0
    for place, _ in enumerate(DataLoader(Names(), batch_size=1024, shuffle=True, num_workers=workers)):
        if place % 200 == 100:
            processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
            peak = max(peak, sum(process.memory_full_info().pss for process in processes) / 1e6)
    return peak


if __name__ == "__main__":
    main()
