"""Images per second of MixMIM-B's forward pass, against OpenMMLab's and against the matrix-multiply peak.

    python benchmarks/forward.py [--batch 1 --batch 8 --batch 32] [--precision float32 ...] [--rounds 5]

The three are timed in turn, for several rounds, in one process of an environment with both implementations.
Prints medians over the rounds, and ratios of times within a round.
"""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
GMACS = 16.35  # per image, without the classifier


def child(batches: list[int], precisions: list[str], rounds: int, compiled: bool) -> None:
    """Time both implementations, in an environment where both can be imported."""
    sys.path.insert(0, str(ROOT))
    import timm
    import torch
    from mmpretrain.models.backbones import MixMIMTransformer

    import mixmim_bench.models  # noqa: F401
    from mixmim_bench.machine import open_machine

    networks = {
        "ours": timm.create_model("mixmim_base", num_classes=0),
        "openmmlab": MixMIMTransformer("base"),
    }
    for network in networks.values():
        network.eval()
    if compiled:
        networks["compiled"] = torch.compile(networks["ours"])
    machine_facts = open_machine("cpu").describe()
    print(f"{machine_facts['device']}, {machine_facts['threads']} threads, torch {torch.__version__}")
    for precision in precisions:
        for batch in batches:
            images = torch.randn(batch, 3, 224, 224)
            seconds: dict[str, list[float]] = {name: [] for name in networks}
            peaks = []
            for _ in range(rounds + 1):  # the first one warms up
                machine = open_machine("cpu", precision)
                peaks.append(machine.matmul_gmacs_per_s)
                for name, network in networks.items():
                    with torch.inference_mode(), machine.autocast():
                        clock = time.perf_counter()
                        network(images)
                        seconds[name].append(time.perf_counter() - clock)
            report(f"{precision} batch {batch}", batch, seconds, peaks)


def report(what: str, batch: int, seconds: dict[str, list[float]], peaks: list[float]) -> None:
    """Print medians over the rounds: speeds, ratios of times within a round, share of the peak."""
    import numpy as np

    times = {name: np.array(values[1:]) for name, values in seconds.items()}
    speeds = ", ".join(f"{name} {batch / np.median(values):.2f}/s" for name, values in times.items())
    share = np.median(batch * GMACS / times["ours"] / np.array(peaks[1:]))
    ratios = [f"openmmlab / ours {np.median(times['openmmlab'] / times['ours']):.2f}"]
    if "compiled" in times:
        ratios.append(f"ours / compiled {np.median(times['ours'] / times['compiled']):.2f}")
    print(
        f"{what}: {speeds}; time of {', '.join(ratios)}; {100 * share:.0f} % of the matrix-multiply peak "
        f"of {np.median(peaks[1:]):.0f} GMAC/s",
        flush=True,
    )


def main() -> None:
    """Parse the options, create the environment, and run in it."""
    import click

    @click.command(help=__doc__)
    @click.option("--batch", "batches", type=int, multiple=True, default=[1, 8, 32])
    @click.option("--precision", "precisions", multiple=True, default=["float32", "bfloat16"])
    @click.option("--rounds", default=5)
    @click.option("--compile", "compiled", is_flag=True)
    def run(batches: tuple[int, ...], precisions: tuple[str, ...], rounds: int, compiled: bool) -> None:
        sys.path.insert(0, str(ROOT / "tests" / "reference"))
        from environment import openmmlab_python

        python = openmmlab_python(ROOT / ".pytest_cache" / "d" / "openmmlab")
        code = f"import forward; forward.child({list(batches)}, {list(precisions)}, {rounds}, {compiled})"
        subprocess.run([python, "-W", "ignore", "-c", code], cwd=Path(__file__).parent, check=True)

    run()


if __name__ == "__main__":
    main()
