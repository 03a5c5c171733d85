"""`run` and `report`: the suite and its leaderboard."""

import json
import sys
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import click

from mixmim_bench.cli.complete import preset_names, protocol_names
from mixmim_bench.cli.options import (
    COMPUTING,
    DATA_ROOT,
    DEVICES,
    FILTERS,
    JSON,
    JSON_LINES,
    LIMIT,
    MODELS,
    RAY,
    RESULTS,
    SET_OF_PROTOCOL,
    SHARD,
    SUITES,
    TASKS,
    TIMEOUT,
    TRACKERS,
    TRAINING,
    ByName,
    examples,
    existing,
    print_table,
    show_report,
)
from mixmim_bench.cli.suitefile import merged, use_suite_file
from mixmim_bench.cli.suitefile import suite_file as suite_text
from mixmim_bench.data import EXACT, RESIZES
from mixmim_bench.errors import BenchError, counted


@click.command(
    epilog=examples(
        "mixmim-bench run -m mixmim-b -t digits -p linear",
        "mixmim-bench run -m mixmim-b -m resnet50 -s paper --data-root /data --workers 8",
        "mixmim-bench run -m vit_base_patch16_224=a.pth -m vit_base_patch16_224=b.pth -t imagenet1k@5shot",
        "mixmim-bench run -m mixmim-base_3rdparty_in1k -t imagenet1k -p own-head",
        "mixmim-bench run -m mixmim-tiny -t digits -p linear -p knn --controls",
        "mixmim-bench run -m my_model.toml -t my_task.toml --limit 100",
        "mixmim-bench run -m mixmim-b -m mixmim-b@96 -s embedded --print-suite",
        "mixmim-bench run suite.toml --device cuda",
        "mixmim-bench run suite.toml --shard 3/8",
    )
)
@click.argument(
    "suite_file",
    required=False,
    is_eager=True,
    callback=use_suite_file,
    type=click.Path(path_type=Path, dir_okay=False),
)
@MODELS
@TASKS
@SUITES
@click.option(
    "-p",
    "--protocol",
    "protocols",
    cls=ByName,
    names=protocol_names,
    multiple=True,
    default=["linear", "finetune"],
    show_default=True,
    help="Protocol: {names}. Repeatable.",
)
@click.option(
    "--seed",
    "seeds",
    type=click.IntRange(0, 2**31 - 1),
    multiple=True,
    default=[0],
    show_default=True,
    help="Random seed. Repeatable.",
)
@click.option(
    "--weights",
    default="auto",
    show_default=True,
    help="Published weights (auto), random, or the path of a checkpoint.",
)
@click.option(
    "--preset",
    cls=ByName,
    names=preset_names,
    default="auto",
    show_default=True,
    help="Hyper-parameters, where a protocol has several sets: {names}. auto: 'random' for random weights; "
    "for pretrained ones, 'small' where the paper's recipe would have few steps, else 'paper'.",
)
@click.option(
    "--layers",
    default="",
    help="Layer of the frozen features: own (the model's pooled features), stage3, cls, mean, last4, "
    "cls+mean, …; auto tries the layers of the model and selects on val.",
)
@DATA_ROOT
@RESULTS
@COMPUTING
@SET_OF_PROTOCOL
@TRAINING
@TRACKERS
@click.option("--save-weights", is_flag=True, help="Save fine-tuned networks, as RESULTS/weights/RUN_ID.pth.")
@click.option(
    "--resize",
    type=click.Choice(RESIZES),
    default=EXACT,
    show_default=True,
    help="For evaluation. exact: the pixels of timm; fast: by torch's kernels, values differ by at most 2 of "
    "255; reduced: JPEGs of twice the size or more are also decoded at a reduced scale. Other than exact, "
    "results have their own rows.",
)
@LIMIT
@click.option(
    "--controls",
    is_flag=True,
    help="Add what shows whether the scores of probes mean anything: raw pixels, random weights, permuted "
    "labels, and images under growing noise. They have a table of their own.",
)
@DEVICES
@RAY
@SHARD
@TIMEOUT
@click.option(
    "--report/--no-report",
    "reporting",
    default=True,
    show_default=True,
    help="Write the leaderboard, plots, page and pictures of predictions at the end; `mixmim-bench report` "
    "writes all but the pictures later.",
)
@click.option("--dry-run", is_flag=True, help="Show the planned runs and the estimated time.")
@click.option(
    "--print-suite", is_flag=True, help="Print the options as a suite file, for SUITE_FILE, and do nothing."
)
@JSON_LINES
@click.pass_context
def run(
    context: click.Context,
    suite_file: Path | None,
    results: Path,
    device: str,
    precision: str,
    engine: str,
    threads: int | None,
    workers: int | None,
    batch_size: int | None,
    grad_checkpointing: bool,
    compile_training: bool,
    sharded: bool,
    trackers: tuple[str, ...],
    save_weights: bool,
    devices: str,
    ray_address: str,
    gpus_per_run: float | None,
    shard: Any,
    timeout_s: float | None,
    reporting: bool,
    dry_run: bool,
    print_suite: bool,
    as_json: bool,
    **selected: Any,
) -> None:
    """Evaluate models on tasks and write the leaderboard.

    SUITE_FILE holds options as TOML, which those of the command line replace. Finished runs are skipped, so
    the same command resumes after an interruption. Started by torchrun or accelerate launch, trainings and
    the extraction of features use all devices of the job. `--set finetune.epochs=3` changes a value of a
    protocol's recipe.
    """
    del suite_file  # its values are defaults
    if print_suite:
        click.echo(suite_text(context))
        return
    selected = merged(context, selected)
    from rich.console import Console

    from mixmim_bench import processes
    from mixmim_bench.report.write import report_session
    from mixmim_bench.specs import AUTO
    from mixmim_bench.suite.fleet import Cluster
    from mixmim_bench.suite.outcome import ignore
    from mixmim_bench.suite.records import RunStore
    from mixmim_bench.suite.session import Session
    from mixmim_bench.suite.wanted import Selection

    settings: dict[str, Any] = {
        "precision": precision,
        "threads": threads,
        "batch_size": batch_size,
        "workers": workers,
        "grad_checkpointing": grad_checkpointing,
        "compile_training": compile_training,
        "sharded": sharded,
    }
    fleet: Any = None
    if ray_address:
        if devices or device != AUTO:
            raise BenchError("--ray computes on the nodes of a cluster: leave out --device and --devices")
        fleet = Cluster(ray_address, settings, selected["roots"], gpus_per_run, timeout_s or 0.0)
    elif gpus_per_run is not None:
        raise BenchError("--gpus-per-run belongs to --ray")
    elif devices or timeout_s:
        fleet = _fleet(device, devices, timeout_s or 0.0, settings, selected["roots"])
        device, settings = fleet.devices[0], dict(fleet.settings)

    @cache
    def machine() -> Any:  # imports torch, which a finished suite does not need
        from mixmim_bench.machine import open_machine

        return open_machine(device, **settings)

    if trackers:
        from mixmim_bench.training.logs import check_trackers

        check_trackers(trackers)
    if processes.count() > 1:
        from mixmim_bench.suite.follow import follow

        machine()  # connects the processes
        if not processes.is_main():
            follow(selected["roots"], machine())
            return
        click.get_current_context().with_resource(processes.leading())
    store = RunStore(results)
    session = Session(
        Selection(precision=machine().precision if precision == AUTO else precision, **selected),
        store,
        machine,
        Console(highlight=False, stderr=as_json),
        engine,
        trackers,
        save_weights,
        planning=dry_run,
        shard=shard,
        fleet=fleet,
    )
    if dry_run:
        _show_plan(session.estimates() if session.resolved.planned else [], as_json)
        return
    if not as_json and session.is_finished():
        total = len(session.resolved.planned)
        click.echo(f"{total} of {counted(total, 'run')} finished already.")
    outcome = session.run(_print_line if as_json else ignore)
    click.echo(err=as_json)
    if reporting:
        show_report(report_session(session, partial(click.echo, err=as_json)), err=as_json)
    else:
        click.echo(f"mixmim-bench report --results {results} writes the leaderboard.", err=as_json)
    _exit_unless_complete(outcome, results)


