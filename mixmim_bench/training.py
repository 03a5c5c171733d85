"""The training loop: timm's optimizer, schedule, augmentation and mixing on Accelerate."""

import copy
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from mixmim_bench.bench import Advance, Split, Workbench
from mixmim_bench.data.images import Part
from mixmim_bench.data.loading import Batch, ImageDataset, Unreadable, batches, in_groups
from mixmim_bench.data.transforms import train_transform
from mixmim_bench.errors import BenchError
from mixmim_bench.features import extract
from mixmim_bench.machine import is_out_of_memory
from mixmim_bench.protocols import Predictions
from mixmim_bench.seeding import seed_everything

if TYPE_CHECKING:
    from mixmim_bench.protocols.finetune import Finetune

TRAIN_WORK = 3.0  # a training step costs about three forward passes


def train(network: nn.Module, part: Part, recipe: "Finetune", bench: Workbench) -> list[float]:
    """Train a classifier in place; return the mean loss of each epoch.

    When memory runs out training starts again with half as many images at a time and gradients
    accumulated over twice as many steps: the batch that the recipe states stays what it is.
    """
    fresh = copy.deepcopy(network.state_dict())
    asked = min(recipe.batch_size, len(part))
    at_once = asked
    while True:
        try:
            log = _Trainer(network, part, recipe, bench, at_once).run()
        except Exception as error:
            if not is_out_of_memory(error) or at_once == 1:
                raise
            at_once = math.ceil(at_once / 2)
            network.load_state_dict(fresh)
        else:
            if at_once < asked:
                bench.note_batch("training", asked, at_once)
            return log


