"""Nearest neighbours by cosine similarity, against scikit-learn's brute force on the same rows.

python benchmarks/neighbours.py [--bank 40000] [--queries 5000] [--width 1024] [--depth 200] [--rounds 3]
"""

import time

import click
import numpy as np


@click.command()
@click.option("--bank", default=40_000)
@click.option("--queries", default=5_000)
@click.option("--width", default=1_024)
@click.option("--depth", default=200)
@click.option("--rounds", default=3)
def main(bank: int, queries: int, width: int, depth: int, rounds: int) -> None:
    """Time both in turn."""
    from sklearn.neighbors import NearestNeighbors

    from mixmim_bench.machine import open_machine
    from mixmim_bench.probes.neighbours import nearest

    machine = open_machine("cpu")
    print(machine.describe())
    least_s = queries * bank * width / 1e9 / machine.matmul_gmacs_per_s
    rng = np.random.default_rng(0)
    x = rng.standard_normal((bank, width)).astype(np.float32)
    x_queries = rng.standard_normal((queries, width)).astype(np.float32)
    ratios = []
    for _ in range(rounds):
        clock = time.perf_counter()
        _, ours = nearest(x, x_queries, depth)
        own_s = time.perf_counter() - clock
        clock = time.perf_counter()
        reference = NearestNeighbors(n_neighbors=depth, metric="cosine", algorithm="brute").fit(x)
        theirs = reference.kneighbors(x_queries, return_distance=False)
        reference_s = time.perf_counter() - clock
        ratios.append(reference_s / own_s)
        same = 100 * (ours == theirs).mean()
        share = 100 * least_s / own_s
        print(
            f"ours {own_s:.1f} s, {share:.0f} % of the matrix-multiply peak, "
            f"scikit-learn {reference_s:.1f} s, same rows {same:.2f} %"
        )
    print(f"ratio: {np.median(ratios):.2f} (median of {rounds})")


if __name__ == "__main__":
    main()
