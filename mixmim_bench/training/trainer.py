"""One training: steps over batches, gradients summed over pieces and processes, checkpoints and logs."""

import copy
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2
from timm.scheduler import MultiStepLRScheduler, create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from mixmim_bench import processes
from mixmim_bench.data.batch import Batch, joined
from mixmim_bench.data.hashing import WIDTH
from mixmim_bench.data.images import Part
from mixmim_bench.data.loading import ImageDataset, Unreadable, batches, in_groups
from mixmim_bench.data.transforms import JointTransform
from mixmim_bench.errors import BenchError, counted
from mixmim_bench.machine import Machine
from mixmim_bench.progress import Advance
from mixmim_bench.seeding import generator, seed_everything
from mixmim_bench.training.checkpoints import Checkpoint, Terminated, noting_sigterm
from mixmim_bench.training.contract import Environment, MakeOptimizer, Objective, Schedule
from mixmim_bench.training.logs import TrainingLog, describe_rates, open_trackers, write_diverged
from mixmim_bench.training.sharding import set_whole_state, shard, whole_state, whole_weights


def _timm_optimizer(network: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    optimizer = create_optimizer_v2(
        network,
        opt=schedule.optimizer,
        lr=schedule.lr,
        weight_decay=schedule.weight_decay,
        layer_decay=schedule.layer_decay if schedule.layer_decay < 1.0 else None,
        **({"betas": schedule.betas} if schedule.betas else {}),
        **({"fused": True} if schedule.optimizer == "adamw" else {}),
    )
    if schedule.head_lr_scale != 1.0:
        head = {id(parameter) for parameter in network.get_classifier().parameters()}  # type: ignore[operator]
        for group in optimizer.param_groups:
            if all(id(parameter) in head for parameter in group["params"]):
                group["lr_scale"] = group.get("lr_scale", 1.0) * schedule.head_lr_scale
    return optimizer


def _scheduler(optimizer: torch.optim.Optimizer, schedule: Schedule, steps: int, steps_per_epoch: int) -> Any:
    """Return timm's scheduler; the decay starts after the warm-up."""
    warmup = schedule.warmup_steps or schedule.warmup_epochs * steps_per_epoch
    if schedule.decay == "steps":
        # timm applies a milestone one step early, and counts after the warm-up
        milestones = [share * steps - warmup + 1 for share in schedule.milestones]
        return MultiStepLRScheduler(
            optimizer,
            milestones,
            decay_rate=0.1,
            warmup_t=warmup,
            warmup_lr_init=schedule.warmup_lr,
            warmup_prefix=True,
            t_in_epochs=False,
        )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=schedule.decay,
        decay_rate=1.0,  # the power of 'poly'
        num_epochs=(steps - warmup) / steps_per_epoch,
        warmup_epochs=warmup / steps_per_epoch,
        warmup_prefix=True,
        warmup_lr=schedule.warmup_lr,
        min_lr=schedule.min_lr,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    return scheduler


LOADED_AT_ONCE = 256  # images, by one worker
MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def make_accelerator(machine: Machine) -> Accelerator:
    """Create the Accelerator; within a process, device and precision must not change."""
    return Accelerator(
        cpu=torch.device(machine.device).type == "cpu",
        mixed_precision=MIXED[machine.precision],
    )


class Diverged(processes.InAll):
    """The loss is not finite."""


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
        name: str = "training",
    ) -> None:
        machine = environment.machine
        self.name = name
        self.part = part
        self.objective = objective
        self.schedule = schedule
        self.environment = environment
        self.seed = environment.seed
        self.at_once = at_once
        self.fewest = fewest_at_once(network, objective)
        batch_size = min(schedule.batch_size, len(part))
        self.batch_size = batch_size // objective.together * objective.together
        self.steps_per_epoch = len(part) // self.batch_size
        self.steps = schedule.steps or schedule.epochs * self.steps_per_epoch
        self.epochs = math.ceil(self.steps / self.steps_per_epoch)  # the last one may be shorter
        self.unreadable = Unreadable(part.images, environment.skip_unreadable)
        self.dataset = ImageDataset(part.images, transform, part.targets, environment.seed)
        self.digests = np.zeros((len(part), WIDTH), dtype=np.uint8)
        self.accelerator = make_accelerator(machine)
        self.sharded = machine.sharded and processes.count() > 1
        self.given = network  # receives the weights in the end
        if machine.grad_checkpointing:
            _checkpoint_activations(network)
        if machine.compile_training:
            network.compile()
        optimizer = (make_optimizer or _timm_optimizer)(network, schedule)
        # timm's scheduler is what applies the layer decay, to the optimizer's own groups
        self.scheduler = _scheduler(optimizer, schedule, self.steps, self.steps_per_epoch)
        self.rates = describe_rates(network, optimizer)
        self.network, self.optimizer = self._prepare(network, optimizer, make_optimizer)
        self.ema = ModelEmaV3(network, decay=schedule.ema_decay) if schedule.ema_decay else None

    def _prepare(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, make_optimizer: MakeOptimizer | None
    ) -> tuple[Any, Any]:
        """Place network and optimizer on the devices of the job."""
        if not self.sharded:
            return self.accelerator.prepare(network, optimizer)
        if self.schedule.ema_decay or self.accelerator.scaler is not None:
            raise processes.InAll("--fsdp supports neither ema_decay nor float16")
        parts = shard(copy.deepcopy(network), self.accelerator.device)
        if self.environment.machine.compile_training:
            parts.compile()
        # the optimizer of the shards takes over the groups, which the scheduler changes
        sharded = (make_optimizer or _timm_optimizer)(parts, self.schedule)
        for mine, theirs in zip(sharded.param_groups, optimizer.param_groups, strict=True):
            mine.update({key: value for key, value in theirs.items() if key != "params"})
        self.scheduler.optimizer = sharded
        return parts, sharded

    def run(
        self,
        name: str,
        work: float,
        checkpoint: Checkpoint | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> list[float]:
        """Train for all epochs, each image at `work` GMACs; return the mean loss of each.

        Randomness depends on the seed, the step and the process only, so that a training continued from a
        `state` ends with the same weights.
        """
        checkpoint = checkpoint or Checkpoint(None, None)  # never written
        losses: list[list[float]] = [[]]  # of each step, by epoch
        first = 0  # step of the first epoch
        if state is not None:
            losses, first = self._restore(state), state["step"]
        log = self._open_log((len(losses) - 1) * self.steps_per_epoch + first)
        seen = self.steps * self.batch_size
        with self.environment.stages.stage(name, seen, work) as advance, noting_sigterm() as terminated:
            advance(((len(losses) - 1) * self.steps_per_epoch + first) * self.batch_size)
            for epoch in range(len(losses) - 1, self.epochs):
                for done in self._steps(epoch, first, losses[-1], advance, log):
                    stop, save = processes.total(terminated(), checkpoint.is_due(ends_epoch=False))
                    if stop or save:
                        self._save(checkpoint, losses, done)
                    if stop:
                        raise Terminated
                first = 0
                losses.append([])
                self._keep(epoch + 1)
                if processes.total(checkpoint.is_due(ends_epoch=True))[0]:
                    self._save(checkpoint, losses, 0)
        for tracker in self.accelerator.trackers:  # `end_training` would disconnect the processes as well
            tracker.finish()
        return [sum(each) / max(len(each), 1) for each in losses[:-1]]

    def _open_log(self, first: int) -> TrainingLog:
        """Open the logs at a step, and say the learning rates."""
        if not self.environment.quiet:
            for line in [
                f"  {self.name}: learning rates after the warm-up",
                *(f"    {r}" for r in self.rates),
            ]:
                self.environment.stages.say(line)
        trackers: list[Any] = []
        kwargs: dict[str, Any] = {}
        if processes.is_main():
            logs, names = self.environment.logs, self.environment.trackers
            trackers, kwargs = open_trackers(logs, self.name, names, first)
        if trackers:
            self.accelerator.log_with = trackers
            self.accelerator.project_configuration.logging_dir = str(self.environment.logs)
            values = {
                key: value
                for key, value in dataclasses.asdict(self.schedule).items()
                if not isinstance(value, tuple)
            }
            self.accelerator.init_trackers(self.name.replace(" ", "-"), values, kwargs)
        return TrainingLog(self.accelerator, self.steps_per_epoch, self.batch_size)

    def _keep(self, epochs: int) -> None:
        """Pass on the weights after some epochs."""
        keep, every = self.environment.keep, self.environment.keep_every
        if keep is not None and every and epochs % every == 0 and epochs < self.epochs:
            weights = self._weights()
            if processes.is_main():
                keep(epochs, weights)

    def _weights(self) -> dict[str, Tensor]:
        """Return the weights that are the result; all processes call this."""
        if self.sharded:
            return whole_weights(self.network)
        return (self.given if self.ema is None else self.ema.module).state_dict()

    def finish(self) -> None:
        """Give the trained weights to the network, and what was read to every process."""
        self.given._compiled_call_impl = None
        if self.environment.machine.grad_checkpointing:
            _checkpoint_activations(self.given, enable=False)
        if self.sharded or self.ema is not None:
            self.given.load_state_dict(self._weights())
        self.given.to(self.accelerator.device)
        self._gather_what_was_read()

    def _gather_what_was_read(self) -> None:
        """Give every process what the others have read."""
        for digests, found in processes.gather((self.digests, self.unreadable.found)):
            self.digests |= digests
            self.unreadable.add(found)

    # -- checkpoints -----------------------------------------------------------------------------------

    def _save(self, checkpoint: Checkpoint, losses: list[list[float]], step: int) -> None:
        if self.sharded:  # by all processes
            network, optimizer = whole_state(self.network, self.optimizer)
        else:
            network, optimizer = self.given.state_dict(), self.optimizer.state_dict()
        self._gather_what_was_read()
        scaler = self.accelerator.scaler
        checkpoint.save(
            {
                "at_once": self.at_once,
                "step": step,  # of the last epoch in `losses`, which many steps are done
                "losses": losses,
                "network": network,
                "optimizer": optimizer,
                "ema": None if self.ema is None else self.ema.module.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "digests": torch.from_numpy(self.digests),
                "unreadable": self.unreadable.found,
            }
        )

    def _restore(self, state: Mapping[str, Any]) -> list[list[float]]:
        """Set weights, optimizer and what was read to those of a checkpoint; return the losses."""
        if self.sharded:
            set_whole_state(self.network, self.optimizer, state["network"], state["optimizer"])
        else:
            self.given.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.digests[:] = state["digests"].numpy()
        self.unreadable.add(state["unreadable"])
        return [list(each) for each in state["losses"]]

    # -- steps -----------------------------------------------------------------------------------------

    def _steps(
        self, epoch: int, done: int, losses: list[float], advance: Advance, log: TrainingLog
    ) -> Iterator[int]:
        """Do the steps of an epoch of which some are done; yield the number done after each."""
        self.network.train()
        for step, batch in enumerate(self._batches(epoch, done), done):
            update = epoch * self.steps_per_epoch + step
            self.scheduler.step_update(update)
            if self._are_readable(batch):
                losses.append(self._step(batch, update))
                group = self.optimizer.param_groups[-1]
                log.add(update, losses[-1], group["lr"] / group.get("lr_scale", 1.0))
            advance(self.batch_size)
            yield step + 1

    def _batches(self, epoch: int, done: int) -> Iterator[Batch]:
        """Load this process's share of each batch, in pieces that fit into shared memory."""
        self.dataset.epoch = epoch
        self.dataset.digests = epoch == 0
        order = torch.randperm(len(self.part), generator=generator(self.seed, epoch)).tolist()
        steps = min(self.steps_per_epoch, self.steps - epoch * self.steps_per_epoch)
        groups = in_groups(order[: steps * self.batch_size], self.batch_size)
        share = processes.share(self.batch_size, self.objective.together)
        by_share = [in_groups(group[share], LOADED_AT_ONCE) for group in groups[done:]]
        rows = [each for of_share in by_share for each in of_share]
        loaded = batches(self.dataset, rows, self.environment.machine.workers)
        for of_share in by_share:
            yield joined([next(loaded) for _ in of_share])

    def _are_readable(self, batch: Batch) -> bool:
        """Note what was read; returns whether there are images to train on. Raises BenchError in all."""
        if self.dataset.digests and len(batch.rows):
            self.digests[batch.rows.numpy()] = batch.digests.numpy()
        self.unreadable.add(batch.failures)
        error: BenchError | None = None
        readable = len(batch.rows) >= self.objective.together
        try:
            self.unreadable.check()
            if not readable and processes.count() > 1:
                error = BenchError("none of the images of a process's share of a batch could be read")
        except BenchError as unreadable:
            error = unreadable
        processes.raise_together(error)
        return readable

    def _step(self, batch: Batch, update: int) -> float:
        """Sum the gradients of one batch, `at_once` images at a time, and take a step; return its loss."""
        seed_everything(self.seed, update, *self._process())
        device = self.accelerator.device
        moved = batch.map(lambda tensor: tensor.to(device, non_blocking=True))
        images, targets = self.objective.prepare(moved.images, moved.targets)
        (whole,) = processes.total(self.objective.weight(targets))
        if not whole:  # such as masks without a valid pixel
            return 0.0
        parts = list(pieces(len(images), self.at_once, self.fewest))
        if self.sharded:  # whose forward passes are in step
            largest, smallest = shares(self.batch_size, self.objective.together)
            count = max(1, min(-(-largest // self.at_once), smallest // self.fewest))
            parts = in_step(len(images), count, self.objective.together)
        sum_of_losses = 0.0
        with processes.talking():
            for place, piece in enumerate(parts, 1):
                seed_everything(self.seed, update, piece.start, *self._process())
                share = self.objective.weight(targets[piece]) / whole
                if not share and processes.count() == 1:
                    continue
                with self._synchronising(place == len(parts)):
                    loss = self._loss(images[piece], targets[piece])
                    if not share:  # without a weight, but others wait for the gradients
                        loss = loss.nan_to_num() * 0.0
                    self.accelerator.backward(loss * share * processes.count())
                sum_of_losses += float(loss.detach()) * share
        (total,) = processes.total(sum_of_losses)
        if not math.isfinite(total):
            raise self._diverged(total, batch, update)
        if self.schedule.clip_grad > 0.0:
            self.accelerator.clip_grad_norm_(self.network.parameters(), self.schedule.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.given, update)
        return total

    def _process(self) -> tuple[int, ...]:
        """Return what makes the randomness of this process its own; nothing in the main one."""
        return () if processes.is_main() else (processes.index(),)

    def _synchronising(self, last: bool) -> AbstractContextManager[Any]:
        """Average gradients over processes in the last piece of a batch only; shards do so in each."""
        return nullcontext() if last or self.sharded else self.accelerator.no_sync(self.network)

    def _loss(self, images: Tensor, targets: Any) -> Tensor:
        with self.accelerator.autocast():
            return self.objective.loss(self.network, images, targets)

    def _diverged(self, loss: float, batch: Batch, update: int) -> BenchError:
        """Describe a loss that is not finite, and keep the ids of its batch."""
        ids = [str(each) for ids in processes.gather(self.part.ids[batch.rows.numpy()]) for each in ids]
        group = self.optimizer.param_groups[-1]
        values = {"step": update, "loss": str(loss), "lr": group["lr"], "ids": ids}
        place = write_diverged(self.environment.logs, self.name, values) if processes.is_main() else ""
        kept = f"; its {counted(len(ids), 'image')} are listed in {place}" if place else f"; first: {ids[0]}"
        return Diverged(
            f"the training diverged: the loss is {loss} at step {update}{kept}. A lower learning rate, a "
            "longer warm-up or clip_grad may help"
        )


def _checkpoint_activations(network: Any, enable: bool = True) -> None:
    try:
        network.set_grad_checkpointing(enable)
    except (AttributeError, AssertionError) as error:  # timm asserts
        message = f"--grad-checkpointing: {type(network).__name__} does not support it"
        raise processes.InAll(message) from error


def shares(batch: int, together: int) -> tuple[int, int]:
    """Return the largest and the smallest share of a batch that a process has."""
    units = batch // together
    return -(-units // processes.count()) * together, units // processes.count() * together


def in_step(images: int, count: int, together: int = 1) -> list[slice]:
    """Split a share of a batch into `count` pieces of about the same size, as every process does."""
    units = images // together
    if units < count:
        raise BenchError(f"a share of {counted(images, 'image')} cannot be split into {count} pieces")
    bounds = [units * place // count * together for place in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


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


def has_batch_norm(network: nn.Module) -> bool:
    """Whether a network has batch norm that is trained."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def fewest_at_once(network: nn.Module, objective: Objective) -> int:
    """Return the smallest number of images per forward pass: batch norm and pairs of images need two."""
    return max(2 if has_batch_norm(network) else 1, objective.together)
