"""The command line: commands parse, call one function and print. Heavy imports stand inside them."""

import signal
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from mixmim_bench import __version__
from mixmim_bench.cli.cache import cache
from mixmim_bench.cli.catalog import models, tasks
from mixmim_bench.cli.doctor import doctor
from mixmim_bench.cli.inference import embed, export, predict
from mixmim_bench.cli.suite import compare, report, run
from mixmim_bench.errors import BenchError


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


def _interrupt_once(signum: int, frame: Any) -> None:
    """Interrupt in order on the first Ctrl-C; a second one ends the process at once."""
    del signum, frame
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def _warn(otherwise: Callable[..., None], message: Any, category: type[Warning], *args: Any) -> None:
    """Print a warning for users in one line; others as Python does."""
    if issubclass(category, UserWarning):
        click.echo(f"Warning: {' '.join(str(message).split())}", err=True)
    else:
        otherwise(message, category, *args)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.pass_context
def main(context: click.Context) -> None:
    """Judge vision backbones by linear probes, kNN and fine-tuning, with what they cost."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names need not be text
    if threading.current_thread() is threading.main_thread():
        context.call_on_close(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
        signal.signal(signal.SIGINT, _interrupt_once)
    context.with_resource(warnings.catch_warnings())
    warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)  # timm's import
    warnings.showwarning = partial(_warn, warnings.showwarning)


for command in (run, report, compare, models, tasks, doctor, cache, predict, embed, export):
    main.add_command(command)
