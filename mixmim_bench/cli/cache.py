"""`cache`: list, verify and prune cached features and converted networks."""

import json
import sys
from typing import Any

import click

from mixmim_bench.cli.options import JSON, examples, print_table


@click.group()
def cache() -> None:
    """Manage the features, converted networks and checkpoints of trainings in the cache folder."""


@cache.command("ls", epilog=examples("mixmim-bench cache ls"))
@JSON
def list_features(as_json: bool) -> None:
    """List cached features by model, task and layer, converted networks and unfinished trainings."""
    from mixmim_bench.features.store import FeatureStore
    from mixmim_bench.upkeep import list_entries

    store = FeatureStore()
    rows = list_entries(store)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    print_table(
        [
            {
                "key": row["key"][:12],
                "model": f"{row['model']} ({row['weights']})",
                "task": f"{row['task']} {row['role']}",
                "layer": row["layer"],
                "rows x width": f"{row['rows']} x {row['width']}" if row["rows"] is not None else "",
                "MB": f"{row['bytes'] / 1e6:.1f}",
                "last used": row["last_used"][:16].replace("T", " "),
                "state": row["state"],
            }
            for row in rows
        ]
    )
    click.echo(f"\n{store.folder.parent}: {sum(row['bytes'] for row in rows) / 1e6:.1f} MB")


@cache.command(epilog=examples("mixmim-bench cache verify"))
@click.option(
    "--trust-task-code",
    is_flag=True,
    help="Allow Python code next to the task files of cached features to run.",
)
def verify(trust_task_code: bool) -> None:
    """Verify cached features, and that their images are unchanged.

    The exit status is 1 if features are damaged, or if images changed without a change of size and time.
    """
    from mixmim_bench.data.roots import find_roots
    from mixmim_bench.features.store import FeatureStore
    from mixmim_bench.upkeep import verify as check

    trusted = find_roots(trust_task_code=trust_task_code).trusted
    good = check(
        FeatureStore(), lambda finding: click.echo(f"{_named(finding.entry)}: {finding.text}"), trusted
    )
    if not good:
        click.echo(
            "Remove damaged features with `mixmim-bench cache prune KEY`; the next run extracts them again.",
            err=True,
        )
        sys.exit(1)


@cache.command(
    epilog=examples("mixmim-bench cache prune --dry-run", "mixmim-bench cache prune --older-than 30")
)
@click.argument("keys", nargs=-1)
@click.option(
    "--older-than", type=click.FloatRange(min=0), help="Remove what was not used for this many days."
)
@click.option("--all", "everything", is_flag=True, help="Remove everything.")
@click.option("--dry-run", is_flag=True, help="Show what would be removed.")
def prune(keys: tuple[str, ...], older_than: float | None, everything: bool, dry_run: bool) -> None:
    """Remove what is cached: KEYS as shown by `ls`, or all that no run can use."""
    from mixmim_bench.features.store import FeatureStore
    from mixmim_bench.upkeep import list_entries
    from mixmim_bench.upkeep import prune as remove

    store = FeatureStore()
    whole = {row["key"][:12]: row["key"] for row in list_entries(store)}
    removed = remove(store, [whole.get(key, key) for key in keys], older_than, everything, dry_run)
    for finding in removed:
        click.echo(f"{'would remove' if dry_run else 'removed'} {_named(finding.entry)}: {finding.text}")
    click.echo(f"{len(removed)} {'would be ' if dry_run else ''}removed")


def _named(entry: Any) -> str:
    about = getattr(entry, "about", {})
    what = f" ({about['model']}, {about['task']} {about['role']}, {entry.made_by['layer']})" if about else ""
    return f"{entry.key[:12]}{what}"