def _fleet(device: str, devices: str, timeout_s: float, settings: dict[str, Any], roots: Any) -> Any:
    """Return the processes that do the runs; raises BenchError."""
    from mixmim_bench.specs import AUTO
    from mixmim_bench.suite.fleet import Fleet, parse_devices

    if devices and device != AUTO:
        raise BenchError(f"--device {device} and --devices {devices}: give one of them")
    names: tuple[str, ...] = (device,)
    if devices:
        import torch

        names = parse_devices(devices, torch.cuda.device_count())
    settings = {**settings, "beside": len(names)}
    return Fleet(devices=names, settings=settings, roots=roots, timeout_s=timeout_s)


def _print_line(record: Any, new: bool) -> None:
    """Print a record as one line of JSON, with whether the run was done now."""
    about = {"new": new, "task": record.task, "protocol": record.protocol, "seed": record.identity["seed"]}
    click.echo(json.dumps({**about, **json.loads(record.to_json())}, sort_keys=True))


def _exit_unless_complete(outcome: Any, results: Path) -> None:
    """Explain what is missing, and exit with its status: 130 after an interruption, 1 for failures."""
    if outcome.interrupted:
        sys.exit(130)
    if outcome.lost:
        names = ", ".join(run.label for run in outcome.lost[:3])
        click.echo(
            f"Missing from {results} although finished: {counted(len(outcome.lost), 'result')} ({names}). "
            "Something deleted them; rerun the command to repeat these runs.",
            err=True,
        )
        sys.exit(1)
    if outcome.failed:
        click.echo(f"{counted(len(outcome.failed), 'run')} failed; rerun the command to retry.", err=True)
        sys.exit(1)


