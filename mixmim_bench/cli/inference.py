"""`predict`, `embed` and `export`: predictions and features of images, and models in other formats."""

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mixmim_bench.cli.options import (
    COMPUTING,
    IMAGE_SIZE,
    JSON,
    examples,
    model_option,
    print_table,
)
from mixmim_bench.errors import BenchError

MODEL = model_option("Model or weights from `mixmim-bench models`, or any timm model.")
WEIGHTS = click.option(
    "--weights",
    default="auto",
    show_default=True,
    help="Published weights (auto; fine-tuned ones for classes, pretrained ones for features), random, or "
    "the path of a checkpoint.",
)
SEED = click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Seed of random weights."
)


@click.command(
    epilog=examples(
        "mixmim-bench predict",
        "mixmim-bench predict photos/ -m resnet50 --csv",
        'find . -name "*.jpg" | mixmim-bench predict - --json',
    )
)
@click.argument("images", nargs=-1)
@MODEL
@WEIGHTS
@SEED
@IMAGE_SIZE
@click.option(
    "--top", type=click.IntRange(min=1), default=5, show_default=True, help="Classes shown per image."
)
@click.option(
    "--head",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Classify with a linear probe of `mixmim-bench results export-head`, on the model it was fitted on.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@JSON
@COMPUTING
def predict(
    images: tuple[str, ...],
    model: str,
    weights: str,
    seed: int,
    image_size: int | None,
    top: int,
    head: Path | None,
    as_csv: bool,
    as_json: bool,
    engine: str,
    **machine: Any,
) -> None:
    """Classify images: files, folders, or `-` for standard input.

    Standard input is one image, or a list of paths, one per line. Without IMAGES, the photograph included
    in the package is classified. Unreadable images are reported and skipped, with exit status 1.
    """
    from mixmim_bench.inference import classify

    if as_csv and as_json:
        raise BenchError("--csv and --json were both given; choose one")
    pictures = _pictures(images)
    if head is None:
        ready, computer = _ready(model, weights, seed, image_size, machine)
    else:
        ready, computer = _with_head(head, model, weights, machine)
    rows: list[dict[str, Any]] = []  # one entry an image
    failures: dict[int, str] = {}
    writer = csv.DictWriter(sys.stdout, ["image", "rank", "label", "synset", "class", "score"])
    if as_csv:
        writer.writeheader()
    with _progress(len(pictures)) as advance:
        for outputs in classify(ready, pictures, computer, engine):
            for row, scores in zip(outputs.rows.tolist(), outputs.values, strict=True):
                predictions = _ranked(scores, ready.classes, top)
                if as_csv:
                    writer.writerows({"image": pictures.name(row), **p} for p in predictions)
                else:
                    rows.append({"image": pictures.name(row), "predictions": predictions})
            failures |= outputs.failures
            advance(len(outputs.rows) + len(outputs.failures))
    if as_json:
        rows += [{"image": pictures.name(row), "error": reason} for row, reason in failures.items()]
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
    elif not as_csv:
        print_table(
            [
                {"image": entry["image"], **p, "score": f"{100 * p['score']:.2f} %"}
                for entry in rows
                for p in entry["predictions"]
            ]
        )
    _tell(pictures, failures)


def _with_head(head: Path, model: str, weights: str, machine: dict[str, Any]) -> tuple[Any, Any]:
    """Build the model of a probe; -m names it only if it was given."""
    from rich.console import Console

    from mixmim_bench.heads import model_with_head
    from mixmim_bench.machine import open_machine
    from mixmim_bench.progress import download_bar

    context = click.get_current_context()
    given = {
        name
        for name in ("model", "weights", "seed", "image_size")
        if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
    }
    for name in given & {"seed", "image_size"}:
        raise BenchError(f"--{name.replace('_', '-')} is that of the run in {head}; leave it out")
    computer = open_machine(**machine)
    bar = download_bar(Console(stderr=True))
    return model_with_head(head, model if "model" in given else "", weights, computer.device, bar), computer


def _ranked(scores: Any, classes: Any, top: int) -> list[dict[str, Any]]:
    best = (-scores).argsort(kind="stable")[:top]
    return [
        {
            "rank": rank,
            "label": int(label),
            "synset": classes[label].synset,
            "class": classes[label].name,
            "score": round(float(scores[label]), 6),
        }
        for rank, label in enumerate(best, 1)
    ]


@click.command(epilog=examples("mixmim-bench embed photos/ --out features.npz -m mixmim-b"))
@click.argument("images", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="An .npz file.")
@MODEL
@WEIGHTS
@SEED
@IMAGE_SIZE
@COMPUTING
def embed(
    images: tuple[str, ...],
    out: Path,
    model: str,
    weights: str,
    seed: int,
    image_size: int | None,
    engine: str,
    **machine: Any,
) -> None:
    """Save the pooled features of images (files, folders, `-`) to an .npz file.

    It holds `features` (n, d), `paths` (n,), and `about`: the model, its weights and preprocessing as JSON.
    An image that cannot be read is reported and left out, and makes the exit status 1.
    """
    import numpy as np

    from mixmim_bench.inference import embed as embedded
    from mixmim_bench.inference import save_features

    if out.suffix != ".npz":
        raise BenchError(f"--out {out}: the name must end in .npz")
    if not out.absolute().parent.is_dir():
        raise BenchError(f"--out {out}: there is no folder {out.absolute().parent}")
    pictures = _pictures(images)
    ready, computer = _ready(model, weights, seed, image_size, machine, for_features=True)
    paths: list[str] = []
    features = []
    failures: dict[int, str] = {}
    with _progress(len(pictures)) as advance:
        for outputs in embedded(ready, pictures, computer, engine):
            paths += [pictures.name(row) for row in outputs.rows.tolist()]
            features += list(outputs.values)
            failures |= outputs.failures
            advance(len(outputs.rows) + len(outputs.failures))
    if features:
        save_features(out, np.stack(features), paths, ready, computer)
        click.echo(f"{out}: features {len(features)} x {len(features[0])}")
    _tell(pictures, failures)


@click.command(epilog=examples("mixmim-bench export --format onnx --out model.onnx -m mixmim-b"))
@click.option(
    "--format",
    "form",
    required=True,
    type=click.Choice(["safetensors", "onnx", "torch-export"]),
    help="What to write.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The file.")
@click.option("--features", is_flag=True, help="Export without the classifier: pooled features, not logits.")
@MODEL
@WEIGHTS
@SEED
@IMAGE_SIZE
def export(
    form: str, out: Path, features: bool, model: str, weights: str, seed: int, image_size: int | None
) -> None:
    """Export a model with its weights, verified by reloading it.

    The batch is dynamic. onnx needs the extra: pip install 'mixmim-bench[export]'.
    """
    from mixmim_bench.export import export_model

    ready, _ = _ready(model, weights, seed, image_size, {"device": "cpu"})
    difference = export_model(ready, form, out, features)
    click.echo(f"{out}: outputs differ by at most {difference:.1e} from the model's when loaded back")


def _ready(
    model: str,
    weights: str,
    seed: int,
    image_size: int | None,
    machine: dict[str, Any],
    for_features: bool = False,
) -> tuple[Any, Any]:
    """Build the model, and open the machine it computes on."""
    from mixmim_bench.inference import get_model
    from mixmim_bench.machine import open_machine

    computer = open_machine(**machine)
    pretrained: bool | str = {"auto": True, "random": False}.get(weights, weights)
    if weights == "random":
        click.echo(f"{model} has RANDOM weights (seed {seed}): its predictions are meaningless.", err=True)
    ready = get_model(model, pretrained, img_size=image_size, for_features=for_features, seed=seed)
    click.echo(f"Preprocessing: {ready.preprocessing.describe()}", err=True)
    return ready, computer


def _pictures(images: tuple[str, ...]) -> Any:
    """Find the images that the arguments name."""
    from mixmim_bench.data.pictures import Pictures, find_pictures, read_input
    from mixmim_bench.inference import demo_image

    if not images:
        click.echo("No image was named: this is the photograph that comes with the package.", err=True)
        return Pictures([demo_image()])
    paths: list[Any] = []
    for image in images:
        paths += read_input(sys.stdin.buffer.read()) if image == "-" else find_pictures([Path(image)])
    return Pictures(paths)


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    from rich.console import Console

    from mixmim_bench.progress import View

    view = View(Console(stderr=True), 0)
    with view, view.stage("images", total, 0) as advance:
        yield advance


def _tell(pictures: Any, failures: dict[int, str]) -> None:
    """Report what could not be read; then the exit status is 1."""
    for row, reason in failures.items():
        click.echo(f"cannot be read: {pictures.name(row)} ({reason})", err=True)
    if failures:
        sys.exit(1)
