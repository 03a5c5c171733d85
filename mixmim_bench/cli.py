"""The command line: commands parse, call one function and print. Heavy imports stand inside them."""

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mixmim_bench import __version__
from mixmim_bench.errors import BenchError

DATA_ROOT = click.option(
    "--data-root",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="MIXMIM_BENCH_DATA",
    show_envvar=True,
    help="Folder with one folder a dataset.",
)
RESULTS = click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("results"),
    show_default=True,
    help="Folder for records, tables and plots.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


class _Group(click.Group):
    """A group that tells mistakes in one line and exits with 2, or with 130 after Ctrl-C."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BenchError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(130)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Judge vision backbones by linear probes, kNN and fine-tuning, with what they cost."""
    warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)  # timm's import


@main.command()
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    default=["mixmim-b"],
    show_default=True,
    help="Model of `mixmim-bench models`, or any timm model. Repeatable.",
)
@click.option(
    "-t",
    "--task",
    "tasks",
    multiple=True,
    help="Task name, glob, or path of a .toml file. Repeatable.",
)
@click.option("-s", "--suite", "suites", multiple=True, help="Suite of tasks: embedded, paper. Repeatable.")
@click.option(
    "-p",
    "--protocol",
    "protocols",
    multiple=True,
    default=["linear", "finetune"],
    show_default=True,
    help="linear, knn, finetune. Repeatable.",
)
@click.option(
    "--seed",
    "seeds",
    type=click.IntRange(0, 2**31 - 1),
    multiple=True,
    default=[0],
    show_default=True,
    help="Seed of everything that is random. Repeatable.",
)
@click.option(
    "--weights",
    default="auto",
    show_default=True,
    help="auto (the published ones), random, or the path of a checkpoint.",
)
@click.option(
    "--preset",
    default="auto",
    show_default=True,
    help="Hyper-parameters: paper, random, or auto by the weights.",
)
@DATA_ROOT
@RESULTS
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, …")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the backbone's forward pass.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads to compute with.")
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Processes that decode images.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Images at a time in a forward pass; changes results only by rounding.",
)
@click.option("--dry-run", is_flag=True, help="Show what would run and how long it would take.")
def run(
    results: Path,
    device: str,
    precision: str,
    threads: int | None,
    workers: int,
    batch_size: int,
    dry_run: bool,
    **selected: Any,
) -> None:
    """Judge models on tasks, and write the leaderboard.

    What is finished is not done again; after an interruption the same command goes on.
    """
    from rich.console import Console

    from mixmim_bench.machine import open_machine
    from mixmim_bench.progress import download_bar, line_printer
    from mixmim_bench.resolve import Selection, resolve
    from mixmim_bench.store import RunStore
    from mixmim_bench.suite import Suite

    console = Console(highlight=False)
    machine = open_machine(device, precision, threads, batch_size, workers)
    store = RunStore(results)
    if not dry_run:
        store.prepare()
    selection = Selection(precision=precision, **selected)
    resolved = resolve(selection, line_printer(console), None if dry_run else download_bar(console))
    suite = Suite(resolved, store, machine, console)
    if dry_run:
        _print_table([_plan_row(estimate) for estimate in suite.estimates()])
        return
    outcome = suite.run()
    click.echo()
    _write_report(store)
    if outcome.interrupted:
        sys.exit(130)
    if outcome.failed:
        click.echo(f"{len(outcome.failed)} runs failed; the same command tries them again.", err=True)
        sys.exit(1)


def _plan_row(estimate: Any) -> dict[str, Any]:
    run = estimate.planned.run
    time_left = "finished" if estimate.finished else _duration(estimate.seconds)
    return {
        "model": run.model.name,
        "weights": run.weights["name"],
        "task": run.task.name,
        "protocol": run.protocol["name"],
        "seed": "" if run.seed is None else run.seed,
        "forward images": estimate.planned.forward,
        "train images": estimate.planned.train,
        "GMACs/image": f"{estimate.gmacs:.2f}",
        "estimate": f"cannot run: {estimate.error}" if estimate.error else time_left,
    }


def _write_report(store: Any) -> None:
    """Write the report and show it."""
    from mixmim_bench.report.write import write_report

    written = write_report(store)
    click.echo(f"{written.markdown}\n")
    for path in written.broken:
        click.echo(f"Not a record, so not counted: {path}", err=True)
    click.echo(f"Written: {', '.join(map(str, written.paths))}")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@main.command()
@JSON
def models(as_json: bool) -> None:
    """List the models that the suite knows by name; any timm model is accepted too."""
    from mixmim_bench.catalog import list_models

    rows = list_models()
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    _print_table(
        [
            {
                "model": row["name"],
                "timm name": row["arch"],
                "params (M)": f"{row['params'] / 1e6:.1f}",
                "GMACs": f"{row['gmacs']:.1f}",
                "input": row["input_size"],
            }
            for row in rows
        ]
    )
    click.echo("\nPublished weights; each name is an alias for the model with these weights.\n")
    _print_table(
        [
            {
                "alias": weights["name"],
                "model": row["name"],
                "top-1": weights["published"].get("top1", ""),
                "here": "yes" if weights["present"] else "no",
                "from": weights["url"] or f"{weights['home']} (by hand, to {weights['path']})",
            }
            for row in rows
            for weights in row["weights"]
        ]
    )


@main.command()
@DATA_ROOT
@JSON
def tasks(data_root: Path | None, as_json: bool) -> None:
    """List the tasks, and whether their images are on this machine."""
    from mixmim_bench.catalog import list_tasks

    rows = list_tasks(data_root)
    click.echo(json.dumps(rows, indent=1)) if as_json else _print_table(rows)


@main.command()
@RESULTS
def report(results: Path) -> None:
    """Write the leaderboard and the plots again, from the records alone."""
    from mixmim_bench.store import RunStore

    if not results.is_dir():
        raise BenchError(f"there is no results folder {results}; --results names another")
    _write_report(RunStore(results))


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    from tabulate import tabulate

    click.echo(tabulate(rows, headers="keys", disable_numparse=True) if rows else "nothing")


if __name__ == "__main__":
    main()
