"""The workbench: one backbone and the splits of one task, as a protocol is handed them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

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
    """The images that play one role."""

    role: str
    part: Part


@dataclass
class Shelf:
    """The last backbone and the last features, for the runs that follow on the same ones."""

    backbone_key: str = ""
    backbone: nn.Module | None = None
    features_key: str = ""
    features: dict[str, Features] = field(default_factory=dict)


@dataclass
class Workbench:
    """What a protocol may use: the backbone of a run, features of its splits, and the machine."""

    run: Run
    machine: Machine
    stages: Stages
    gmacs: float
    shelf: Shelf
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return self.run.task.num_classes

    def backbone(self, **kwargs: Any) -> nn.Module:
        """Build the backbone of the run anew, with its weights, for training."""
        run = self.run
        return build(run.model, run.weights, tuple(run.preprocessing["size"]), run.seed, **kwargs)

    def transform(self) -> Transform:
        """Make the evaluation transform of the model."""
        return eval_transform(self.run.preprocessing)

    def features(self, split: Split) -> Features:
        """Return the frozen, pooled features of a split."""
        identity = self.run.identity()
        made_by = {k: v for k, v in identity.items() if k not in ("protocol", "data", "task")}
        if self.shelf.backbone_key != digest(made_by):
            self.shelf.backbone = self.backbone()
            self.shelf.backbone_key = digest(made_by)
        key = digest({**made_by, "data": identity["data"]})
        if self.shelf.features_key != key:
            self.shelf.features_key, self.shelf.features = key, {}
        if split.role not in self.shelf.features:
            assert self.shelf.backbone is not None
            with self.stages.stage(f"features of {split.role}", len(split.part), self.gmacs) as step:
                self.shelf.features[split.role] = extract(
                    self.shelf.backbone,
                    split.part,
                    self.transform(),
                    self.machine,
                    self.run.task.skip_unreadable,
                    step,
                )
        features = self.shelf.features[split.role]
        self.skipped[split.role] = features.unreadable
        if 0 < features.batch_size < min(self.machine.batch_size, len(split.part)):
            self.note_batch("features", self.machine.batch_size, features.batch_size)
        return features

    def note_batch(self, what: str, asked: int, used: int) -> None:
        """Put on record that memory ran out and the batch was halved."""
        note = f"{what}: memory ran out at batch {asked}, done with {used}"
        if note not in self.notes:
            self.notes.append(note)
