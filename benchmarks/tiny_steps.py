"""Scores of frozen features against the length of a pretraining: a CSV file and a figure.

    python benchmarks/tiny_steps.py 0=random 1=tiny/checkpoint-1.pth 10=tiny/checkpoint.pth [--out FOLDER]

Each argument is EPOCHS=WEIGHTS. `mixmim-bench pretrain --keep-every N` keeps the checkpoints. Results are
written to --results, so that the same command continues after an interruption.
"""

from pathlib import Path

import click
import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mixmim_bench import run_suite
from mixmim_bench.report.drawing import COLOURS, MARKERS, STYLE, save

TASKS = (str(Path(__file__).with_name("fashion_small.toml")), "digits", "mnist5k")
PROTOCOLS = ("linear", "knn")
COLUMNS = ["epochs", "steps", "task", "protocol", "value", "low", "high", "n"]


def epochs_and_weights(text: str) -> tuple[int, str]:
    """Split EPOCHS=WEIGHTS."""
    epochs, _, weights = text.partition("=")
    if not epochs.isdecimal() or not weights:
        raise click.BadParameter(f"{text!r} is not EPOCHS=WEIGHTS, such as 3=tiny/checkpoint-3.pth")
    return int(epochs), weights


@matplotlib.rc_context(STYLE)
def draw(scores: pd.DataFrame, label: str) -> Figure:
    """Draw one panel per task, with a line and its 95 % intervals per protocol."""
    tasks = list(dict.fromkeys(scores["task"]))
    figure = Figure(figsize=(2.7 * len(tasks), 2.9), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False).flatten()
    for panel, task in zip(panels, tasks, strict=True):
        for place, protocol in enumerate(dict.fromkeys(scores["protocol"])):
            rows = scores[(scores["task"] == task) & (scores["protocol"] == protocol)].sort_values("epochs")
            value, low, high = (100 * rows[name] for name in ("value", "low", "high"))
            look = {"color": COLOURS[place], "marker": MARKERS[place], "markersize": 4}
            panel.plot(rows["epochs"], value, label=protocol, linewidth=1.2, **look)
            panel.fill_between(rows["epochs"], low, high, color=COLOURS[place], alpha=0.18, linewidth=0)
        panel.set_title(task)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("top-1 accuracy (%)")
    panels[0].legend(loc="lower right")
    figure.supxlabel(label, fontsize=9)
    return figure


@click.command(help=__doc__)
@click.argument("checkpoints", nargs=-1, required=True)
@click.option("--model", default="mixmim-tiny")
@click.option("--task", "tasks", multiple=True, default=TASKS)
@click.option("--steps", default=441, help="Steps of an epoch: 56,500 images in batches of 128.")
@click.option("--results", type=Path, default=Path("results/tiny_steps"))
@click.option("--out", type=Path, default=Path("results/shown"))
def main(
    checkpoints: tuple[str, ...], model: str, tasks: tuple[str, ...], steps: int, results: Path, out: Path
) -> None:
    """Evaluate each checkpoint, then write `tiny_steps.csv` and `tiny_steps.png`."""
    frames = []
    for epochs, weights in map(epochs_and_weights, checkpoints):
        frame = run_suite(f"{model}={weights}", tasks, PROTOCOLS, results=results)
        frames.append(frame[frame["ranked"]].assign(epochs=epochs, steps=steps * epochs))
    scores = pd.concat(frames)[COLUMNS].sort_values(["task", "protocol", "epochs"])
    scores.to_csv(out / "tiny_steps.csv", index=False, float_format="%.4f")
    save(draw(scores, f"epochs of pretraining, {steps} steps each"), [out / "tiny_steps.png"])


if __name__ == "__main__":
    main()
