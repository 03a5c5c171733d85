"""The workbench: one backbone and the splits of one task, as a protocol is handed them."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from torch import nn

from mixmim_bench.data.dataset import stamp
from mixmim_bench.data.images import Part
from mixmim_bench.data.transforms import Transform, eval_transform
from mixmim_bench.features import Features, extract
from mixmim_bench.machine import Machine
from mixmim_bench.models.build import build
from mixmim_bench.specs import Run, digest

Advance = Callable[[int], None]


class Stages(Protocol):
    """Where progress is shown."""

    def stage(self, name: str, total: int, work: float) -> AbstractContextManager[Advance]:
        """Show a stage over `total` images, each of which costs `work` GMACs."""


@dataclass(frozen=True)
class Split:
    """The images that play one role, or some of them."""

    role: str
    part: Part

    @cached_property
    def stamp(self) -> str:
        """Identify the images, and see when a file was changed."""
        return stamp(self.part)


@dataclass
class Shelf:
    """The last backbone and the last task's features, for the runs that follow on the same ones."""

    backbone_key: str = ""
    backbone: nn.Module | None = None
    task_key: str = ""
    features: dict[str, Features] = field(default_factory=dict)


@dataclass
class Workbench:
    """What a protocol may use: the backbone of a run, features of its splits, and the machine.

    What it learns on the way goes into the record: `extract_s`, `skipped` (role -> images), `notes`.
    """

    run: Run
    machine: Machine
    stages: Stages
    gmacs: float
    shelf: Shelf
    extract_s: float = 0.0
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """The number of classes of the task."""
        return self.run.task.num_classes

    @property
    def seed(self) -> int:
        """The seed of what a protocol draws."""
        return self.run.seed or 0

    def backbone(self, **kwargs: Any) -> nn.Module:
        """Build the backbone of the run anew, with its weights, for training."""
        return build(self.run.model, self.run.weights, self.run.size, self.seed, **kwargs)

    def transform(self) -> Transform:
        """Make the evaluation transform of the model."""
        return eval_transform(self.run.preprocessing)

    def features(self, split: Split) -> Features:
        """Return the frozen, pooled features of a split."""
        backbone_key = digest(self._made_by())
        if self.shelf.backbone_key != backbone_key:
            self.shelf.backbone_key, self.shelf.backbone = backbone_key, self.backbone()
        task_key = f"{backbone_key} {self.run.task.name}"
        if self.shelf.task_key != task_key:
            self.shelf.task_key, self.shelf.features = task_key, {}
        if split.stamp not in self.shelf.features:
            self.shelf.features[split.stamp] = self._extract(split)
        features = self.shelf.features[split.stamp]
        self.skipped[split.role] = features.unreadable
        if 0 < features.batch_size < min(self.machine.batch_size, len(split.part)):
            self.note_batch("features", self.machine.batch_size, features.batch_size)
        return features

    def _made_by(self) -> dict[str, Any]:
        """Say what the features of an image depend on."""
        identity = self.run.identity()
        made_by = {key: identity[key] for key in ("arch", "kwargs", "weights", "preprocessing", "precision")}
        return {**made_by, "seed": self.seed if self.run.weights["kind"] == "random" else None}

    def _extract(self, split: Split) -> Features:
        assert self.shelf.backbone is not None
        clock = time.perf_counter()
        with self.stages.stage(f"features of {split.role}", len(split.part), self.gmacs) as advance:
            features = extract(
                self.shelf.backbone,
                split.part,
                self.transform(),
                self.machine,
                self.run.task.skip_unreadable,
                advance,
            )
        self.extract_s += time.perf_counter() - clock
        return features

    def note_batch(self, what: str, asked: int, used: int) -> None:
        """Put on record that memory ran out and the batch was halved."""
        note = f"{what}: memory ran out at batch {asked}, done with {used}"
        if note not in self.notes:
            self.notes.append(note)
