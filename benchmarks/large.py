"""Features of the size of ImageNet-1K: the memory of each stage, and the estimated time of a sweep over C.

    python benchmarks/large.py [--rows 1300000] [--width 1024] [--classes 1000] [--queries 1000]

Synthetic rows are written to the feature store in chunks, memory-mapped, standardised, decomposed, passed to
a few steps of the solver, and searched for neighbours. Prints the peak anonymous memory of each stage
(RssAnon, which excludes the page cache, since the system can reclaim it). Linux only.
"""

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np

H100 = 33  # TMAC/s in float32 according to NVIDIA's data sheet, not measured
PASSES = 223  # of 45 values of C on 10,000 rows of 100 classes (benchmarks/solver.py)


def anonymous_mb() -> float:
    """Return the anonymous memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 2**10


@contextmanager
def watched(what: str) -> Iterator[None]:
    """Print the time and the peak memory of a stage."""
    readings, done = [anonymous_mb()], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            readings.append(anonymous_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    clock = time.perf_counter()
    yield
    spent = time.perf_counter() - clock
    done.set()
    watcher.join()
    print(f"{what}: {spent:.1f} s, at most {max(readings) / 2**10:.2f} GiB of anonymous memory", flush=True)


@click.command()
@click.option("--rows", default=1_300_000)
@click.option("--width", default=1_024)
@click.option("--classes", default=1_000)
@click.option("--queries", default=1_000)
def main(rows: int, width: int, classes: int, queries: int) -> None:
    """Write, read, solve and search."""
    import torch

    from mixmim_bench.features.store import FeatureStore, Piece, filling
    from mixmim_bench.machine import open_machine
    from mixmim_bench.probes.neighbours import nearest
    from mixmim_bench.probes.rows import Prepared, Stacked, Standardiser
    from mixmim_bench.probes.softmax import SoftmaxLoss

    machine = open_machine("cpu")
    print(machine.describe())
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, rows)
    with tempfile.TemporaryDirectory() as folder:
        entry = FeatureStore(Path(folder)).entry({"rows": rows}, {})
        with watched("writing to the store"), filling({"own": entry}, rows) as writer:
            assert writer is not None
            draw = rng.standard_normal((4096, width), dtype=np.float32)
            for start in range(0, rows, 512):
                chunk = np.arange(start, min(start + 512, rows))
                x = draw[rng.integers(0, 4096, len(chunk))] + 0.01 * y[chunk, None].astype(np.float32)
                digests = np.zeros((len(chunk), 16), np.uint8)
                writer.add(Piece(chunk, {"own": x}, digests, {}))
            writer.finish()
        with watched("mapping the entry"):
            stacked = Stacked([entry.open().x])
        with watched("mean and deviation"):
            standardiser = Standardiser(stacked)
        with watched("uncorrelated basis"):
            loss = SoftmaxLoss(Prepared(stacked, standardiser, "cpu"), y, classes, torch.float32)
        clock = time.perf_counter()
        with watched("one evaluation and two products with the Hessian"):
            point = loss.evaluate(loss.origin(), 1e-3)
            direction = loss.precondition(point, point.gradient)
            for _ in range(2):
                direction = loss.curve(point, direction)
        pass_s = (time.perf_counter() - clock) / loss.passes
        with watched(f"200 neighbours of {queries} queries"):
            nearest(stacked, stacked.take(np.arange(queries)), 200)
    gmacs = 2 * rows * width * classes / 1e9
    hours, minutes = PASSES * pass_s / 3600, PASSES * gmacs / H100 / 6e4
    print(f"a pass takes {pass_s:.0f} s here (at least {gmacs:.0f} GMACs); a sweep of {PASSES} passes")
    print(f"would take {hours:.1f} h here, and at {H100} TMAC/s {minutes:.1f} min")


if __name__ == "__main__":
    main()
