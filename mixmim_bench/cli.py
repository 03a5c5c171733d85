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
    type=click.IntRange(min=0),
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
    help="Images at a time in a forward pass; changes no result.",
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
    from mixmim_bench.report.write import write_report
    from mixmim_bench.resolve import Selection, resolve
    from mixmim_bench.store import RunStore
    from mixmim_bench.suite import Suite

    console = Console(highlight=False)
    machine = open_machine(device, precision, threads, batch_size, workers)
    store = RunStore(results)
    if not dry_run:
        store.prepare()
    resolved = resolve(Selection(precision=precision, **selected), _say(console))
    suite = Suite(resolved, store, machine, console)
    if dry_run:
        _print_table(_plan_rows(suite))
        return
    outcome = suite.run()
    markdown, paths, broken = write_report(store)
    click.echo(f"\n{markdown}\n")
    for path in broken:
        click.echo(f"Not a record, so not counted: {path}", err=True)
    click.echo(f"Written: {', '.join(map(str, paths))}")
    if outcome.interrupted:
        sys.exit(130)
    if outcome.failed:
        click.echo(f"{len(outcome.failed)} runs failed; the same command tries them again.", err=True)
        sys.exit(1)


def _say(console: Any) -> Any:
    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    return say


def _plan_rows(suite: Any) -> list[dict[str, Any]]:
    rows = []
    for estimate in suite.estimates():
        planned = estimate.planned
        rows.append(
            {
                "model": planned.run.model.name,
                "weights": planned.run.weights["name"],
                "task": planned.run.task.name,
                "protocol": planned.run.protocol["name"],
                "seed": planned.run.seed,
                "forward images": planned.forward,
                "train images": planned.train,
                "GMACs/image": f"{estimate.gmacs:.2f}",
                "estimate": "finished" if estimate.finished else _duration(estimate.seconds),
            }
        )
    return rows


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
                "params (M)": f"{row['params'] / 1e6:.1f}",
                "GMACs": f"{row['gmacs']:.1f}",
                "input": row["input_size"],
                "weights": "\n".join(
                    f"{w['name']} ({'present' if w['present'] else 'not here'})" for w in row["weights"]
                )
                or "none published for download",
            }
            for row in rows
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
    from mixmim_bench.report.write import write_report
    from mixmim_bench.store import RunStore

    if not results.is_dir():
        raise BenchError(f"there is no results folder {results}; --results names another")
    markdown, paths, broken = write_report(RunStore(results))
    click.echo(f"{markdown}\n")
    for path in broken:
        click.echo(f"Not a record, so not counted: {path}", err=True)
    click.echo(f"Written: {', '.join(map(str, paths))}")


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    from tabulate import tabulate

    click.echo(tabulate(rows, headers="keys", disable_numparse=True) if rows else "nothing")


if __name__ == "__main__":
    main()
