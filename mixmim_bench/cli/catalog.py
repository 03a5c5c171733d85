"""`models` and `tasks`: list registered models and tasks."""

import json
from typing import TYPE_CHECKING, Any

import click

from mixmim_bench.cli.options import DATA_ROOT, JSON, examples, print_table

if TYPE_CHECKING:
    from mixmim_bench.data.roots import DataRoots


@click.command(epilog=examples("mixmim-bench models", "mixmim-bench models --json"))
@JSON
def models(as_json: bool) -> None:
    """List the registered models; any timm model is accepted too."""
    from mixmim_bench.catalog import describe_models

    rows = describe_models()
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    print_table(
        [
            {
                "model": row["name"],
                "timm name": row["arch"],
                "params (M)": f"{row['params'] / 1e6:.1f}",
                "GMACs": f"{row['gmacs']:.1f}",
                "input": row["input_size"],
            }
            for row in rows
        ]
    )
    click.echo("\nPublished weights; each name is an alias for the model with these weights.\n")
    print_table(
        [
            {
                "alias": weights["name"],
                "model": row["name"],
                "top-1": weights["published"].get("top1", ""),
                "here": "yes" if weights["present"] else "no",
                "from": _origin(weights),
            }
            for row in rows
            for weights in row["weights"]
        ]
    )


def _origin(weights: dict[str, Any]) -> str:
    """Say where published weights come from."""
    if weights["packaged"]:
        return "this package"
    return weights["url"] or f"{weights['home']} (by hand, to {weights['path']})"


@click.command(epilog=examples("mixmim-bench tasks --data-root /data", "mixmim-bench tasks --json"))
@DATA_ROOT
@JSON
def tasks(roots: "DataRoots", as_json: bool) -> None:
    """List the tasks and whether their images are on this machine."""
    from mixmim_bench.catalog import describe_tasks

    rows = describe_tasks(roots)
    click.echo(json.dumps(rows, indent=1)) if as_json else print_table(rows)
