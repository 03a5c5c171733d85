"""`results`: list, show and remove the results of runs."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mixmim_bench.cli.complete import completing, run_ids
from mixmim_bench.cli.options import FILTERS, JSON, RESULTS, examples, existing, print_table, show_report
from mixmim_bench.report.text import printable

if TYPE_CHECKING:
    from mixmim_bench.specs import RunRecord
    from mixmim_bench.suite.records import RunStore

PLOTS = ("choice", "training", "per-class", "confusion")  # of a run, as in `report.runplots`
_RUNS = click.argument("runs", nargs=-1, required=True, shell_complete=completing(run_ids))
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Show what would be removed.")


@click.group(epilog=examples("mixmim-bench results ls", "mixmim-bench results show 0a1b2c"))
def results() -> None:
    """List, show and remove the results of runs."""


@results.command(
    "ls",
    epilog=examples("mixmim-bench results ls -t digits -p linear", "mixmim-bench results ls --failed --json"),
)
@FILTERS
@click.option("--failed", is_flag=True, help="Only failed runs.")
@RESULTS
@JSON
def list_results(results: Path, failed: bool, as_json: bool, **wanted: tuple[str, ...]) -> None:
    """List runs, the newest last: finished ones with their score, failed ones with their error."""
    from mixmim_bench.report.runs import matching, row_of

    store, broken = _store(results), []  # type: ignore[var-annotated]
    records = [each for each in matching(store.records(broken), **wanted) if bool(each.error) or not failed]
    if as_json:
        click.echo(json.dumps([json.loads(record.to_json()) for record in records], indent=1))
    else:
        print_table([row_of(record) for record in records])
    for path in map(printable, broken):
        click.echo(f"Not a valid record: {path}", err=True)


@results.command(
    epilog=examples("mixmim-bench results show 0a1b2c", "mixmim-bench results show 0a1b2c --json")
)
@click.argument("run", shell_complete=completing(run_ids))
@RESULTS
@JSON
def show(run: str, results: Path, as_json: bool) -> None:
    """Show all that is recorded of RUN: the first digits of its id, as `ls` shows it."""
    from mixmim_bench.report.runs import describe

    store = _store(results)
    record = store.find(run)
    click.echo(record.to_json() if as_json else describe(store, record))


@results.command(
    epilog=examples(
        "mixmim-bench results plot 0a1b2c", "mixmim-bench results plot 0a1b2c --what confusion --output plots"
    )
)
@click.argument("run", shell_complete=completing(run_ids))
@click.option(
    "--what",
    type=click.Choice(PLOTS),
    help="Only this plot: what was tried on val, losses and learning rates, scores of the classes, or which "
    "classes were taken for which. By default all that the run has data for.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder to write to; by default RESULTS/plots/runs/RUN_ID.",
)
@RESULTS
def plot(run: str, what: str | None, output: Path | None, results: Path) -> None:
    """Draw what RUN chose on val, how its training went, the score of each class and the confusions.

    RUN is the first digits of its id, as `ls` shows it. Each plot is a PNG, an SVG and a PDF. Of more than 60
    classes, the 30 best and the 30 worst are shown; of more than 40, the 25 most frequent confusions.
    """
    from mixmim_bench.report.runplots import write_run_plots

    store = _store(results)
    for path in write_run_plots(store, store.find(run), what or "", output):
        click.echo(path)


@results.command(
    epilog=examples("mixmim-bench results rm 0a1b2c 3d4e5f", "mixmim-bench results rm 0a --dry-run")
)
@_RUNS
@RESULTS
@_DRY_RUN
def rm(runs: tuple[str, ...], results: Path, dry_run: bool) -> None:
    """Remove RUNS for good, with all their files, and rebuild the leaderboard."""
    store = _store(results)
    found = {record.run_id: record for record in map(store.find, runs)}
    _remove(store, list(found.values()), dry_run)


@results.command(
    epilog=examples("mixmim-bench results prune --limited", "mixmim-bench results prune --failed --dry-run")
)
@click.option("--limited", is_flag=True, help="Remove smoke runs (--limit).")
@click.option("--failed", is_flag=True, help="Remove failed runs.")
@RESULTS
@_DRY_RUN
def prune(limited: bool, failed: bool, results: Path, dry_run: bool) -> None:
    """Remove smoke runs or failed runs, and rebuild the leaderboard."""
    if not limited and not failed:
        raise click.UsageError("say what to remove: --limited, --failed, or both")
    store = _store(results)
    wanted = [each for each in store.records() if (limited and each.limited) or (failed and each.error)]
    _remove(store, wanted, dry_run)


@results.command(
    epilog=examples(
        "mixmim-bench results bundle mine.zip -m mixmim-b",
        "mixmim-bench results bundle mine.zip -t 'imagenet*'",
    )
)
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@FILTERS
@RESULTS
def bundle(out: Path, results: Path, **wanted: tuple[str, ...]) -> None:
    """Write finished runs with predictions and costs to OUT, a zip file that others can merge."""
    from mixmim_bench.errors import counted
    from mixmim_bench.report.runs import matching
    from mixmim_bench.suite.bundles import write_bundle

    store = _store(results)
    count = write_bundle(store, matching(store.finished().values(), **wanted), out)
    click.echo(f"{counted(count, 'result')} written to {out}")


@results.command(
    epilog=examples(
        "mixmim-bench results merge mine.zip yours.zip", "mixmim-bench results merge other/results"
    )
)
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@RESULTS
def merge(bundles: tuple[Path, ...], results: Path) -> None:
    """Merge BUNDLES, or other results folders, into the results folder, and rebuild the leaderboard.

    Records are checked, and scores are computed again from their predictions. A result that differs from one
    that is there is refused: nothing is replaced. The exit status is 1 if something was refused.
    """
    from mixmim_bench.report.write import write_report
    from mixmim_bench.suite.bundles import merge as merge_into
    from mixmim_bench.suite.bundles import summary
    from mixmim_bench.suite.records import RunStore

    store, refused = RunStore(results), False
    for path in bundles:
        merged = merge_into(store, path, lambda text: click.echo(printable(text), err=True))
        click.echo(f"{path}: {summary(merged)}")
        refused |= bool(merged.refused)
    show_report(write_report(store), table=False)
    if refused:
        sys.exit(1)


@results.command(
    "export-head",
    epilog=examples(
        "mixmim-bench results export-head 0a1b2c --out head.safetensors",
        "mixmim-bench predict photos/ --head head.safetensors",
    ),
)
@click.argument("run", shell_complete=completing(run_ids))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="A .safetensors file."
)
@RESULTS
def export_head(run: str, out: Path, results: Path) -> None:
    """Write the trained linear probe of RUN, with its record, for `predict --head`."""
    from mixmim_bench.heads import export_head as export

    store = _store(results)
    record = store.find(run)
    classes, width = export(store, record, out)
    click.echo(f"{record.model} · {record.task} · {record.protocol}: {classes} classes x {width} in {out}")


@results.command(epilog=examples("mixmim-bench results schema > record.schema.json"))
def schema() -> None:
    """Print the JSON Schema of records."""
    from mixmim_bench.suite.schema import record_schema

    click.echo(json.dumps(record_schema(), indent=1))


def _store(results: Path) -> "RunStore":
    from mixmim_bench.suite.records import RunStore

    return RunStore(existing(results))


def _remove(store: "RunStore", records: "list[RunRecord]", dry_run: bool) -> None:
    from mixmim_bench.errors import counted

    kept = 0
    for record in records:
        removed: Any = store.files_of(record.run_id) if dry_run else store.remove(record.run_id)
        if removed is None:
            kept += 1
        what = (
            "would remove" if dry_run else "removed" if removed is not None else "kept, since it is running:"
        )
        label = printable(f"{record.model} · {record.task} · {record.protocol}")
        click.echo(f"{what} {record.run_id} ({label})")
    click.echo(f"{counted(len(records) - kept, 'run')} {'would be ' if dry_run else ''}removed")
    if records and not dry_run:
        from mixmim_bench.report.write import write_report

        show_report(write_report(store), table=False)
    if kept:
        sys.exit(1)
