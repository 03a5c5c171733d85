"""What a training is made of: its schedule, its objective, its environment and its result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mixmim_bench.machine import Machine
from mixmim_bench.progress import Stages


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
    """The environment of a training: everything but its recipe.

    Attributes:
        machine: device, precision, workers, and how the network is computed.
        seed: of all randomness.
        stages: shows progress.
        skip_unreadable: skip images that cannot be read, instead of an error.
        checkpoints: a folder for the checkpoints of the run; None: none are written.
        logs: a folder for losses and learning rates; None: none are written.
        trackers: of Accelerate, by name, which log as well, such as 'tensorboard'.
        quiet: do not print the learning rates.
        keep: receives the number of epochs and the weights, every `keep_every` epochs (0: never).
    """

    machine: Machine
    seed: int
    stages: Stages
    skip_unreadable: bool = False
    checkpoints: Path | None = None
    logs: Path | None = None
    trackers: Sequence[str] = ()
    quiet: bool = False
    keep: "Callable[[int, dict[str, Tensor]], None] | None" = None
    keep_every: int = 0


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """An optimizer and its learning rate: linear warm-up, then a decay to `min_lr`.

    `batch_size` is that of all devices and gradient accumulation together. With `steps`, the training ends
    after so many instead of after `epochs`. `decay` is 'cosine', 'poly' (of power 1: a straight line), or
    'steps': a factor of 0.1 at each of the `milestones`, which are shares of the training.
    """

    epochs: int = 0
    steps: int = 0
    batch_size: int
    lr: float
    min_lr: float = 0.0
    decay: str = "cosine"
    milestones: tuple[float, ...] = ()
    warmup_epochs: float = 0.0
    warmup_steps: int = 0  # instead of warmup_epochs
    warmup_lr: float = 0.0  # where the warm-up starts
    optimizer: str = "adamw"
    betas: tuple[float, ...] = ()  # (): timm's defaults
    weight_decay: float = 0.0
    layer_decay: float = 1.0  # 1: the same rate in every layer
    head_lr_scale: float = 1.0  # of the classifier's learning rate
    clip_grad: float = 0.0  # 0: not clipped
    ema_decay: float = 0.0  # of the averaged weights, which are the result; 0: the last weights are


MakeOptimizer = Callable[[nn.Module, Schedule], torch.optim.Optimizer]


class Objective(Protocol):
    """The loss of a training.

    together: images that must be in the same forward pass: 2 if each is mixed with another, else 1.
    """

    together: int

    def prepare(self, images: Tensor, targets: Any) -> tuple[Tensor, Any]:
        """Prepare a batch (B, 3, H, W) with its targets, mixing images if the recipe does."""

    def weight(self, targets: Any) -> float:
        """Return the weight of targets of a prepared batch: the number of images, valid pixels or boxes."""

    def loss(self, network: nn.Module, images: Tensor, targets: Any) -> Tensor:
        """Return the loss of some images of a prepared batch, averaged over their weight."""


def scaled(base_lr: float, batch_size: int) -> float:
    """Scale a learning rate by the linear rule: base_lr * batch_size / 256."""
    return base_lr * batch_size / 256
