"""Shared options, and tables on the terminal."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mixmim_bench.cli.complete import Names, completing, model_names, protocol_names, suite_names, task_names
from mixmim_bench.errors import BenchError
from mixmim_bench.hyperparameters import parse_settings
from mixmim_bench.report.text import printable
from mixmim_bench.specs import AUTO, ENGINES, PRECISIONS


class ByName(click.Option):
    """An option that takes names, completed in a shell and listed in its help: `{names}` there."""

    def __init__(self, *args: Any, names: Names, **kwargs: Any) -> None:
        super().__init__(*args, shell_complete=completing(names), **kwargs)
        self.names = names

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        assert self.help is not None
        self.help = self.help.replace("{names}", ", ".join(dict.fromkeys(self.names())))
        return super().get_help_record(ctx)


def _find_roots(context: click.Context, _: click.Parameter, texts: tuple[str, ...]) -> Any:
    from mixmim_bench.cli.suitefile import raw
    from mixmim_bench.data.roots import find_roots

    context.meta[raw("roots")] = list(texts)
    return find_roots(texts, context.meta.get(_TRUST, False))


def _remember_trust(context: click.Context, _: click.Parameter, given: bool) -> None:
    context.meta[_TRUST] = given


_TRUST = f"{__name__}.trust_task_code"
_TRUST_TASK_CODE = click.option(
    "--trust-task-code",
    is_flag=True,
    is_eager=True,  # before the data roots, which it goes into
    expose_value=False,
    callback=_remember_trust,
    help="Allow Python code next to the given task files to run. Read it first.",
)
_DATA_ROOT = click.option(
    "--data-root",
    "roots",
    multiple=True,
    metavar="[TASK=]FOLDER",
    callback=_find_roots,
    help="Folder with one folder per task, or TASK=FOLDER. Repeatable. Default: $MIXMIM_BENCH_DATA, then the "
    "config file.",
)


def DATA_ROOT(command: Any) -> Any:
    """Add the options for data folders and trusted code."""
    return _DATA_ROOT(_TRUST_TASK_CODE(command))


RESULTS = click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("results"),
    show_default=True,
    help="Folder for records, tables and plots.",
)
LIMIT = click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Smoke run: use at most so many images each of train, val and test. Results are kept apart "
    "(limited.md); `mixmim-bench results prune --limited` removes them.",
)


def _parse_shard(_: click.Context, __: click.Parameter, text: str | None) -> Any:
    from mixmim_bench.suite.shards import Shard

    return None if text is None else Shard.parse(text)


SHARD = click.option(
    "--shard",
    metavar="I/N",
    callback=_parse_shard,
    help="Do only shard I (from 1) of N: disjoint parts of the plan, balanced by estimated work, the same on "
    "every machine with the same plan, whatever is finished. For array jobs.",
)
DEVICES = click.option(
    "--devices",
    default="",
    metavar="LIST",
    help="Do runs in one process per device: GPUs by index (0,1,2), all, or cpu once for each process that "
    "shares the CPU (cpu,cpu).",
)


_RAY_OPTIONS = (
    click.option(
        "--ray",
        "ray_address",
        default="",
        metavar="ADDRESS",
        help="Do runs on the nodes of a Ray cluster: auto for the one that this machine belongs to, else one "
        "of this machine alone. Ray belongs on trusted networks only.",
    ),
    click.option(
        "--gpus-per-run",
        type=click.FloatRange(min=0),
        default=None,
        help="Of --ray; by default 1 if the nodes have GPUs. A fraction lets runs share a GPU.",
    ),
)


def RAY(command: Any) -> Any:
    """Add the options of a Ray cluster."""
    for option in reversed(_RAY_OPTIONS):
        command = option(command)
    return command


_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}  # of the units of a time


class Duration(click.ParamType):
    """A time as a number of seconds, or with its unit: 90s, 30m, 2h; becomes seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse a time."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", str(value).strip())
        seconds = float(found[1]) * _SECONDS.get(found[2], 0) if found else 0.0
        if not seconds:
            text = f"{value!r} is not a time: give seconds, or a number with s, m or h, such as 30m"
            self.fail(text, param, ctx)
        return seconds


TIMEOUT = click.option(
    "--timeout-per-run",
    "timeout_s",
    type=Duration(),
    metavar="TIME",
    help="End a run that takes longer, as failed, and go on with the others: 90s, 30m, 2h. Its checkpoints "
    "and extracted features remain.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
JSON_LINES = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the record of each run as one line of JSON when it ends (of a failed one with `error`), and "
    "everything else to standard error.",
)
MODELS = click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    default=["mixmim-b"],
    show_default=True,
    shell_complete=completing(model_names, files=True),
    help="Model from `mixmim-bench models`, any timm model, or the path of a model file (.toml); append @96 "
    "for another image size, =PATH for weights of its own. Repeatable.",
)


def model_option(help_text: str) -> Any:
    """Return the option of commands that take one model."""
    return click.option(
        "-m",
        "--model",
        default="mixmim-b",
        show_default=True,
        shell_complete=completing(model_names, files=True),
        help=help_text,
    )


