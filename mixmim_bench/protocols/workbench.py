"""The workbench of a run: what a protocol may use."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from mixmim_bench import facts, processes
from mixmim_bench.data.dataset import Split
from mixmim_bench.data.hashing import WIDTH, hash_images
from mixmim_bench.data.transforms import Transform, eval_transform
from mixmim_bench.errors import BenchError
from mixmim_bench.features import LOGITS, OWN
from mixmim_bench.features.engines import Reader, open_reader
from mixmim_bench.features.extract import Features, extract_to_store, features_of, help_to_store
from mixmim_bench.features.keys import entry_of, made_by_backbone
from mixmim_bench.features.networks import source_of
from mixmim_bench.features.store import Entry
from mixmim_bench.machine import Machine
from mixmim_bench.memory import halved
from mixmim_bench.models.build import build
from mixmim_bench.progress import Stages
from mixmim_bench.protocols import build_protocol
from mixmim_bench.specs import AUTO, TORCH, Run, digest
from mixmim_bench.training.checkpoints import folder_of, remove, write_weights
from mixmim_bench.training.contract import Environment, Trained


@dataclass
class Shelf:
    """The last frozen backbone, reused by the next runs."""

    key: str = ""
    reader: Reader | None = None


def layers_to_read(run: Run) -> list[str]:
    """Return the layers to convert a network for: 'own', which most runs read, or all that may be read.

    Fewer layers are up to 15 % faster in bfloat16 (measured with OpenVINO on MixMIM-B).
    """
    names = build_protocol(run.protocol, run.task.kind).frozen_layers()
    if names in ((OWN,), (LOGITS,)):
        return list(names)
    try:
        return facts.resolve_layers(run.model, run.size, [AUTO, *names])
    except BenchError:  # some layers of the network cannot be read; those of the run may be
        return facts.resolve_layers(run.model, run.size, names)


@dataclass
class Workbench:
    """The backbone of a run, features of its splits, and the machine.

    `extract_s`, `skipped` (role -> images) and `notes` go into the record.
    """

    run: Run
    machine: Machine
    stages: Stages
    gmacs: float
    shelf: Shelf
    classes: Sequence[str] = ()  # names of the task's classes
    logs: Path | None = None  # of trainings
    trackers: Sequence[str] = ()
    extract_s: float = 0.0
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    weights_to: Path | None = None  # where to save the weights of a fine-tuned network
    _checkpoints: set[Path] = field(default_factory=set)
    _digests: dict[str, np.ndarray] = field(default_factory=dict)  # of the bytes that were read, by role

    @property
    def num_classes(self) -> int:
        """The number of classes of the task."""
        return self.run.task.num_classes

    @property
    def seed(self) -> int:
        """The seed of the protocol."""
        return self.run.seed or 0

    @property
    def metric(self) -> str:
        """The ranked metric of the task, by which hyper-parameters are selected on val."""
        return self.run.task.metrics[0]

    @property
    def metrics(self) -> Sequence[str]:
        """All metrics of the task, the ranked one first."""
        return self.run.task.metrics

    def aside(self) -> "Workbench":
        """Return a workbench whose record does not count the images that are read with it."""
        return replace(self, skipped={}, _digests={})

    def backbone(self, **kwargs: Any) -> nn.Module:
        """Build a new copy of the backbone with its weights, for training."""
        return build(self.run.model, self.run.weights, self.run.size, self.seed, **kwargs)

    def environment(self, *splits: Split, quiet: bool = False) -> Environment:
        """Return the environment of a training on images of splits; it continues from its last checkpoint.

        quiet: do not print the learning rates.
        """
        stamps = [split.stamp for split in splits]
        identity = {**self.run.identity(), "engine": self.run.engine, "images": stamps}
        folder = folder_of(digest(identity))
        self._checkpoints.add(folder)
        return Environment(
            machine=self.machine,
            seed=self.seed,
            stages=self.stages,
            skip_unreadable=self.run.task.skip_unreadable,
            checkpoints=folder,
            logs=self.logs,
            trackers=self.trackers,
            quiet=quiet,
        )

    def finish(self) -> None:
        """Remove the checkpoints of the run, whose result is saved."""
        for folder in self._checkpoints:
            remove(folder)

    def keep_weights(self, network: nn.Module) -> None:
        """Save the weights of a fine-tuned network if the user asked for them."""
        if self.weights_to is not None and processes.is_main():
            write_weights(self.weights_to, network.state_dict(), {"run": self.run.identity()})

    def transform(self) -> Transform:
        """Return the evaluation transform of the model."""
        return eval_transform(self.run.preprocessing)

    def layers(self, layer: str) -> list[str]:
        """Return the layers of a choice: one, or all candidates for 'auto'."""
        return facts.resolve_layers(self.run.model, self.run.size, [layer])

    def features(self, split: Split, layer: str = OWN) -> Features:
        """Return the frozen, pooled features of a split."""
        return self.features_of_layers(split, [layer])[layer]

    def features_of_layers(self, split: Split, layers: Sequence[str]) -> dict[str, Features]:
        """Return the features of several layers, extracted in one pass and cached."""
        self.note(*facts.check_weights(self.run.model, self.run.weights, self.run.size))
        entries = {layer: entry_of(self.run, split, layer) for layer in layers}
        missing = {layer: entry for layer, entry in entries.items() if not entry.is_intact()}
        damaged = [layer for layer, entry in missing.items() if entry.manifest() is not None]
        if damaged:
            self.note(
                f"stored features of {split.role} were damaged and extracted again: {', '.join(damaged)}"
            )
        used = self._extract(split, missing) if missing else 0
        if 0 < used < min(self.machine.batch_size, len(split.part)):
            self.note(halved("features", self.machine.batch_size, used))
        features = {layer: features_of(entry, split.part, used) for layer, entry in entries.items()}
        first = next(iter(features.values()))
        self.skipped[split.role] = first.unreadable
        self.note_digests(split, first.rows, first.digests)
        return features

    def extract_all(self, splits: Iterable[Split]) -> None:
        """Extract the frozen features that the run's protocol reads, into the cache."""
        names = build_protocol(self.run.protocol, self.run.task.kind).frozen_layers()
        layers = facts.resolve_layers(self.run.model, self.run.size, names)
        for split in splits:
            self.features_of_layers(split, layers)

    def frozen(self, split: Split) -> Reader:
        """Return the frozen backbone, opened once for all its runs.

        split: has the images to compare engines on.
        """
        # a network of another engine has only the layers that it was opened for
        layers = [] if self.run.engine == TORCH else layers_to_read(self.run)
        key = digest([made_by_backbone(self.run), layers])
        if self.shelf.reader is None or self.shelf.key != key:
            self.shelf.reader = None  # frees its memory
            source = source_of(self.run, layers, split.part.images)
            self.shelf.key, self.shelf.reader = key, open_reader(self.run.engine, source, self.machine)
        return self.shelf.reader

    def _extract(self, split: Split, entries: dict[str, Entry]) -> int:
        clock = time.perf_counter()
        with self.stages.stage(f"features of {split.role}", len(split.part), self.gmacs) as advance:
            used = extract_to_store(
                self.frozen(split),
                split.part,
                self.transform(),
                self.machine,
                entries,
                self.run.task.skip_unreadable,
                advance,
                partial(self._call_others, split) if self._has_others() else None,
            )
        self.extract_s += time.perf_counter() - clock
        return used

    def _has_others(self) -> bool:
        """Whether other processes of a job wait to be called, and do not take part in the whole run."""
        return processes.leads() and not build_protocol(self.run.protocol, self.run.task.kind).trains

    def _call_others(self, split: Split, layers: Sequence[str]) -> bool:
        """Call the other processes of a job to an extraction."""
        message = {"run": self.run.to_json(), "role": split.role, "layers": list(layers)}
        try:
            processes.broadcast(message)
        except processes.ProcessLost as error:
            self.stages.say(f"  features are extracted by this process alone: {error}")
            return False
        return True

    def help_to_extract(self, split: Split, layers: Sequence[str]) -> None:
        """Take part in an extraction of the main process, which has called."""
        entries = {layer: entry_of(self.run, split, layer) for layer in layers}
        skip = self.run.task.skip_unreadable
        help_to_store(self.frozen(split), split.part, self.transform(), self.machine, entries, skip)

    def note_training(self, splits: Sequence[Split], trained: Trained) -> None:
        """Record skipped images, digests and notes of a training on concatenated splits."""
        self.note(*trained.notes)
        start = 0
        for split in splits:
            stop = start + len(split.part)
            self.skipped[split.role] = sum(start <= row < stop for row in trained.unreadable)
            self.note_digests(split, np.arange(len(split.part)), trained.digests[start:stop])
            start = stop

    def note_digests(self, split: Split, rows: np.ndarray, digests: np.ndarray) -> None:
        """Remember the digests (m, 16) of images whose bytes were read."""
        known = self._digests.setdefault(split.role, np.zeros((len(split.part), WIDTH), dtype=np.uint8))
        known[rows] = digests

    def digests(self, split: Split) -> np.ndarray:
        """Return the digests of the bytes of all images of a split, (n, 16).

        Images that the run has not read are read now; unreadable ones have zeros.
        """
        self.note_digests(split, np.empty(0, np.int64), np.empty((0, WIDTH), np.uint8))
        known = self._digests[split.role]
        unread = np.flatnonzero(~known.any(1))
        if len(unread):
            with self.stages.stage(f"hashing the images of {split.role}", len(unread), 0.0) as advance:
                known[unread] = hash_images(split.part, unread, advance)
        return known

    def note(self, *notes: str) -> None:
        """Add notes to the record, without duplicates."""
        self.notes += [note for note in dict.fromkeys(notes) if note not in self.notes]
