"""A training of one or several processes, started by test_processes.py: job.py OUT [key=value ...]."""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from test_training import PREPROCESSING, TINY

from mixmim_bench import processes
from mixmim_bench.data.dataset import open_task
from mixmim_bench.data.transforms import ImageOnly, eval_transform
from mixmim_bench.machine import open_machine
from mixmim_bench.models.build import create
from mixmim_bench.progress import Silent
from mixmim_bench.suite.selection import load_tasks
from mixmim_bench.training import checkpoints, contract, loop, trainer
from mixmim_bench.training.objectives import Classifying


def stop_at(update, how):
    """Let a process stop at an update."""
    real = trainer.Trainer._step

    def step(self, batch, at):
        if at == update:
            how()
        return real(self, batch, at)

    trainer.Trainer._step = step


def main(out, sharded=False, batch=30, at_once=None, stop=None, die=None, n=150, ema=True):
    machine = open_machine("cpu", "float32", 1, at_once, 0, sharded=sharded)
    if stop is not None:  # with a checkpoint
        stop_at(stop, lambda: signal.raise_signal(signal.SIGTERM))
    if die is not None and processes.index() == 1:
        stop_at(die, lambda: os._exit(7))
    for name, value in (("FEWEST_S", 0.0), ("EVERY_S", 0.0), ("SHARE", 1e9)):
        setattr(checkpoints, name, value)
    task = load_tasks()["digits"]
    part = open_task(task).splits["train"].part.take(np.arange(n))
    torch.manual_seed(0)
    network = create(TINY, (32, 32), 10)
    transform = ImageOnly(eval_transform(dataclasses.replace(PREPROCESSING, size=(32, 32))))
    schedule = contract.Schedule(
        epochs=2,
        batch_size=batch,
        lr=1e-3,
        weight_decay=0.05,
        layer_decay=0.8,
        clip_grad=1.0,
        warmup_epochs=0.5,
        ema_decay=0.9 if ema and not sharded else 0.0,
    )
    environment = contract.Environment(
        machine=machine,
        seed=0,
        stages=Silent(),
        checkpoints=out / "checkpoints",
        logs=out / "logs",
        trackers=("tensorboard",),
    )
    objective = Classifying(10, smoothing=0.1)
    done = loop.train(network, part, transform, objective, schedule, environment, "training", 0.1)
    torch.save(
        {"weights": network.state_dict(), "losses": done.losses, "digests": torch.from_numpy(done.digests)},
        out / f"process{processes.index()}.pt",
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    main(folder, **{key: json.loads(value) for key, value in (text.split("=") for text in sys.argv[2:])})
