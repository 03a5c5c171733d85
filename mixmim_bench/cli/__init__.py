"""The command line: commands parse, call one function and print. Heavy imports stand inside them."""

import warnings
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


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Judge vision backbones by linear probes, kNN and fine-tuning, with what they cost."""
    warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)  # timm's import


for command in (run, report, compare, models, tasks, doctor, cache, predict, embed, export):
    main.add_command(command)