def _show_plan(estimates: list[Any], as_json: bool) -> None:
    """Print the planned runs, their estimated time and the features they would write."""
    from mixmim_bench.cache import cache_folder, free_bytes

    rows = [_plan_row(estimate) for estimate in estimates]
    if as_json:
        for estimate, row in zip(estimates, rows, strict=True):
            click.echo(json.dumps({"run_id": estimate.planned.run.run_id, **row}))
        return
    print_table(rows)
    seconds = sum(estimate.seconds for estimate in estimates if not estimate.finished)
    needed = sum(estimate.features_bytes for estimate in estimates) / 1e9
    free = free_bytes(cache_folder()) / 1e9
    click.echo(
        f"\nForward and backward passes: {_duration(seconds)}, excluding the fitting of probes. "
        f"Features: {needed:.2f} GB will be written to {cache_folder()}, which has {free:.1f} GB free."
    )
    if needed > free:
        click.echo("Not enough space: set $MIXMIM_BENCH_CACHE to a larger disk.", err=True)


def _plan_row(estimate: Any) -> dict[str, Any]:
    run = estimate.planned.run
    time_left = "finished" if estimate.finished else _duration(estimate.seconds)
    return {
        "model": run.model.name,
        "weights": run.weights.name,
        "task": run.task.name,
        "protocol": run.protocol["name"],
        "seed": "" if run.seed is None else run.seed,
        "forward images": estimate.planned.work.forward,
        "cached": estimate.cached,
        "train images": estimate.planned.work.train,
        "GMACs/image": f"{estimate.gmacs:.2f}",
        "estimate": f"cannot run: {estimate.error}" if estimate.error else time_left,
    }


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@click.command(
    epilog=examples(
        "mixmim-bench compare mixmim-b resnet50",
        "mixmim-bench compare 'mixmim-b/random init' resnet50 --json",
        "mixmim-bench compare mixmim-b resnet50 --plot difference.pdf",
    )
)
@click.argument("first")
@click.argument("second")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also draw the differences with their intervals: a .png, .svg or .pdf file.",
)
@RESULTS
@JSON
def compare(first: str, second: str, plot: Path | None, results: Path, as_json: bool) -> None:
    """Compare two models on the same test images, from saved predictions.

    FIRST and SECOND are models of the leaderboard: MODEL, or MODEL/WEIGHTS if it has several. Shown are the
    difference in points with its paired 95 % interval, the p-value, and the p-value corrected for the
    number of comparisons (Holm). With several seeds or draws, interval and test include their variance; with
    one, they cover the choice of images only.
    """
    import dataclasses

    from mixmim_bench.report.compare import compare as compared
    from mixmim_bench.report.compare import differences
    from mixmim_bench.report.redraw import check_format, draw_to
    from mixmim_bench.suite.records import RunStore

    if plot is not None:
        check_format(plot)
    comparisons = compared(
        RunStore(existing(results)), first, second, lambda text: click.echo(text, err=True)
    )
    if plot is not None:
        draw_to(differences(comparisons, first, second), plot)
        click.echo(f"Written: {plot}", err=True)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in comparisons], indent=1))
        return
    print_table(
        [
            {
                "task": row.task,
                "protocol": row.protocol,
                "n": row.n,
                "seeds": row.seeds,
                first: f"{100 * row.first:.1f}",
                f"{second} ": f"{100 * row.second:.1f}",
                "difference": f"{100 * row.difference:+.1f} ({100 * row.low:+.1f} to {100 * row.high:+.1f})",
                "p": f"{row.p:.3g}",
                "p (Holm)": f"{row.p_holm:.3g}",
                "verdict": row.verdict,
            }
            for row in comparisons
        ]
    )


