"""A suite on four Ray nodes that die at random moments, against the same suite in one process.

    python benchmarks/cluster.py [--nodes 4] [--seed 0] [--every 6]

All nodes are on this machine, with a core each and a cache of their own. At random moments a node is killed
with all its processes, and another one joins. Prints what the driver has seen, and whether the records hold
the same scores and predictions as those of one process, bit for bit. Exits with 1 if they do not.
"""

import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import ray
from ray.cluster_utils import Cluster

from mixmim_bench.suite.records import RunStore

MODELS = ["test_vit=random", *(f"pixels@{side}" for side in (16, 20, 24, 28))]
TASKS = ["digits@limit200", "digits@limit400", "mnist5k@limit200", "mnist5k@limit400"]
PROTOCOLS = ["knn", "linear"]
DEAD = r"has failed: (\w+)"


@click.command()
@click.option("--nodes", default=4)
@click.option("--seed", default=0, help="Of the moments and nodes.")
@click.option("--every", default=6.0, help="Mean seconds between two deaths.")
def main(nodes: int, seed: int, every: float) -> None:
    """Run the suite in one process, then on the cluster."""
    options = [
        *(word for model in MODELS for word in ("-m", model)),
        *(word for task in TASKS for word in ("-t", task)),
        *(word for protocol in PROTOCOLS for word in ("-p", protocol)),
        *("--threads", "1"),
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["OMP_NUM_THREADS"] = "1"  # as on the nodes: sums of several threads differ in the last bit
        start = time.monotonic()
        if driver(folder / "alone", options, folder / "cache").wait():
            sys.exit((folder / "alone.log").read_text())
        print(f"one process: {time.monotonic() - start:.0f} s", flush=True)
        print(on_cluster(folder, options, nodes, random.Random(seed), every))
        sys.exit(0 if same(folder / "alone", folder / "cluster") else 1)


def driver(results: Path, options: list[str], cache: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start `mixmim-bench run`, whose output goes to a file beside the results."""
    command = [sys.executable, "-m", "mixmim_bench.cli", "run", "--results", str(results), *options, *more]
    environment = {**os.environ, "MIXMIM_BENCH_CACHE": str(cache), "MIXMIM_BENCH_OFFLINE": "1"}
    with results.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def on_cluster(folder: Path, options: list[str], count: int, chance: random.Random, every: float) -> str:
    """Run the suite while nodes die; returns what has happened."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    joined, deaths = 0, 0

    def join() -> object:
        nonlocal joined
        joined += 1
        return cluster.add_node(
            num_cpus=1, env_vars={"MIXMIM_BENCH_CACHE": str(folder / f"cache of node {joined}")}
        )

    alive = [join() for _ in range(count)]
    start = time.monotonic()
    process = driver(folder / "cluster", options, folder / "cache", "--ray", cluster.address)
    next_death = time.monotonic() + 20.0  # when the first runs have begun
    while process.poll() is None:
        time.sleep(0.2)
        if time.monotonic() > next_death:
            cluster.remove_node(alive.pop(chance.randrange(len(alive))), allow_graceful=False)
            deaths += 1
            alive.append(join())
            next_death = time.monotonic() + chance.expovariate(1 / every)
    seconds = time.monotonic() - start
    ray.shutdown()
    cluster.shutdown()
    log = (folder / "cluster.log").read_text()
    failures = re.findall(DEAD, log)
    records = RunStore(folder / "cluster").records()
    errors = sum(bool(record.error) for record in records)
    return (
        f"{count} nodes: {seconds:.0f} s, exit {process.returncode}; {deaths} nodes killed, "
        f"{len(failures)} tasks ended by it ({', '.join(sorted(set(failures)))}); "
        f"{len(records)} records, {errors} with an error"
    )


def same(one: Path, other: Path) -> bool:
    """Compare scores and predictions, and print how many are the same."""
    stores = [RunStore(folder) for folder in (one, other)]
    mine, theirs = ({record.run_id: record for record in store.records()} for store in stores)
    equal = 0
    for run_id in mine.keys() & theirs.keys():
        arrays = [store.arrays(run_id) for store in stores]
        equal += (
            mine[run_id].scores == theirs[run_id].scores
            and arrays[0].keys() == arrays[1].keys()
            and all(np.array_equal(values, arrays[1][name]) for name, values in arrays[0].items())
        )
    print(f"{equal} of {len(mine)} runs have the same scores and predictions, bit for bit")
    return equal == len(mine) == len(theirs) > 0


if __name__ == "__main__":
    main()
