"""`fetch-data`: download datasets."""

from typing import TYPE_CHECKING

import click

from mixmim_bench.cli.complete import completing, task_names
from mixmim_bench.cli.options import DATA_ROOT, examples

if TYPE_CHECKING:
    from mixmim_bench.data.roots import DataRoots


@click.command(
    "fetch-data",
    epilog=examples(
        "mixmim-bench fetch-data cifar100 dtd --data-root /data",
        "mixmim-bench fetch-data my_task.toml --data-root /data   # with `hf:OWNER/NAME` as its layout",
    ),
)
@click.argument("tasks", nargs=-1, required=True, shell_complete=completing(task_names, files=True))
@DATA_ROOT
def fetch_data(tasks: tuple[str, ...], roots: "DataRoots") -> None:
    """Download the images of TASKS, names or task files, into the data root.

    Works for the datasets that torchvision downloads without an account, and for task files whose layout is
    `hf:OWNER/NAME`, a dataset of the Hugging Face Hub. Nothing is downloaded by any other command, except for
    weights.
    """
    from rich.console import Console

    from mixmim_bench.fetching import fetch_data as fetch
    from mixmim_bench.progress import download_bar
    from mixmim_bench.suite.selection import select_tasks

    for task in select_tasks(tasks, ()):
        fetch(task, roots, download_bar(Console(stderr=True)), click.echo)
