"""`doctor`: find missing and broken data, weights and settings before any work."""

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from mixmim_bench.cli.options import (
    DATA_ROOT,
    DEVICE,
    JSON,
    MODELS,
    PRECISION,
    SUITES,
    TASKS,
    THREADS,
    examples,
    print_table,
)

if TYPE_CHECKING:
    from mixmim_bench.data.roots import DataRoots
    from mixmim_bench.doctor import TaskReport


@click.command(
    epilog=examples("mixmim-bench doctor --data-root /data", "mixmim-bench doctor -t imagenet1k --full")
)
@MODELS
@TASKS
@SUITES
@DATA_ROOT
@click.option("--full", is_flag=True, help="Decode all images and compare all bytes instead of a sample.")
@DEVICE
@PRECISION
@THREADS
@JSON
def doctor(
    models: tuple[str, ...],
    tasks: tuple[str, ...],
    suites: tuple[str, ...],
    roots: "DataRoots",
    full: bool,
    as_json: bool,
    **machine: Any,
) -> None:
    """Check data, weights, disk and machine, and show how to get what is missing.

    Checks all tasks unless some are named; name a missing one to see how to get it. Downloads nothing. The
    exit status is 0 if all is well, 1 if something that was found is wrong, 3 if a task or suite was named
    whose data is missing.
    """
    from rich.console import Console

    from mixmim_bench.doctor import MISSING, WRONG, Doctor
    from mixmim_bench.machine import open_machine
    from mixmim_bench.modelfile import open_model
    from mixmim_bench.models.build import feature_width
    from mixmim_bench.progress import View
    from mixmim_bench.suite.selection import load_tasks, select_tasks

    specs = [open_model(name) for name in dict.fromkeys(models)]
    named = select_tasks(tasks, suites)
    view = View(Console(stderr=True, highlight=False), 0)
    looking = Doctor(roots, open_machine(**machine), view, full)
    width = max(feature_width(model) for model in specs)
    with view:
        reports = [looking.task(task, width) for task in named or load_tasks().values()]
    weights = [looking.model(model) for model in specs]
    description = looking.describe_machine()
    if as_json:
        rows = [dataclasses.asdict(report) for report in reports]
        click.echo(json.dumps({"tasks": rows, "models": weights, "machine": description}, indent=1))
    else:
        _print(reports, weights, description, brief=not named)
    states = {report.state for report in reports}
    if WRONG in states:
        sys.exit(1)
    if named and MISSING in states:
        sys.exit(3)


def _print(
    reports: "list[TaskReport]", weights: list[dict[str, Any]], machine: dict[str, Any], brief: bool
) -> None:
    from mixmim_bench.doctor import MISSING

    not_found = [report for report in reports if brief and report.state == MISSING]
    shown = [report for report in reports if report not in not_found]
    print_table([_row(report) for report in shown])
    if not_found:
        names = ", ".join(report.task for report in not_found)
        click.echo(
            f"\nMissing: {names}. `mixmim-bench doctor -t NAME` shows where it looked and how to get it."
        )
    for report in shown:
        if not report.problems and not report.remarks:
            continue
        click.echo(f"\n{report.task}: {report.state}")
        for line in [*report.problems, *report.remarks]:
            click.echo(f"  {line}")
        for number, line in enumerate(report.download):
            click.echo(f"  {'to get it: ' if not number else '           '}{line}")
    click.echo("")
    for each in weights:
        text = each["weights"] or "no pretrained weights here"
        click.echo(f"{each['model']}: {text}")
        for line in each["get"]:
            click.echo(f"  {line}")
    needed = sum(report.features_gb for report in reports if report.images)
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    click.echo(
        f"\n{machine['device']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['available_gb']} of {machine['memory_gb']} GB memory free, "
        f"GPU: {machine['gpu'] or 'none'}\n"
        f"{machine['matmul_gmacs_per_s']} GMAC/s of matrix products in {machine['precision']}; "
        f"bfloat16 in the processor: {'yes' if machine['computes_in_bfloat16'] else 'no'}; "
        f"engines: {', '.join(machine['engines'])}\n"
        f"mixmim-bench {machine['mixmim_bench']}, Python {machine['python']}, {versions}\n"
        f"{machine['cache']}: {machine['cache_free_gb']} GB free; features of the tasks found take "
        f"{needed:.1f} GB per model and layer"
    )
    if needed > machine["cache_free_gb"]:
        click.echo("That does not fit: set $MIXMIM_BENCH_CACHE to a larger disk.")


def _row(report: "TaskReport") -> dict[str, Any]:
    parts = ", ".join(
        f"{part} {report.images.get(part, 0)}/{count}" for part, count in report.official.items()
    ) or ", ".join(f"{part} {count}" for part, count in report.images.items())
    balance = report.train_images_a_class
    copies = report.duplicates
    return {
        "task": report.task,
        "state": report.state,
        "layout": report.layout,
        "images/official": parts if report.images else "",
        "train images per class": f"{balance['min']} to {balance['max']}" if balance else "",
        "unreadable": f"{len(report.unreadable)} of {report.decoded}" if report.decoded else "",
        "test in train, val": ""
        if not report.images
        else "?"
        if copies is None
        else copies["test_in_train_or_val"],
        "data (GB)": "" if report.data_gb is None else f"{report.data_gb:.2f}",
        "features (GB)": f"{report.features_gb:.2f}",
    }
