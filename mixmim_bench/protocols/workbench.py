"""The workbench: one backbone and the splits of one task, as a protocol is handed them."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import timm
from torch import nn

from mixmim_bench.data.images import Part
from mixmim_bench.data.index import stamp
from mixmim_bench.data.seen import WIDTH, hash_images
from mixmim_bench.data.transforms import Transform, eval_transform
from mixmim_bench.features import EXTRACTOR_VERSION, OWN
from mixmim_bench.features.extract import Features, extract_to_store, features_of
from mixmim_bench.features.layers import choose_layers
from mixmim_bench.features.store import Entry, FeatureStore
from mixmim_bench.machine import Machine
from mixmim_bench.models.build import build
from mixmim_bench.scoring import metrics
from mixmim_bench.scoring.predictions import of_all_classes
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
    listed_stamp: str = ""  # where it is known already

    @cached_property
    def stamp(self) -> str:
        """Identify the images, and see when a file was changed."""
        return self.listed_stamp or stamp(self.part)


@dataclass
class Shelf:
    """The last backbone, for the runs that follow on the same one."""

    key: str = ""
    backbone: nn.Module | None = None
    notes: tuple[str, ...] = ()  # on its weights


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
    _digests: dict[str, np.ndarray] = field(default_factory=dict)  # of the bytes that were read, by role

    @property
    def num_classes(self) -> int:
        """The number of classes of the task."""
        return self.run.task.num_classes

    @property
    def seed(self) -> int:
        """The seed of what a protocol draws."""
        return self.run.seed or 0

    @property
    def metric(self) -> str:
        """The metric of the task that is ranked, and that choices on val are made by."""
        return self.run.task.metrics[0]

    def score(self, y: np.ndarray, scores: np.ndarray) -> float:
        """Score predictions on val by that metric; y (n,), scores (n, K)."""
        return metrics.value(self.metric, y, scores)

    def score_path(self, path: Any, features: Features) -> list[float]:
        """Score a fitted `LinearPath` on features of val, for each of its penalties."""
        return [
            self.score(features.y, of_all_classes(decided, path.classes_, self.num_classes))
            for decided in path.decision_path(features.x)
        ]

    def backbone(self, **kwargs: Any) -> nn.Module:
        """Build the backbone of the run anew, with its weights, for training."""
        return build(self.run.model, self.run.weights, self.run.size, self.seed, **kwargs)

    def transform(self) -> Transform:
        """Make the evaluation transform of the model."""
        return eval_transform(self.run.preprocessing)

    def layers(self, layer: str) -> list[str]:
        """List the layers that a choice stands for: one, or with 'auto' all that are worth a try."""
        return choose_layers(self._frozen(), layer)

    def features(self, split: Split, layer: str = OWN) -> Features:
        """Return the frozen, pooled features of a split."""
        return self.features_of_layers(split, [layer])[layer]

    def features_of_layers(self, split: Split, layers: Sequence[str]) -> dict[str, Features]:
        """Return the features of several layers, which are extracted in one pass and kept in the store."""
        entries = {layer: self.entry(split, layer) for layer in layers}
        lacking = {layer: entry for layer, entry in entries.items() if not entry.is_intact()}
        damaged = [layer for layer, entry in lacking.items() if entry.manifest() is not None]
        if damaged:
            self.notes.append(
                f"stored features of {split.role} were damaged and made again: {', '.join(damaged)}"
            )
        used = self._extract(split, lacking) if lacking else 0
        if 0 < used < min(self.machine.batch_size, len(split.part)):
            self.note_batch("features", self.machine.batch_size, used)
        found = {layer: features_of(entry, split.part, used) for layer, entry in entries.items()}
        first = next(iter(found.values()))
        self.skipped[split.role] = first.unreadable
        self.note_digests(split, first.rows, first.digests)
        return found

    def _frozen(self) -> nn.Module:
        """Return the backbone that features are taken from; it is built once for all runs on it."""
        key = digest(self._made_by())
        if self.shelf.key != key:
            notes: list[str] = []
            self.shelf.key, self.shelf.backbone = key, self.backbone(notes=notes)
            self.shelf.notes = tuple(notes)
        self.notes += [note for note in self.shelf.notes if note not in self.notes]
        assert self.shelf.backbone is not None
        return self.shelf.backbone

    def _made_by(self) -> dict[str, Any]:
        """Say what the features of an image depend on, apart from the image and the layer."""
        identity = self.run.identity()
        keys = ("arch", "arch_version", "kwargs", "weights", "preprocessing", "precision")
        made_by = {key: identity[key] for key in keys if key in identity}
        return {
            **made_by,
            "seed": self.seed if self.run.weights["kind"] == "random" else None,
            "code": _own_code(self.run.model.arch),
            "extractor": EXTRACTOR_VERSION,
        }

    def entry(self, split: Split, layer: str = OWN) -> Entry:
        """Name the entry of the feature store for a layer of a split; it may not be there yet."""
        run = self.run
        about = {
            "model": run.model.name,
            "weights": run.weights["name"],
            "task": run.task.name,
            "task_file": str(Path(run.task.path).resolve()),
            "root": run.data["root"],
            "role": split.role,
        }
        made_by = {
            **self._made_by(),
            "layer": layer,
            "images": split.stamp,
            "skip_unreadable": run.task.skip_unreadable,  # else what was left out once would be for ever
        }
        return FeatureStore().entry(made_by, about)

    def _extract(self, split: Split, entries: dict[str, Entry]) -> int:
        clock = time.perf_counter()
        with self.stages.stage(f"features of {split.role}", len(split.part), self.gmacs) as advance:
            used = extract_to_store(
                self._frozen(),
                split.part,
                self.transform(),
                self.machine,
                entries,
                self.run.task.skip_unreadable,
                advance,
            )
        self.extract_s += time.perf_counter() - clock
        return used

    def note_digests(self, split: Split, rows: np.ndarray, digests: np.ndarray) -> None:
        """Remember the digests (m, 16) of images whose bytes were read."""
        known = self._digests.setdefault(split.role, np.zeros((len(split.part), WIDTH), dtype=np.uint8))
        known[rows] = digests

    def digests(self, split: Split) -> np.ndarray:
        """Return the digests of the bytes of all images of a split, (n, 16).

        Only images that the run has not read are read now; zeros for one whose bytes cannot be read.
        """
        self.note_digests(split, np.empty(0, np.int64), np.empty((0, WIDTH), np.uint8))
        known = self._digests[split.role]
        unread = np.flatnonzero(~known.any(1))
        if len(unread):
            with self.stages.stage(f"hashing the images of {split.role}", len(unread), 0.0) as advance:
                known[unread] = hash_images(split.part, unread, advance)
        return known

    def note_batch(self, what: str, asked: int, used: int) -> None:
        """Put on record that memory ran out and the batch was halved."""
        note = f"{what}: memory ran out at batch {asked}, done with {used}"
        if note not in self.notes:
            self.notes.append(note)


def _own_code(arch: str) -> str:
    """Hash the module of an architecture that is neither timm's nor ours: its author may change it."""
    module = timm.models.model_entrypoint(arch).__module__
    if module.startswith(("timm.", "mixmim_bench.")):
        return ""
    path = getattr(sys.modules.get(module), "__file__", None)
    return sha256(Path(path).read_bytes()).hexdigest()[:16] if path else ""
