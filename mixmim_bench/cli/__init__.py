"""The command line: commands parse, call one function and print. Heavy imports are inside the functions."""

import signal
import sys
import threading
import warnings
from functools import partial
from typing import Any

import click

from mixmim_bench import __version__
from mixmim_bench.cli.cache import cache
from mixmim_bench.cli.catalog import models, tasks
from mixmim_bench.cli.doctor import doctor
from mixmim_bench.cli.fetching import fetch_data
from mixmim_bench.cli.inference import embed, export, predict
from mixmim_bench.cli.pretraining import pretrain, reconstruct
from mixmim_bench.cli.reproduction import check_published
from mixmim_bench.cli.results import results
from mixmim_bench.cli.show import show
from mixmim_bench.cli.suite import compare, report, run
from mixmim_bench.errors import BenchError, show_warnings


class _Group(click.Group):
    """A group that reports errors in one line and exits with status 2, or 130 after Ctrl-C."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BenchError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(130)


def _interrupt_once(signum: int, frame: Any) -> None:
    """Interrupt cleanly on the first Ctrl-C; a second one kills the process."""
    del signum, frame
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.pass_context
def main(context: click.Context) -> None:
    """Benchmark vision backbones: linear probes, kNN, fine-tuning, and their cost."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names need not be text
    if threading.current_thread() is threading.main_thread():
        context.call_on_close(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
        signal.signal(signal.SIGINT, _interrupt_once)
    context.with_resource(warnings.catch_warnings())
    show_warnings(partial(click.echo, err=True))


for command in (
    run, report, compare, check_published, show, results, models, tasks, fetch_data, doctor, cache,
    predict, embed, export, pretrain, reconstruct,
):  # fmt: skip
    main.add_command(command)
