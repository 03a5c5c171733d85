"""Run the benchmarks one after the other and write their output into benchmarks/README.md.

    python benchmarks/all.py [--quick] [--only engines --only inputs]

With `--quick`, smaller sizes: about ten minutes on two cores. `forward.py` is left out where OpenMMLab's
packages are not installed, `gpu.py` where there is no GPU; `coverage.py` and `choosing.py` measure no speed.
"""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import click

HERE = Path(__file__).parent
START, STOP = "<!-- all.py: start -->", "<!-- all.py: stop -->"
QUICK = {
    "engines": ["-m", "mixmim-b", "--rounds", "2"],
    "extraction": ["--images", "64", "--rounds", "1"],
    "forward": ["--rounds", "1"],
    "inputs": ["--rounds", "3"],
    "neighbours": ["--queries", "2000", "--rounds", "2"],
    "solver": ["--every", "22"],
    "listing": ["--images", "128"],
    "gpu": ["--quick"],
}
FULL: dict[str, list[str]] = {**{name: [] for name in QUICK}, "large": [], "precision": [], "suite": []}


@click.command()
@click.option("--quick", is_flag=True)
@click.option("--only", multiple=True, type=click.Choice(sorted(FULL)))
def main(quick: bool, only: tuple[str, ...]) -> None:
    """Run them and replace the section of the README."""
    from mixmim_bench.machine import Machine

    chosen = {
        name: arguments for name, arguments in (QUICK if quick else FULL).items() if not only or name in only
    }
    parts = [
        f"Machine: {Machine(device='cpu').describe()['device']}, {Machine(device='cpu').threads} threads."
    ]
    for name, arguments in chosen.items():
        if reason := _reason_to_skip(name):
            parts.append(f"`{name}.py` was left out: {reason}.")
            continue
        command = " ".join(["python", f"benchmarks/{name}.py", *arguments])
        print(f"== {command}", flush=True)
        clock = time.perf_counter()
        done = subprocess.run(
            [sys.executable, HERE / f"{name}.py", *arguments], capture_output=True, text=True, cwd=HERE.parent
        )
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            raise SystemExit(f"{command} failed")
        print(done.stdout, flush=True)
        parts.append(f"`{command}` ({time.perf_counter() - clock:.0f} s):\n\n```\n{done.stdout.strip()}\n```")
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition(START)
    _, _, after = rest.partition(STOP)
    readme.write_text(before + "\n\n".join([START, *parts, STOP]) + after)


def _reason_to_skip(name: str) -> str:
    if name == "forward" and importlib.util.find_spec("mmpretrain") is None:
        return "OpenMMLab's packages are not installed"
    if name == "gpu":
        import torch

        return "" if torch.cuda.is_available() else "there is no GPU"
    return ""


if __name__ == "__main__":
    main()