@click.command(
    epilog=examples(
        "mixmim-bench report",
        "mixmim-bench report --with-published --results /shared/results",
        "mixmim-bench report --published-only --results published",
        "mixmim-bench report -s paper -p linear --max-flops 20 --sort 'imagenet1k linear'",
        "mixmim-bench report --serve",
    )
)
@RESULTS
@FILTERS
@SUITES
@click.option(
    "--max-params",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Only models with at most so many million parameters.",
)
@click.option(
    "--max-flops",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Only models with at most so many GMACs at their own size.",
)
@click.option("--sort", default="", metavar="COLUMN", help="Sort by a column, such as 'digits linear'.")
@click.option(
    "--with-published",
    "published",
    is_flag=True,
    help="Add results that others have published for these tasks, also to report.html: a table of their own "
    "with links, and grey points. They are in no average and no comparison.",
)
@click.option(
    "--published-only",
    is_flag=True,
    help="Only draw and list what is published: MixMIM and others, accuracy against FLOPs. Needs no results.",
)
@click.option(
    "--serve",
    is_flag=True,
    help="Show report.html on 127.0.0.1, to this machine only; refreshed while a suite runs. Writes nothing.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Of --serve; by default, one that is free."
)
def report(
    results: Path,
    published: bool,
    published_only: bool,
    max_params: float,
    max_flops: float,
    serve: bool,
    port: int,
    **chosen: Any,
) -> None:
    """Rebuild the leaderboard, the plots and report.html from the records.

    With options that choose rows or columns, or sort, the table is printed only, and nothing is written.
    """
    from mixmim_bench.report.write import Filter, filtered, write_report
    from mixmim_bench.suite.records import RunStore

    choosing = bool(max_params or max_flops or any(chosen.values()))
    if serve and (published_only or choosing):
        raise click.UsageError("--serve shows the whole report; leave out the options that choose or sort")
    if port and not serve:
        raise click.UsageError("--port belongs to --serve")
    if choosing and (published or published_only):
        given = "--with-published" if published else "--published-only"
        raise click.UsageError(f"{given} is for the whole report; leave out the options that choose or sort")
    if published_only:
        from mixmim_bench.report.claims import write_published

        with RunStore(results).writing():
            written = write_published(results)
        click.echo(f"{written.markdown}\n\nWritten: {', '.join(map(str, written.paths))}")
        return
    store = RunStore(existing(results))
    if serve:
        _serve(store, port, published)
        return
    if choosing:
        click.echo(filtered(store, Filter(max_params_m=max_params, max_gmacs=max_flops, **chosen)))
        return
    show_report(write_report(store, published))


def _serve(store: Any, port: int, published: bool) -> None:
    """Serve the report page until the user interrupts."""
    from mixmim_bench.report.serve import HOST, Server

    try:
        server = Server(store, port, published)
    except OSError as error:
        raise BenchError(f"--port {port}: cannot listen on {HOST} ({error}); choose another") from error
    with server:
        click.echo(f"{server.address} shows {store.folder}; Ctrl-C ends it")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
