"""Time of the suite: cold, with cached features, and with everything finished.

    python benchmarks/suite.py [--model mixmim-b] [--task mnist5k] [--protocol linear --protocol knn]

Each run is a separate process. Cold: no features, no measured costs. Cached features: results are deleted,
the feature store is not. Warm: the same command again.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click


@click.command()
@click.option("--model", default="mixmim-b")
@click.option("--task", default="mnist5k")
@click.option("--protocol", "protocols", multiple=True, default=["linear", "knn"])
def main(model: str, task: str, protocols: tuple[str, ...]) -> None:
    """Start the suite five times."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "mixmim_bench.cli", "run", "-m", model, "-t", task]
        command += [part for protocol in protocols for part in ("-p", protocol)]
        command += ["--weights", "random", "--results", str(folder / "results")]
        env = {**os.environ, "MIXMIM_BENCH_CACHE": str(folder / "cache"), "MIXMIM_BENCH_OFFLINE": "1"}

        def start() -> float:
            clock = time.perf_counter()
            subprocess.run(command, env=env, check=True, capture_output=True)
            return time.perf_counter() - clock

        cold = start()
        shutil.rmtree(folder / "results" / "runs")
        cached = start()
        warm = min(start() for _ in range(3))
    print(f"cold {cold:.1f} s, cached features {cached:.1f} s, warm {warm:.1f} s")
    print(f"cached features / cold: {100 * cached / cold:.1f} %; warm / cold: {100 * warm / cold:.1f} %")


if __name__ == "__main__":
    main()
