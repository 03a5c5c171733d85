"""Checkpoints of a training: written whole, the last good one kept, so that the same command continues."""

import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from mixmim_bench.atomic import writing_whole
from mixmim_bench.cache import cache_folder

SCHEMA = 1
EVERY_S = 600.0  # within an epoch
FEWEST_S = 30.0  # between two checkpoints
SHARE = 0.02  # of the time of a training that writing may take


def folder_of(key: str) -> Path:
    """Return the folder of the checkpoints of a run, by a key of everything its trainings depend on."""
    return cache_folder() / "training" / key


def remove(folder: Path) -> None:
    """Remove the checkpoints of a run whose result is saved."""
    shutil.rmtree(folder, ignore_errors=True)


def unfinished_trainings() -> list["UnfinishedTraining"]:
    """Return the checkpoints of runs that are not finished, or were finished elsewhere."""
    return [UnfinishedTraining(path) for path in sorted(folder_of("").glob("*")) if path.is_dir()]


def write_weights(path: Path, weights: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    """Write weights as the release does, below `model`, beside JSON values about them."""
    state = {key: value.detach().cpu() for key, value in weights.items()}
    with writing_whole(path) as file:
        torch.save({"model": state, **about}, file)


@dataclass(frozen=True)
class UnfinishedTraining:
    """The checkpoints of a run."""

    path: Path

    @property
    def key(self) -> str:
        """The key of the run."""
        return self.path.name

    def bytes(self) -> int:
        """Return the size on disk."""
        return sum(file.stat().st_size for file in self.path.iterdir())

    def last_used(self) -> datetime:
        """Return when a checkpoint was written last."""
        return datetime.fromtimestamp(self.path.stat().st_mtime, UTC)

    def remove(self) -> bool:
        """Remove the checkpoints."""
        remove(self.path)
        return True


@dataclass
class Checkpoint:
    """The file of a training, and when to write it.

    Args:
        path: the file; None never writes.
        about: JSON values that the training depends on; a file with others is not read.
        writes: whether this process writes; of several, one does.
    """

    path: Path | None
    about: Any
    writes: bool = True
    written: float = field(default_factory=time.monotonic)
    took: float = 0.0

    def load(self) -> dict[str, Any] | None:
        """Read the state; None if there is none, or it is damaged or that of another training."""
        if self.path is None:
            return None
        try:
            values = torch.load(self.path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except Exception:  # a damaged file fails in many ways
            warnings.warn(f"the checkpoint {self.path} is damaged; the training starts again", stacklevel=2)
            return None
        if (
            not isinstance(values, dict)
            or values.get("schema") != SCHEMA
            or values.get("about") != self.about
        ):
            return None
        return values["state"]

    def warn_of_others(self) -> None:
        """Warn of a checkpoint of the same training with other settings, which is not used."""
        for path in [] if self.path is None else sorted(self.path.parent.glob("*.pt")):
            try:
                about = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["about"]
                if about["name"] != self.about["name"]:
                    continue
            except Exception:  # damaged, or of another version
                continue
            differing = sorted(key for key in self.about if about.get(key) != self.about[key])
            if differing:
                warnings.warn(
                    f"the checkpoint {path} has other {', '.join(differing)}: training starts from the "
                    "beginning",
                    stacklevel=2,
                )

    def is_due(self, ends_epoch: bool) -> bool:
        """Return whether to write now: at the end of an epoch, and every ten minutes within one."""
        since = time.monotonic() - self.written
        return (
            self.writes
            and self.path is not None
            and since >= max(FEWEST_S if ends_epoch else EVERY_S, self.took / SHARE)
        )

    def save(self, state: dict[str, Any]) -> None:
        """Write the state; a full disk is a warning, since the training can go on."""
        if self.path is None or not self.writes:
            return
        clock = time.monotonic()
        try:
            with writing_whole(self.path) as file:
                torch.save({"schema": SCHEMA, "about": self.about, "state": state}, file)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
            warnings.warn(f"no checkpoint could be written to {self.path}: {error}", stacklevel=2)
        self.written = time.monotonic()
        self.took = self.written - clock


class Terminated(SystemExit):
    """SIGTERM was received, and the state was saved; the exit status is 143, as a shell reports it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextmanager
def noting_sigterm() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGTERM was received, which ends nothing meanwhile."""
    received = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield received.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield received.is_set
    finally:
        with suppress(TypeError):  # the handler was not set from Python
            signal.signal(signal.SIGTERM, before)
