"""The training loop, on Accelerate, with timm's optimizers and schedules and the protocol's objective.

In a job of several processes every one calls `train` with the same arguments and reads its share of each
batch; gradients, losses and decisions are those of the whole batch, and the main process alone writes.
"""

import copy
import dataclasses
import math
from typing import Any

import torch
from torch import nn

from mixmim_bench import processes
from mixmim_bench.data.images import Part
from mixmim_bench.data.transforms import JointTransform
from mixmim_bench.errors import BenchError, counted
from mixmim_bench.machine import Machine
from mixmim_bench.memory import halved, is_out_of_memory
from mixmim_bench.specs import digest
from mixmim_bench.training.checkpoints import Checkpoint
from mixmim_bench.training.contract import Environment, MakeOptimizer, Objective, Schedule, Trained
from mixmim_bench.training.trainer import Trainer, fewest_at_once, has_batch_norm, shares

CPU_GMACS = 400.0  # of one forward and backward pass on a CPU, which is no faster with more images at a time
FEWEST_FOR_BATCH_NORM = 32  # whose statistics are poor with fewer


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
    whole: bool = False,
) -> Trained:
    """Train a network in place.

    Images pass `images_at_once` at a time, and gradients are summed to the batch of the schedule. On running
    out of memory, training starts again with half as many, from its last checkpoint if there is one: the
    batch size and its mixing stay the same. Batch norm then sees fewer images, which is noted, and needs at
    least two.

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
        whole: the network itself computes in pieces what needs memory, so that all images pass at once.

    Raises:
        BenchError: memory runs out with the smallest number of images, or the loss diverges.
    """
    fewest = fewest_at_once(network, objective)
    fresh = copy.deepcopy(network.state_dict())
    if whole:  # heads, too small to be sharded
        machine = dataclasses.replace(environment.machine, sharded=False)
        environment = dataclasses.replace(environment, machine=machine)
    share, smallest = shares(min(schedule.batch_size, len(part)), objective.together)
    if smallest < fewest:
        raise processes.InAll(
            f"{name}: batches of {counted(min(schedule.batch_size, len(part)), 'image')} cannot be shared "
            f"among {counted(processes.count(), 'process', 'processes')}, each of which needs {fewest} or "
            "more; use fewer processes or a larger batch"
        )
    checkpoint = _checkpoint(network, environment, schedule, part, name)
    state = _agreed(checkpoint)
    asked = share if whole else images_at_once(environment.machine, network, share, work, fewest)
    asked = at_once = asked // objective.together * objective.together
    if state:  # of the same pieces, unless the user gives another number
        at_once = min(state["at_once"], asked if environment.machine.given_batch_size else share)
    while True:
        try:
            trainer = Trainer(
                network, part, transform, objective, schedule, environment, at_once, make_optimizer, name
            )
            losses = trainer.run(name, work, checkpoint, state)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if processes.count() > 1:
                raise BenchError(
                    f"{name}: out of memory with {counted(at_once, 'image')} at a time on each device; "
                    f"--batch-size {max(1, at_once // 2)} accumulates gradients over smaller pieces, to the "
                    "same batch; --grad-checkpointing needs less memory"
                ) from error
            if at_once <= fewest:
                images = "one image" if fewest == 1 else f"the fewest images that are possible, {fewest},"
                raise BenchError(
                    f"{name}: out of memory with {images} at a time; free memory, use --grad-checkpointing, "
                    "or use a smaller model or image size"
                ) from error
            half = math.ceil(at_once / 2 / objective.together) * objective.together
            at_once, state = max(fewest, half), checkpoint.load()
            network.load_state_dict(fresh)
            network.zero_grad(set_to_none=True)
        else:
            trainer.finish()
            notes = _notes(name, network, min(schedule.batch_size, len(part)), asked, at_once)
            return Trained(losses, trainer.unreadable.found, trainer.digests, notes)


def images_at_once(machine: Machine, network: nn.Module, share: int, work: float, fewest: int) -> int:
    """Return how many images of a process's share of a batch pass at a time.

    That of the machine if it was given; else all on a GPU, and on a CPU as many as it computes efficiently,
    which keeps the memory small.
    """
    if machine.given_batch_size:
        return max(fewest, min(share, machine.given_batch_size))
    if machine.asynchronous or not work:
        return share
    least = FEWEST_FOR_BATCH_NORM if has_batch_norm(network) else fewest
    return min(share, max(least, int(CPU_GMACS / work)))


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
        "processes": processes.count(),
        "sharded": environment.machine.sharded,
    }
    about["schedule"] = {
        key: list(value) if isinstance(value, tuple) else value for key, value in about["schedule"].items()
    }
    folder = processes.broadcast(environment.checkpoints)  # other machines may have other times of files
    path = None if folder is None else folder / f"{digest(about)}.pt"
    return Checkpoint(path, about, writes=processes.is_main())


def _agreed(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Read the state; all processes must see the same. Raises BenchError."""
    state = checkpoint.load()
    seen = processes.gather(None if state is None else [len(state["losses"]), state["step"]])
    if any(each != seen[0] for each in seen):
        raise processes.InAll(
            f"not every process sees the checkpoint {checkpoint.path}: the folder of checkpoints "
            "($MIXMIM_BENCH_CACHE, or `pretrain --out`) must be one that all machines share"
        )
    if state is None and processes.is_main():
        checkpoint.warn_of_others()
    return state


def _notes(name: str, network: nn.Module, batch: int, asked: int, at_once: int) -> tuple[str, ...]:
    """Describe a reduced number of images at a time, and what it changes."""
    notes = [halved(name, asked, at_once)] if at_once < asked else []
    if has_batch_norm(network) and at_once < batch:
        notes.append(f"{name}: batch-norm statistics are those of {at_once} images instead of {batch}")
    return tuple(notes)