IMAGE_SIZE = click.option(
    "--image-size", type=click.IntRange(min=1), help="Side in pixels; default: the model's own."
)
TASKS = click.option(
    "-t",
    "--task",
    "tasks",
    multiple=True,
    shell_complete=completing(task_names, files=True),
    help="Task name, glob, or path of a .toml file; append @5shot or @train800val200 for fewer training "
    "images, @subset or @CLASSES.txt for some of its classes. Repeatable.",
)
SUITES = click.option(
    "-s",
    "--suite",
    "suites",
    cls=ByName,
    names=suite_names,
    multiple=True,
    help="Suite of tasks: {names}. Repeatable.",
)
DEVICE = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, …")
PRECISION = click.option(
    "--precision",
    type=click.Choice([*PRECISIONS, AUTO]),
    default="float32",
    show_default=True,
    help="Precision of the backbone; auto: bfloat16 if the device supports it natively; float16: on a GPU.",
)
ENGINE = click.option(
    "--engine",
    type=click.Choice([AUTO, *ENGINES]),
    default=AUTO,
    show_default=True,
    help="What computes the frozen backbone; auto: OpenVINO on an x86 CPU for work of two minutes or more, "
    "else torch; compile: torch.compile.",
)
THREADS = click.option("--threads", type=click.IntRange(min=1), help="CPU threads for computation.")


class Count(click.IntRange):
    """A whole number, or `auto`, which becomes None."""

    name = "number"

    def convert(  # type: ignore[override]
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        return None if value == "auto" else super().convert(value, param, ctx)


WORKERS = click.option(
    "--workers",
    type=Count(min=0),
    default="auto",
    show_default=True,
    help="Worker processes that decode images; auto: 0 on a CPU, on a GPU by cores and shared memory.",
)
BATCH_SIZE = click.option(
    "--batch-size",
    type=Count(min=1),
    default="auto",
    show_default=True,
    help="Images per forward pass, and per backward pass on each device: gradients are accumulated to the "
    "batch of the recipe. Affects results of frozen networks only by rounding, of training also by what is "
    "drawn for each piece. auto: by device, halved if memory runs out.",
)


def COMPUTING(command: Any) -> Any:
    """Add the options of what computes, and in which precision."""
    for option in (BATCH_SIZE, WORKERS, THREADS, ENGINE, PRECISION, DEVICE):
        command = option(command)
    return command


def TRAINING(command: Any) -> Any:
    """Add the options of how a network is trained, none of which belongs to the recipe."""
    for option in (
        click.option(
            "--fsdp",
            "sharded",
            is_flag=True,
            help="Shard weights, gradients and optimizer state over the processes of torchrun (FSDP2).",
        ),
        click.option("--compile", "compile_training", is_flag=True, help="Train with torch.compile."),
        click.option(
            "--grad-checkpointing",
            is_flag=True,
            help="Recompute activations in the backward pass: less memory, about a third slower.",
        ),
    ):
        command = option(command)
    return command


TRACKERS = click.option(
    "--track",
    "trackers",
    multiple=True,
    metavar="NAME",
    help="Log trainings to tensorboard, wandb or another tracker of Accelerate, besides CSV. Repeatable.",
)


def _parse_settings(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any]:
    return parse_settings(texts)


def _set_option(metavar: str) -> Any:
    return click.option(
        "--set",
        "changes",
        multiple=True,
        metavar=metavar,
        callback=_parse_settings,
        help="Change a value of the recipe, written as in TOML. Repeatable.",
    )


SET = _set_option("KEY=VALUE")
SET_OF_PROTOCOL = _set_option("PROTOCOL.KEY=VALUE")


def FILTERS(command: Any) -> Any:
    """Add the options that choose among finished runs."""
    for option in (
        click.option(
            "-p",
            "--protocol",
            "protocols",
            cls=ByName,
            names=protocol_names,
            multiple=True,
            help="Only this protocol: {names}. Repeatable.",
        ),
        click.option("-t", "--task", "tasks", multiple=True, help="Only this task, or glob. Repeatable."),
        click.option("-m", "--model", "models", multiple=True, help="Only this model, or glob. Repeatable."),
    ):
        command = option(command)
    return command


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a table, or `nothing` if there are none; names may be those of records of others."""
    from tabulate import tabulate

    shown = [
        {printable(key): printable(value) if isinstance(value, str) else value for key, value in row.items()}
        for row in rows
    ]
    click.echo(tabulate(shown, headers="keys", disable_numparse=True) if shown else "nothing")


def examples(*commands: str) -> str:
    """Return the examples at the end of a help text, one command per line."""
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)


def existing(results: Path) -> Path:
    """Return a results folder that exists; raises BenchError."""
    if not results.is_dir():
        raise BenchError(f"no results folder {results}; choose another with --results")
    return results


def show_report(written: Any, err: bool = False, table: bool = True) -> None:
    """Print what was written of a leaderboard, with or without the table itself."""
    if table:
        click.echo(f"{written.markdown}\n", err=err)
    for path in map(printable, written.broken):
        click.echo(f"Skipped, not a valid record: {path}", err=True)
    click.echo(f"Written: {', '.join(map(str, written.paths))}", err=err)