class _Trainer:
    """One attempt at training, `at_once` images at a time."""

    def __init__(
        self,
        network: nn.Module,
        part: Part,
        recipe: "Finetune",
        bench: Workbench,
        at_once: int,
    ) -> None:
        self.recipe = recipe
        self.bench = bench
        self.at_once = at_once
        self.seed = bench.run.seed
        self.part = part
        self.labels = torch.from_numpy(part.labels)
        self.batch_size = min(recipe.batch_size, len(part))
        self.steps_per_epoch = len(part) // self.batch_size
        self.unreadable = Unreadable(part.images, bench.run.task.skip_unreadable)
        self.dataset = ImageDataset(part.images, self._transform(), self.seed)

        self.accelerator = Accelerator(
            cpu=bench.machine.device == "cpu",
            mixed_precision="bf16" if bench.machine.precision == "bfloat16" else "no",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            _initialise_head(network, recipe.head_init_std)
        optimizer = create_optimizer_v2(
            network,
            opt="adamw",
            lr=recipe.base_lr * self.batch_size / 256,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay if recipe.layer_decay < 1.0 else None,
            fused=True,
        )
        # timm's scheduler is what applies the layer decay, to the optimizer's own groups
        self.scheduler, _ = create_scheduler_v2(
            optimizer,
            sched="cosine",
            num_epochs=recipe.epochs - recipe.warmup_epochs,  # the cosine starts after the warm-up
            warmup_epochs=recipe.warmup_epochs,
            warmup_prefix=True,
            warmup_lr=0.0,
            min_lr=recipe.min_lr,
            step_on_epochs=False,
            updates_per_epoch=self.steps_per_epoch,
        )
        self.network, self.optimizer = self.accelerator.prepare(network, optimizer)
        self.mixup, self.loss = self._mixing()

    def _transform(self) -> Any:
        recipe = self.recipe
        return train_transform(
            self.bench.run.preprocessing,
            crop_scale=recipe.crop_scale,
            crop_ratio=recipe.crop_ratio,
            hflip=0.0 if "hflip" in self.bench.run.task.forbid else recipe.hflip,
            auto_augment=recipe.auto_augment,
            reprob=recipe.reprob,
        )

    def _mixing(self) -> tuple[Mixup | None, nn.Module]:
        recipe = self.recipe
        if recipe.mixup > 0.0 or recipe.cutmix > 0.0:
            mixup = Mixup(
                mixup_alpha=recipe.mixup,
                cutmix_alpha=recipe.cutmix,
                label_smoothing=recipe.smoothing,
                num_classes=self.bench.num_classes,
            )
            return mixup, SoftTargetCrossEntropy()
        return None, LabelSmoothingCrossEntropy(recipe.smoothing)

    def run(self) -> list[float]:
        """Train for all epochs; return the mean loss of each."""
        seen = self.recipe.epochs * self.steps_per_epoch * self.batch_size
        work = TRAIN_WORK * self.bench.gmacs
        with self.bench.stages.stage("fine-tuning", seen, work) as advance:
            return [self._epoch(epoch, advance) for epoch in range(self.recipe.epochs)]

    def _epoch(self, epoch: int, advance: Advance) -> float:
        self.network.train()
        self.dataset.epoch = epoch
        order = torch.randperm(
            len(self.part), generator=torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        )[: self.steps_per_epoch * self.batch_size]
        losses: list[float] = []
        pieces = batches(self.dataset, self._pieces(order.tolist()), self.bench.machine.workers)
        for step in range(self.steps_per_epoch):
            update = epoch * self.steps_per_epoch + step
            self.scheduler.step_update(update)
            losses.append(self._step(pieces, update, advance))
        self.unreadable.check()
        return sum(losses) / len(losses)

    def _pieces(self, order: list[int]) -> list[list[int]]:
        """Cut the epoch into what is loaded at a time, never across a batch."""
        return [
            piece for batch in in_groups(order, self.batch_size) for piece in in_groups(batch, self.at_once)
        ]

    def _step(self, pieces: Iterator[Batch], update: int, advance: Advance) -> float:
        """Accumulate the gradients of one batch and take a step; return its loss."""
        total, seen = 0.0, 0
        while seen < self.batch_size:
            batch = next(pieces)
            self.unreadable.add(batch.failures)
            self.unreadable.check()
            count = len(batch.rows) + len(batch.failures)
            if len(batch.rows) > 0:
                total += self._backward(batch, update, seen)
            seen += count
            advance(count)
        if self.recipe.clip_grad > 0.0:
            self.accelerator.clip_grad_norm_(self.network.parameters(), self.recipe.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not math.isfinite(total):
            raise BenchError(f"the training diverged: the loss is {total} at step {update}")
        return total

    def _backward(self, batch: Batch, update: int, seen: int) -> float:
        seed_everything(self.seed, update, seen)
        images = batch.images.to(self.accelerator.device)
        target = self.labels[batch.rows].to(self.accelerator.device)
        if self.mixup is not None and len(images) % 2 == 0:
            images, target = self.mixup(images, target)
        elif self.mixup is not None:  # timm mixes pairs: an odd one out keeps its own label
            target = mixup_target(target, self.bench.num_classes, 1.0, self.recipe.smoothing)
        with self.accelerator.autocast():
            output = self.network(images)
        share = len(images) / self.batch_size
        loss = self.loss(output.float(), target) * share
        self.accelerator.backward(loss)
        return float(loss.detach())


def _initialise_head(network: Any, std: float) -> None:
    head = network.get_classifier()
    if isinstance(head, nn.Linear):
        nn.init.trunc_normal_(head.weight, std=std)
        if head.bias is not None:
            nn.init.zeros_(head.bias)


def predict(network: nn.Module, split: Split, bench: Workbench) -> Predictions:
    """Score the classes of a split with a trained network; the scores are logits."""
    with bench.stages.stage(f"scoring {split.role}", len(split.part), bench.gmacs) as step:
        logits = extract(
            network,
            split.part,
            bench.transform(),
            bench.machine,
            bench.run.task.skip_unreadable,
            step,
        )
    bench.skipped[split.role] = logits.unreadable
    return Predictions(logits.ids, logits.y, logits.x)
