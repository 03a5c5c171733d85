"""What the protocols of dense tasks share: pyramids, rates by layer, and passes over images one by one."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.optim._param_groups import param_groups_layer_decay
from torch import nn

from mixmim_bench import facts, processes
from mixmim_bench.counting import Count, count_module
from mixmim_bench.data.batch import Batch
from mixmim_bench.data.dataset import Split
from mixmim_bench.data.hashing import WIDTH
from mixmim_bench.data.images import Part
from mixmim_bench.data.loading import ImageDataset, Unreadable, batches, in_groups
from mixmim_bench.data.transforms import JointTransform
from mixmim_bench.errors import BenchError
from mixmim_bench.models.pyramid import Pyramid, build_pyramid
from mixmim_bench.protocols.workbench import Workbench
from mixmim_bench.training.contract import Schedule, Trained

SHOWN_SIDE = 256  # pixels of the longer side of maps that are kept to be drawn
SHOWN = 8  # images whose predictions are kept, to be drawn


def open_pyramid(
    bench: Workbench, *, frozen: bool = False, drop_path: float = 0.0, freeze_batch_norm: bool = False
) -> tuple[Pyramid, list[str]]:
    """Build the backbone of a run as a pyramid, and notes on what it does not support; raises BenchError."""
    run = bench.run
    notes = list(facts.check_weights(run.network, run.weights))

    def build(**kwargs: Any) -> Pyramid:
        return build_pyramid(
            run.model,
            run.weights,
            run.size,
            bench.seed,
            arguments=run.arguments,
            frozen=frozen,
            freeze_batch_norm=freeze_batch_norm,
            **kwargs,
        )

    try:
        try:
            return build(**({"drop_path_rate": drop_path} if drop_path else {})), notes
        except BenchError as error:
            if "drop_path_rate" not in str(error):
                raise
        return build(), [*notes, f"drop_path {drop_path} ignored: {run.model.arch} does not support it"]
    except BenchError as error:
        raise processes.InAll(str(error)) from error


def layerwise(network: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """Return the optimizer of a dense network: the learning rate falls by layer within its backbone only."""
    backbone: Any = network.pyramid.backbone  # type: ignore[union-attr]
    exempt = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else ()
    groups: list[dict[str, Any]] = []
    if any(parameter.requires_grad for parameter in backbone.parameters()):
        groups = param_groups_layer_decay(
            backbone,
            weight_decay=schedule.weight_decay,
            no_weight_decay_list=exempt,
            layer_decay=schedule.layer_decay,
        )
        for group in groups:  # the last block is one layer below the head
            group["lr_scale"] *= schedule.layer_decay
    own = {id(parameter) for parameter in backbone.parameters()}
    head = [each for each in network.parameters() if each.requires_grad and id(each) not in own]
    for decay, members in (
        (0.0, [each for each in head if each.ndim <= 1]),
        (schedule.weight_decay, [each for each in head if each.ndim > 1]),
    ):
        groups.append({"params": members, "weight_decay": decay, "lr_scale": 1.0})
    return create_optimizer_v2(
        groups,
        opt=schedule.optimizer,
        lr=schedule.lr,
        weight_decay=0.0,
        **({"betas": schedule.betas} if schedule.betas else {}),
    )


@dataclasses.dataclass(frozen=True)
class Seen:
    """An image that was read: its row, the image (3, h, w) on the device, and its target."""

    row: int
    image: torch.Tensor
    target: Any


def one_by_one(bench: Workbench, split: Split, transform: JointTransform, name: str) -> Iterator[Seen]:
    """Yield the images of a split, each alone, so that none depends on others; notes what was read.

    Raises BenchError for images that cannot be read, if the task does not allow it.
    """
    part, machine = split.part, bench.machine
    unreadable = Unreadable(part.images, bench.run.task.skip_unreadable)
    dataset = ImageDataset(part.images, transform, part.targets, digests=True)
    digests = np.zeros((len(part), WIDTH), dtype=np.uint8)
    with bench.stages.stage(name, len(part), bench.gmacs) as advance:
        for batch in batches(dataset, in_groups(range(len(part)), 1), machine.workers):
            unreadable.add(batch.failures)
            unreadable.check()
            if len(batch.rows):
                row = int(batch.rows[0])
                digests[row] = batch.digests[0].numpy()
                yield _seen(batch, row, machine.device)
            advance(1)
    bench.skipped[split.role] = len(unreadable.found)
    read = np.flatnonzero(digests.any(1))
    bench.note_digests(split, read, digests[read])


def _seen(batch: Batch, row: int, device: str) -> Seen:
    target = None if batch.targets is None else batch.targets[0]
    return Seen(row, batch.images[0].to(device, non_blocking=True), target)


def shown_rows(n: int) -> list[int]:
    """Return the rows of the images whose predictions are kept, evenly over a split."""
    return sorted({int(row) for row in np.linspace(0, n - 1, min(n, SHOWN)).round()})


def reduced(array: np.ndarray) -> np.ndarray:
    """Reduce a map of pixels (h, w) to be drawn, by its nearest pixels."""
    step = max(1, -(-max(array.shape) // SHOWN_SIDE))
    return array[step // 2 :: step, step // 2 :: step]


def note_rows(
    bench: Workbench, splits: Sequence[Split], trained: Trained, rows: np.ndarray, whole: Part
) -> None:
    """Note a training on some rows of the joined splits, some of them maybe several times."""
    digests = np.zeros((len(whole), WIDTH), dtype=np.uint8)
    digests[rows] = trained.digests
    unreadable = {int(rows[row]): reason for row, reason in trained.unreadable.items()}
    bench.note_training(splits, dataclasses.replace(trained, digests=digests, unreadable=unreadable))


def cost_of(parts: Sequence[tuple[nn.Module, Sequence[Any], int]]) -> tuple[int, int, tuple[str, ...]]:
    """Count parameters and multiply-adds of what is behind a backbone, by both counters.

    parts: a module, the shapes of its inputs, and how many such inputs an image has.

    Returns:
        Parameters, multiply-adds of one image, and a note where the counters disagree.
    """
    parameters = macs = by_fvcore = 0
    uncounted: list[str] = []
    for module, shapes, times in parts:
        counts: tuple[Count, Count] = count_module(module, shapes)
        parameters += sum(parameter.numel() for parameter in module.parameters())
        macs, by_fvcore = macs + times * counts[0].macs, by_fvcore + times * counts[1].macs
        uncounted += counts[1].uncounted
    if uncounted:
        return parameters, macs, (f"not counted in the head: {', '.join(dict.fromkeys(uncounted))}",)
    if macs != by_fvcore:
        return parameters, macs, (f"the counters disagree on the head: {macs} and {by_fvcore} multiply-adds",)
    return parameters, macs, ()
