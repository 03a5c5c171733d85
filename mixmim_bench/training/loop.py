"""The training loop, on Accelerate, with timm's optimizers and schedules and the protocol's objective."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from mixmim_bench.data.batch import Batch
from mixmim_bench.data.hashing import WIDTH
from mixmim_bench.data.images import Part
from mixmim_bench.data.loading import ImageDataset, Unreadable, batches, in_groups
from mixmim_bench.data.transforms import JointTransform
from mixmim_bench.errors import BenchError
from mixmim_bench.machine import Machine
from mixmim_bench.memory import halved, is_out_of_memory
from mixmim_bench.progress import Advance, Stages
from mixmim_bench.seeding import generator, seed_everything
from mixmim_bench.specs import digest
from mixmim_bench.training.checkpoints import Checkpoint, Terminated, noting_sigterm


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
        losses: the mean loss of each epoch.
        unreadable: row and reason of images that could not be read.
        digests: of the images' bytes (n, 16), zeros for images that were not read.
        notes: for the record.
    """

    losses: list[float]
    unreadable: dict[int, str]
    digests: np.ndarray
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The environment of a training: everything but its recipe."""

    machine: Machine
    seed: int
    stages: Stages
    skip_unreadable: bool = False
    checkpoints: Path | None = None  # a folder for the checkpoints of the run; None: none are written


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """An optimizer and its learning rate: linear warm-up from 0, then a cosine to `min_lr`."""

    epochs: int
    batch_size: int
    lr: float
    min_lr: float = 0.0
    warmup_epochs: float = 0.0
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    layer_decay: float = 1.0  # 1: the same rate in every layer
    clip_grad: float = 0.0  # 0: not clipped


MakeOptimizer = Callable[[nn.Module, Schedule], torch.optim.Optimizer]


class Objective(Protocol):
    """The loss of a training."""

    def prepare(self, images: Tensor, targets: Any) -> tuple[Tensor, Any]:
        """Prepare a batch (B, 3, H, W) with its targets, mixing images if the recipe does."""

    def weight(self, targets: Any) -> float:
        """Return the weight of targets of a prepared batch: the number of images, valid pixels or boxes."""

    def loss(self, network: nn.Module, images: Tensor, targets: Any) -> Tensor:
        """Return the loss of some images of a prepared batch, averaged over their weight."""


def train(
    network: nn.Module,
    part: Part,
    transform: JointTransform,
    objective: Objective,
    schedule: Schedule,
    environment: Environment,
    name: str,
    work: float,
    make_optimizer: MakeOptimizer | None = None,
) -> Trained:
    """Train a network in place.

    On running out of memory, training restarts with half as many images at a time and sums their gradients:
    the batch size of the schedule and its mixing stay the same. Batch norm then sees fewer images, which is
    noted, and needs at least two.

    Args:
        network: the network.
        part: images and targets.
        transform: of an image and its target.
        objective: the loss.
        schedule: optimizer, learning rate, epochs.
        environment: machine, seed, progress, and what to do with unreadable images.
        name: shown in the progress display.
        work: GMACs of a training step for one image.
        make_optimizer: replaces timm's factory.

    Raises:
        BenchError: memory runs out with the smallest number of images, or the loss diverges.
    """
    fewest = fewest_at_once(network)
    fresh = copy.deepcopy(network.state_dict())
    asked = min(schedule.batch_size, len(part))
    checkpoint = _checkpoint(network, environment, schedule, part, name)
    state = checkpoint.load()
    at_once = state["at_once"] if state else asked
    while True:
        try:
            trainer = Trainer(
                network, part, transform, objective, schedule, environment, at_once, make_optimizer
            )
            losses = trainer.run(name, work, checkpoint, state)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if at_once <= fewest:
                images = "one image" if fewest == 1 else "the fewest images that batch norm allows, 2 or 3,"
                raise BenchError(
                    f"{name}: out of memory with {images} at a time; free memory, or use a smaller model or "
                    "image size"
                ) from error
            at_once, state = max(fewest, math.ceil(at_once / 2)), None
            network.load_state_dict(fresh)
            network.zero_grad(set_to_none=True)
        else:
            notes = _notes(name, asked, at_once, fewest)
            return Trained(losses, trainer.unreadable.found, trainer.digests, notes)


def _checkpoint(
    network: nn.Module, environment: Environment, schedule: Schedule, part: Part, name: str
) -> Checkpoint:
    """Return the checkpoint of a training within the run."""
    about: dict[str, Any] = {
        "shapes": {key: list(value.shape) for key, value in network.state_dict().items()},
        "name": name,
        "schedule": dataclasses.asdict(schedule),
        "seed": environment.seed,
        "n": len(part),
        "torch": str(torch.__version__),  # whose rounding weights depend on
    }
    folder = environment.checkpoints
    return Checkpoint(None if folder is None else folder / f"{digest(about)}.pt", about)


def _notes(name: str, asked: int, at_once: int, fewest: int) -> tuple[str, ...]:
    """Describe a reduced number of images at a time."""
    if at_once == asked:
        return ()
    note = halved(name, asked, at_once)
    if fewest == 1:
        return (note,)
    return note, f"{name}: batch-norm statistics are those of {at_once} images instead of {asked}"


def _timm_optimizer(network: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    return create_optimizer_v2(
        network,
        opt=schedule.optimizer,
        lr=schedule.lr,
        weight_decay=schedule.weight_decay,
        layer_decay=schedule.layer_decay if schedule.layer_decay < 1.0 else None,
        **({"fused": True} if schedule.optimizer == "adamw" else {}),
    )


def make_accelerator(machine: Machine) -> Accelerator:
    """Create the Accelerator; within a process, device and precision must not change."""
    mixed = "bf16" if machine.precision == "bfloat16" else "no"
    return Accelerator(cpu=torch.device(machine.device).type == "cpu", mixed_precision=mixed)


class Trainer:
    """One attempt at training, `at_once` images at a time."""

    def __init__(
        self,
        network: nn.Module,
        part: Part,
        transform: JointTransform,
        objective: Objective,
        schedule: Schedule,
        environment: Environment,
        at_once: int,
        make_optimizer: MakeOptimizer | None = None,
    ) -> None:
        self.part = part
        self.objective = objective
        self.schedule = schedule
        self.environment = environment
        self.seed = environment.seed
        self.at_once = at_once
        self.fewest = fewest_at_once(network)
        self.batch_size = min(schedule.batch_size, len(part))
        self.steps_per_epoch = len(part) // self.batch_size
        self.unreadable = Unreadable(part.images, environment.skip_unreadable)
        self.dataset = ImageDataset(part.images, transform, part.targets, environment.seed)
        self.digests = np.zeros((len(part), WIDTH), dtype=np.uint8)
        self.accelerator = make_accelerator(environment.machine)
        optimizer = (make_optimizer or _timm_optimizer)(network, schedule)
        # timm's scheduler is what applies the layer decay, to the optimizer's own groups
        self.scheduler, _ = create_scheduler_v2(
            optimizer,
            sched="cosine",
            num_epochs=schedule.epochs - schedule.warmup_epochs,  # the cosine starts after the warm-up
            warmup_epochs=schedule.warmup_epochs,
            warmup_prefix=True,
            warmup_lr=0.0,
            min_lr=schedule.min_lr,
            step_on_epochs=False,
            updates_per_epoch=self.steps_per_epoch,
        )
        self.network, self.optimizer = self.accelerator.prepare(network, optimizer)

    def run(
        self,
        name: str,
        work: float,
        checkpoint: Checkpoint | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> list[float]:
        """Train for all epochs, each image at `work` GMACs; return the mean loss of each.

        Randomness depends on the seed and the step only, so that a training continued from a `state` ends
        with the same weights.
        """
        checkpoint = checkpoint or Checkpoint(None, None)  # never written
        losses: list[list[float]] = [[]]  # of each step, by epoch
        first = 0  # step of the first epoch
        if state is not None:
            losses, first = self._restore(state), state["step"]
        seen = self.schedule.epochs * self.steps_per_epoch * self.batch_size
        with self.environment.stages.stage(name, seen, work) as advance, noting_sigterm() as terminated:
            advance(((len(losses) - 1) * self.steps_per_epoch + first) * self.batch_size)
            for epoch in range(len(losses) - 1, self.schedule.epochs):
                for done in self._steps(epoch, first, losses[-1], advance):
                    if terminated() or checkpoint.is_due(ends_epoch=False):
                        self._save(checkpoint, losses, done)
                    if terminated():
                        raise Terminated
                first = 0
                losses.append([])
                if checkpoint.is_due(ends_epoch=True):
                    self._save(checkpoint, losses, 0)
        return [sum(each) / max(len(each), 1) for each in losses[:-1]]

    def _save(self, checkpoint: Checkpoint, losses: list[list[float]], step: int) -> None:
        def state() -> dict[str, Any]:
            return {
                "at_once": self.at_once,
                "step": step,  # of the last epoch in `losses`, which many steps are done
                "losses": losses,
                "network": self.accelerator.unwrap_model(self.network).state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "digests": torch.from_numpy(self.digests),
                "unreadable": self.unreadable.found,
            }

        checkpoint.save(state)

    def _restore(self, state: Mapping[str, Any]) -> list[list[float]]:
        """Set weights, optimizer and what was read to those of a checkpoint; return the losses."""
        self.accelerator.unwrap_model(self.network).load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.digests[:] = state["digests"].numpy()
        self.unreadable.add(state["unreadable"])
        return [list(each) for each in state["losses"]]

    def _steps(self, epoch: int, done: int, losses: list[float], advance: Advance) -> Iterator[int]:
        """Do the steps of an epoch of which some are done; yield the number done after each."""
        self.network.train()
        for step, batch in enumerate(self._batches(epoch, done), done):
            if self.dataset.digests and len(batch.rows):
                self.digests[batch.rows.numpy()] = batch.digests.numpy()
            self.unreadable.add(batch.failures)
            self.unreadable.check()
            update = epoch * self.steps_per_epoch + step
            self.scheduler.step_update(update)
            if len(batch.rows) > 0:
                losses.append(self._step(batch, update))
            advance(len(batch.rows) + len(batch.failures))
            yield step + 1

    def _batches(self, epoch: int, done: int) -> Iterator[Batch]:
        self.dataset.epoch = epoch
        self.dataset.digests = epoch == 0
        order = torch.randperm(len(self.part), generator=generator(self.seed, epoch)).tolist()
        groups = in_groups(order[: self.steps_per_epoch * self.batch_size], self.batch_size)
        return batches(self.dataset, groups[done:], self.environment.machine.workers)

    def _step(self, batch: Batch, update: int) -> float:
        """Sum the gradients of one batch, `at_once` images at a time, and take a step; return its loss."""
        seed_everything(self.seed, update)
        device = self.accelerator.device
        batch = batch.map(lambda tensor: tensor.to(device, non_blocking=True))
        images, targets = self.objective.prepare(batch.images, batch.targets)
        total, whole = 0.0, self.objective.weight(targets)
        if not whole:  # such as masks without a valid pixel
            return 0.0
        for piece in pieces(len(images), self.at_once, self.fewest):
            seed_everything(self.seed, update, piece.start)
            share = self.objective.weight(targets[piece]) / whole
            if not share:
                continue
            loss = self._loss(images[piece], targets[piece]) * share
            self.accelerator.backward(loss)
            total += float(loss.detach())
        if not math.isfinite(total):
            raise BenchError(f"the training diverged: the loss is {total} at step {update}")
        if self.schedule.clip_grad > 0.0:
            self.accelerator.clip_grad_norm_(self.network.parameters(), self.schedule.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def _loss(self, images: Tensor, targets: Any) -> Tensor:
        with self.accelerator.autocast():
            return self.objective.loss(self.network, images, targets)


def pieces(images: int, at_once: int, fewest: int = 1) -> Iterator[slice]:
    """Split a batch into pieces of at most `at_once` and, if possible, at least `fewest` images.

    If the last piece would be smaller, all get about the same size; with `at_once` 2, one may have 3.
    """
    starts = list(range(0, images, at_once))
    if 0 < images % at_once < fewest and len(starts) > 1:
        count = min(len(starts), images // fewest)
        starts = [place * images // count for place in range(count)]
    for start, stop in zip(starts, [*starts[1:], images], strict=True):
        yield slice(start, stop)


def fewest_at_once(network: nn.Module) -> int:
    """Return the smallest number of images per forward pass: batch norm needs two."""
    batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    return 2 if batch_norm else 1


def scaled(base_lr: float, batch_size: int) -> float:
    """Scale a learning rate by the linear rule: base_lr * batch_size / 256."""
    return base_lr * batch_size / 256


def classifier(network: Any) -> nn.Module:
    """Return the classification head of a timm model."""
    return network.get_classifier()
