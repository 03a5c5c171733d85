"""`show`: what a run predicted for some test images."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mixmim_bench.cli.options import DATA_ROOT, MODELS, RESULTS, examples
from mixmim_bench.errors import BenchError

if TYPE_CHECKING:
    from mixmim_bench.specs import RunRecord, TaskSpec


def _as_run(task: "TaskSpec", record: "RunRecord") -> "TaskSpec":
    """Return a task with the roles, and of a subset the classes, that it had in a run."""
    subset = tuple(record.provenance.get("classes", ()))
    return dataclasses.replace(task.for_roles(record.identity["task"]["split"]), subset=subset)


def _name_and_weights(text: str) -> "tuple[str, dict[str, str] | None]":
    """Return the name of a model, and its weights as in identities; None where it was named without."""
    from mixmim_bench.modelfile import model_and_weights
    from mixmim_bench.specs import AUTO
    from mixmim_bench.weights.find import resolve_weights

    model, weights = model_and_weights(text)
    return model.name, None if weights == AUTO else resolve_weights(model, weights).identity()


@click.command(
    epilog=examples(
        "mixmim-bench show digits -m mixmim-b",
        "mixmim-bench show ade20k -m mixmim-b -p finetune --data-root /data --out seen.png",
    )
)
@click.argument("task")
@MODELS
@click.option("-p", "--protocol", "protocols", multiple=True, help="Only runs of this protocol. Repeatable.")
@DATA_ROOT
@RESULTS
@click.option("--images", type=click.IntRange(1, 8), default=8, show_default=True, help="Number of images.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The PNG to write; by default RESULTS/pictures/RUN_ID.png.",
)
def show(
    task: str,
    models: tuple[str, ...],
    protocols: tuple[str, ...],
    roots: object,
    results: Path,
    images: int,
    out: Path | None,
) -> None:
    """Draw some test images of TASK with their labels and what finished runs predicted.

    Classes are written under an image, label maps lie over it, boxes and masks are drawn into it.
    """
    from mixmim_bench.data.dataset import open_task
    from mixmim_bench.data.roots import DataRoots
    from mixmim_bench.report.pictures import picture, save_picture
    from mixmim_bench.suite.records import RunStore
    from mixmim_bench.suite.selection import select_tasks

    assert isinstance(roots, DataRoots)
    selected = select_tasks([task], ())
    if len(selected) != 1:
        raise BenchError(f"{task!r} names {len(selected)} tasks; show draws the runs of one")
    spec = selected[0]
    wanted = [_name_and_weights(name) for name in models]
    store = RunStore(results)
    records = [
        record
        for record in store.finished().values()
        if record.task == spec.name
        and any(
            record.model == name and weights in (None, record.identity["weights"]) for name, weights in wanted
        )
        and (not protocols or record.protocol in protocols)
    ]
    if not records:
        of_protocols = "".join(f" -p {name}" for name in protocols)
        of_models = "".join(f" -m {name}" for name in models)
        raise BenchError(
            f"no finished run of {' or '.join(models)} on {spec.name} in {results}; make one: "
            f"mixmim-bench run{of_models} -t {task}{of_protocols}"
        )
    if out is not None and len(records) > 1:
        raise BenchError(
            f"--out is for one run, and {len(records)} match: "
            + ", ".join(f"{record.model} {record.protocol} {record.run_id}" for record in records)
        )
    opened: dict[str, Any] = {}  # by fingerprint: protocols may need the images of other roles
    for record in records:
        path, key = out or store.picture_of(record.run_id), record.identity["data"]
        if key not in opened:
            opened[key] = open_task(_as_run(spec, record), roots)
        save_picture(path, picture(record, store.arrays(record.run_id), opened[key], images))
        click.echo(f"{record.model} ({record.weights}) · {record.task} · {record.protocol}: {path}")
