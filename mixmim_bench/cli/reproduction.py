"""`check-published`: does a published score reproduce with its own weights?"""

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from mixmim_bench.cli.complete import completing, model_names
from mixmim_bench.cli.options import (
    COMPUTING,
    DATA_ROOT,
    JSON,
    RESULTS,
    examples,
    print_table,
)
from mixmim_bench.errors import BenchError


@click.command(
    "check-published",
    epilog=examples(
        "mixmim-bench check-published --data-root /data",
        "mixmim-bench check-published -m mixmim-base_3rdparty_in1k --data-root /data --device cuda",
    ),
)
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    shell_complete=completing(model_names),
    help="Published weights, or a model with such. Default: all on this machine. Repeatable.",
)
@click.option(
    "-t",
    "--task",
    default="imagenet1k",
    show_default=True,
    help="Task of the published scores: ImageNet-1K, or a task file of yours for it.",
)
@DATA_ROOT
@RESULTS
@COMPUTING
@JSON
def check_published(
    models: tuple[str, ...],
    task: str,
    roots: Any,
    results: Path,
    device: str,
    precision: str,
    engine: str,
    threads: int | None,
    workers: int | None,
    batch_size: int | None,
    as_json: bool,
) -> None:
    """Evaluate the classifiers of published weights, and compare with their published scores.

    Runs protocol own-head, which needs val of ImageNet-1K only. A published score is `within` the 95 %
    interval of the measured one, or the measured one is `below` or `above` the published one, which makes the
    exit status 1.
    """
    from rich.console import Console

    from mixmim_bench import registry
    from mixmim_bench.machine import open_machine
    from mixmim_bench.report.reproduction import VERDICTS, WITHIN, reproductions
    from mixmim_bench.report.write import report_session
    from mixmim_bench.specs import AUTO
    from mixmim_bench.suite.records import RunStore
    from mixmim_bench.suite.selection import load_tasks
    from mixmim_bench.suite.session import Session
    from mixmim_bench.suite.wanted import Selection

    if task != "imagenet1k" and task in load_tasks():
        raise BenchError(f"-t {task}: the published scores are those of imagenet1k")
    chosen = list(models) or [
        weights.name
        for model in registry.MODELS
        for weights in model.weights
        if weights.published and registry.has_weights(weights)
    ]
    if not chosen:
        names = [weights.name for model in registry.MODELS for weights in model.weights if weights.published]
        raise BenchError(
            f"no weights with a published score are on this machine; name some to download them, such as -m "
            f"{names[0]}, or see `mixmim-bench models`"
        )
    machine = partial(open_machine, device, precision, threads, batch_size, workers)
    if precision == AUTO:
        precision = machine().precision
    store = RunStore(results)
    session = Session(
        Selection(models=chosen, tasks=[task], protocols=["own-head"], precision=precision, roots=roots),
        store,
        machine,
        Console(highlight=False, stderr=True),
        engine,
    )
    outcome = session.run()
    report_session(session, partial(click.echo, err=True))
    found = reproductions(session.records(), registry.MODELS)
    if not found and not outcome.interrupted and not outcome.failed:
        raise BenchError(
            f"no score of {', '.join(chosen)} is published here; `mixmim-bench models` lists those"
        )
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(each) for each in found], indent=1))
    else:
        print_table(
            [
                {
                    "weights": each.weights,
                    "metric": each.metric,
                    "published": f"{each.published:g}",
                    "measured": f"{each.measured:.2f} ({each.low:.2f} to {each.high:.2f})",
                    "difference": f"{each.measured - each.published:+.2f}",
                    "verdict": VERDICTS[each.verdict],
                }
                for each in found
            ]
        )
        click.echo(
            "\nThe interval covers the choice of test images. On the images of the published score itself, a "
            "difference of more than 0.1 points is another preprocessing, precision or checkpoint."
        )
    if outcome.interrupted:
        sys.exit(130)
    if outcome.failed or any(each.verdict != WITHIN for each in found):
        sys.exit(1)
