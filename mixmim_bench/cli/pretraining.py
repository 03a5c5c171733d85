"""`pretrain` and `reconstruct`: MixMIM's own training, and what it learns to see."""

from pathlib import Path
from typing import Any

import click

from mixmim_bench.cli.options import (
    BATCH_SIZE,
    DATA_ROOT,
    DEVICE,
    IMAGE_SIZE,
    PRECISION,
    SET,
    THREADS,
    TRACKERS,
    TRAINING,
    WORKERS,
    examples,
    model_option,
)

MODEL = model_option("A MixMIM of `mixmim-bench models`.")


@click.command(
    epilog=examples(
        "mixmim-bench pretrain --data photos/ --out pretrained/",
        "mixmim-bench pretrain --data imagenet1k --data-root /data --out b300 --set epochs=300",
        "torchrun --nproc-per-node 8 -m mixmim_bench.cli pretrain --data photos/ --out pretrained/",
    )
)
@click.option(
    "--data",
    required=True,
    multiple=True,
    help="A folder of images (labels are not needed), or a task. Repeatable.",
)
@click.option("--train-only", is_flag=True, help="Of tasks, use train only; by default train and val.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the checkpoint.",
)
@MODEL
@IMAGE_SIZE
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A pretraining checkpoint to start from; default: random weights.",
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Random seed.")
@SET
@click.option(
    "--keep-every", type=click.IntRange(min=1), help="Also keep the weights of every so many epochs."
)
@click.option("--skip-unreadable", is_flag=True, help="Skip images that cannot be read.")
@DATA_ROOT
@DEVICE
@PRECISION
@THREADS
@WORKERS
@BATCH_SIZE
@TRAINING
@TRACKERS
def pretrain(
    data: tuple[str, ...],
    train_only: bool,
    out: Path,
    model: str,
    image_size: int | None,
    weights: Path | None,
    seed: int,
    changes: dict[str, Any],
    keep_every: int | None,
    skip_unreadable: bool,
    roots: Any,
    trackers: tuple[str, ...],
    **machine: Any,
) -> None:
    """Pretrain a MixMIM: images mixed in pairs, both reconstructed.

    The recipe is that of the release: 600 epochs at batch 2048. `--set epochs=300 --set batch_size=512`
    changes it. The same command continues an interrupted pretraining. The checkpoint is accepted by
    `--weights` of the other commands.
    """
    from rich.console import Console

    from mixmim_bench import processes
    from mixmim_bench.data.images import join
    from mixmim_bench.hyperparameters import check_values
    from mixmim_bench.machine import open_machine
    from mixmim_bench.pretraining import Pretraining, PretrainingRecipe, describe, open_images
    from mixmim_bench.pretraining import pretrain as pretrained
    from mixmim_bench.progress import Silent, View
    from mixmim_bench.training.logs import check_trackers

    check_trackers(trackers)
    recipe = PretrainingRecipe(**check_values(PretrainingRecipe, changes))
    spec, size = describe(model, image_size)
    part = join([open_images(each, roots, with_val=not train_only) for each in data])
    computer = open_machine(**machine)
    wanted = Pretraining(
        model=spec,
        part=part,
        recipe=recipe,
        size=size,
        seed=seed,
        weights=weights,
        skip_unreadable=skip_unreadable,
    )
    if not processes.is_main():
        pretrained(wanted, out, computer, Silent(), trackers, keep_every or 0)
        return
    with View(Console(highlight=False), 0) as view:
        done = pretrained(wanted, out, computer, view, trackers, keep_every or 0)
    click.echo(
        f"{done.checkpoint}: {done.images:,} images, {len(done.losses)} epochs, loss {done.losses[0]:.4f} at "
        f"first, {done.losses[-1]:.4f} at last"
    )


@click.command(
    epilog=examples(
        "mixmim-bench reconstruct a.jpg b.jpg --weights checkpoint.pth --out mixed.png",
        "mixmim-bench reconstruct a.png b.png -m mixmim-tiny",
    )
)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A pretraining checkpoint: of `pretrain`, of the release or of OpenMMLab; by default, the model's "
    "own weights on this machine, such as those of mixmim-tiny.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("reconstructions.png"),
    show_default=True,
    help="The picture.",
)
@MODEL
@IMAGE_SIZE
@click.option("--mask-ratio", type=float, default=0.5, show_default=True, help="Share of exchanged cells.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the masks.")
def reconstruct(
    images: tuple[Path, ...],
    weights: Path | None,
    out: Path,
    model: str,
    image_size: int | None,
    mask_ratio: float,
    seed: int,
) -> None:
    """Draw pairs of images, their mixture, and both reconstructions.

    IMAGES are files and folders; one after the other, two make a pair.
    """
    from mixmim_bench.data.pictures import Pictures, find_pictures
    from mixmim_bench.pretraining import PretrainingRecipe, describe
    from mixmim_bench.reconstruction import draw, load_network, own_weights

    pictures = Pictures(find_pictures(list(images)))
    spec, size = describe(model, image_size)
    network = load_network(spec, size, weights or own_weights(spec))
    PretrainingRecipe(mask_ratio=(mask_ratio,)).check_mask(network)
    picture = draw(network, spec, pictures, mask_ratio, seed)
    picture.save(out)
    click.echo(f"{out}: {picture.width} x {picture.height} pixels")
