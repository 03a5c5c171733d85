"""Coverage of 95 % intervals of label maps and detections: the share that contains the true score.

    python benchmarks/dense_coverage.py [TRIALS]

Label maps: 20 classes in 5 to 50 % of the images, right in 30 to 90 % of their pixels, which varies by image.
Detections: 8 classes with 0.06 to 0.5 objects per image, 30 to 90 % of them found, at any overlap, and 0.2
false detections per class and image. The true score is that of very many images. The simulations are those of
tests/test_dense_scores.py.
"""

import sys
from pathlib import Path

import numpy as np

from mixmim_bench.scoring.metrics import score_items, value_of_items

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from test_dense_scores import simulated_counts, simulated_detections


def main(trials: int = 200) -> None:
    """Print the coverage for several numbers of images."""
    print("| metric | images | covered | mean width |\n| --- | --- | --- | --- |")
    rng = np.random.default_rng(0)
    of_maps = np.linspace(0.5, 0.05, 20), rng.uniform(0.3, 0.9, 20)
    of_objects = np.linspace(0.5, 0.06, 8), rng.uniform(0.3, 0.9, 8)
    many = list(simulated_counts(rng, 100_000, *of_maps).transpose(1, 0, 2))
    for name in ("miou", "macc", "aacc"):
        for n in (30, 100, 300, 2000):
            draws = (list(simulated_counts(rng, n, *of_maps).transpose(1, 0, 2)) for _ in range(trials))
            _report(name, n, value_of_items(name, many), draws)
    truth = value_of_items("ap_box", simulated_detections(rng, 30_000, *of_objects))
    for n in (40, 150, 600):
        _report("ap_box", n, truth, (simulated_detections(rng, n, *of_objects) for _ in range(trials)))


def _report(name: str, n: int, truth: float, draws: object) -> None:
    scores = [score_items(name, [items]) for items in draws]  # type: ignore[attr-defined]
    covered = np.mean([score["low"] <= truth <= score["high"] for score in scores])
    width = np.mean([score["high"] - score["low"] for score in scores])
    print(f"| `{name}` | {n} | {covered:.3f} | {width:.3f} |", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
