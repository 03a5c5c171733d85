"""Logs of a training: CSV always, and Accelerate's trackers (TensorBoard, Weights & Biases, …) by name."""

import csv
import itertools
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType
from torch import nn

from mixmim_bench.atomic import write_whole
from mixmim_bench.errors import BenchError, nearest

ROWS_PER_EPOCH = 50  # at most; a row averages the steps since the last one
COLUMNS = ("step", "epoch", "loss", "lr", "images_per_s")


def check_trackers(names: Iterable[str]) -> None:
    """Check that Accelerate knows trackers and that their packages are installed; raises BenchError."""
    known = [str(kind) for kind in LoggerType if kind != LoggerType.ALL]
    available = [str(kind) for kind in get_available_trackers()]
    for name in names:
        if name not in known:
            raise BenchError(f"no tracker {name!r}; {nearest(name, known)}")
        if name not in available:
            raise BenchError(f"the tracker {name!r} needs its package: pip install {name}")


class CSVTracker(GeneralTracker):
    """Writes one row per call to a file, which is cut to the rows before `first` when it is opened."""

    name = "csv"
    requires_logging_directory = False

    def __init__(self, path: Path, first: int) -> None:
        super().__init__(_blank=True)
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [",".join(COLUMNS), *_rows_before(path, first)]
        write_whole(path, "".join(f"{line}\n" for line in lines).encode())

    @property
    def tracker(self) -> Path:
        return self.path

    def store_init_configuration(self, values: dict) -> None:
        write_whole(self.path.with_suffix(".json"), json.dumps(values, indent=1).encode())

    def finish(self) -> None:
        """Nothing is open."""

    def log(self, values: dict, step: int | None = None, **_: Any) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow([step, *(values[name] for name in COLUMNS[1:])])


def _rows_before(path: Path, first: int) -> list[str]:
    """Return the rows of a file of steps before `first`, up to one that was not written whole."""
    if not path.exists():
        return []
    rows = path.read_text(errors="replace").splitlines()[1:]
    whole = itertools.takewhile(lambda row: row[:1].isdigit() and row.count(",") == len(COLUMNS) - 1, rows)
    return [row for row in whole if int(row.partition(",")[0]) < first]


class TrainingLog:
    """Logs mean losses and learning rates of a training in the main process.

    Args:
        accelerator: has the trackers.
        steps_per_epoch: steps.
        batch_size: images of a step.
    """

    def __init__(self, accelerator: Accelerator, steps_per_epoch: int, batch_size: int) -> None:
        self.accelerator = accelerator
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        self.every = -(-steps_per_epoch // ROWS_PER_EPOCH)
        self._losses: list[float] = []
        self._since = time.perf_counter()

    def add(self, update: int, loss: float, lr: float) -> None:
        """Add the loss of a step; `update` counts from 0."""
        self._losses.append(loss)
        within = update % self.steps_per_epoch + 1
        if within % self.every and within != self.steps_per_epoch:
            return
        now = time.perf_counter()
        values = {
            "epoch": round((update + 1) / self.steps_per_epoch, 4),
            "loss": round(sum(self._losses) / len(self._losses), 6),
            "lr": float(f"{lr:.6g}"),
            "images_per_s": round(len(self._losses) * self.batch_size / (now - self._since), 2),
        }
        self._losses, self._since = [], now
        self.accelerator.log(values, step=update)


def open_trackers(
    folder: Path | None, name: str, trackers: Sequence[str], first: int
) -> tuple[list[Any], dict[str, dict[str, Any]]]:
    """Return the trackers of a training for Accelerator, and the keywords of their initialisation.

    first: the step that the training starts at; what was logged from there on is replaced.
    """
    if folder is None:
        return [], {}
    file = _file_of(name)
    kwargs: dict[str, dict[str, Any]] = {
        "tensorboard": {"purge_step": first},
        "wandb": {"name": f"{folder.name} {name}"},
    }
    return [CSVTracker(folder / f"{file}.csv", first), *trackers], {
        key: value for key, value in kwargs.items() if key in trackers
    }


def _file_of(name: str) -> str:
    return re.sub(r"\W+", "-", name)


def describe_rates(network: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Describe the learning rate of each group of layers, highest first, after the warm-up."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    rates: dict[float, dict[str, None]] = {}
    for group in optimizer.param_groups:
        rate = group.get("initial_lr", group["lr"]) * group.get("lr_scale", 1.0)
        of_rate = rates.setdefault(rate, {})
        for parameter in group["params"]:
            of_rate[_layer(names.get(id(parameter), "?"))] = None
    return [f"{rate:.2e}: {_listed(list(of_rate))}" for rate, of_rate in sorted(rates.items(), reverse=True)]


def _layer(name: str) -> str:
    """Return the layer of a parameter: up to the last number in its name, else the first part."""
    numbered = re.match(r"(.*\.\d+(?:\.downsample)?)\.", name)
    return numbered[1] if numbered else name.partition(".")[0]


def _listed(layers: list[str]) -> str:
    return ", ".join(layers if len(layers) <= 6 else [*layers[:3], f"… {len(layers)} in all"])


def write_diverged(folder: Path | None, name: str, values: Mapping[str, Any]) -> str:
    """Write what is known of a step whose loss is not finite; returns where, '' without a folder."""
    if folder is None:
        return ""
    path = folder / f"{_file_of(name)}.diverged.json"
    write_whole(path, json.dumps(values, indent=1).encode())
    return str(path)
