"""Check data, weights, disk and processor of this machine; downloads nothing."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch

from mixmim_bench.cache import cache_folder, free_bytes
from mixmim_bench.data.dataset import find_data, list_task, slices_of
from mixmim_bench.data.hashing import WIDTH, count_duplicates, read_images
from mixmim_bench.data.images import Part
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.errors import BenchError, MissingData, a_few, counted
from mixmim_bench.features.engines import engine_with_version, usable_engines
from mixmim_bench.machine import Machine, computes_in_bfloat16
from mixmim_bench.memory import available_bytes
from mixmim_bench.progress import Stages
from mixmim_bench.provenance import provenance
from mixmim_bench.specs import ModelSpec, TaskSpec
from mixmim_bench.weights.find import by_hand, here

OK, MISSING, WRONG = "ok", "missing", "wrong"
SAMPLE = 200  # images of a role that are decoded, of all evenly, unless all are
FEW = 20_000  # images: of fewer, all bytes are compared without being asked to


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """The state of the images of a task."""

    task: str
    suites: Sequence[str]
    state: str  # ok, missing, wrong
    problems: Sequence[str] = ()
    remarks: Sequence[str] = ()  # what is no problem, such as objects that cannot be learnt
    layout: str = ""
    root: str = ""
    images: Mapping[str, int] = dataclasses.field(default_factory=dict)  # of each part
    official: Mapping[str, int] = dataclasses.field(default_factory=dict)
    roles: Mapping[str, int] = dataclasses.field(default_factory=dict)
    train_images_a_class: Mapping[str, float] = dataclasses.field(default_factory=dict)  # min, median, max
    decoded: int = 0
    unreadable: Sequence[str] = ()
    empty_files: int = 0
    duplicates: Mapping[str, int] | None = None  # None: not looked for
    download: Sequence[str] = ()
    data_gb: float | None = None  # None: not known without reading
    features_gb: float = 0.0  # of one layer, for the images of all roles


class Doctor:
    """Checks tasks, models and the machine; `full` reads every image."""

    def __init__(self, roots: DataRoots, machine: Machine, stages: Stages, full: bool = False) -> None:
        self.roots = roots
        self.machine = machine
        self.stages = stages
        self.full = full
        self.threads = os.cpu_count() or 1

    # -- data ------------------------------------------------------------------------------------------

    def task(self, task: TaskSpec, width: int) -> TaskReport:
        """Check the images of a task; width: of the features to be extracted."""
        root = self.roots.folder(task)
        blank = TaskReport(
            task=task.name,
            suites=task.suites,
            state=WRONG,
            root=str(root),
            official=dict(task.counts),
            download=[
                line.replace(f"DATA_ROOT/{task.dataset}", str(root)).replace("DATA_ROOT", str(root.parent))
                for line in task.download
            ],
            features_gb=sum(task.counts.values()) * width * 4 / 1e9,
        )
        try:
            source = find_data(task, self.roots)
        except MissingData as error:
            problems = [f"no {wanted}" for wanted in error.looked_for]
            return dataclasses.replace(
                blank, state=MISSING, problems=[*problems, error.near] if error.near else problems
            )
        except BenchError as error:
            return dataclasses.replace(blank, problems=[str(error)])
        blank = dataclasses.replace(blank, layout=source.name, root=str(source.root), download=())
        try:
            listed, classes, index = list_task(task, source)
        except BenchError as error:
            return dataclasses.replace(blank, problems=[str(error)])
        parts = {
            role: listed[cut.part].take(index.rows[role])
            for role, cut in slices_of(task).items()
            if role in index.rows
        }
        problems = [f"{problem.key}: {problem}" for problem in index.problems]
        read = self._read(task, parts)
        empty = [name for part in listed.values() for name in _empty(part)]
        if empty:
            many = counted(len(empty), "empty file or dangling link", "empty files or dangling links")
            problems.append(f"{many}: {a_few(empty)}")
        if read.unreadable:
            problems.append(
                f"{counted(len(read.unreadable), 'image')} cannot be read: {a_few(read.unreadable)}"
            )
        balance, missing_classes = _balance(parts.get("train"), classes)
        if missing_classes:
            problems.append(f"no image of {a_few(missing_classes)} is in train")
        return dataclasses.replace(
            blank,
            state=WRONG if problems else OK,
            problems=problems,
            remarks=[
                f"{name}: {remark}" for name, part in listed.items() for remark in part.targets.remarks()
            ],
            images={name: len(part) for name, part in listed.items()},
            roles={role: len(part) for role, part in parts.items()},
            train_images_a_class=balance,
            decoded=read.decoded,
            unreadable=read.unreadable,
            empty_files=len(empty),
            duplicates=read.duplicates,
            data_gb=_gigabytes(listed.values()),
            features_gb=sum(map(len, parts.values())) * width * 4 / 1e9,
        )

    def _read(self, task: TaskSpec, parts: Mapping[str, Part]) -> "_Read":
        """Decode a sample of each role, or all images, and find duplicates if all bytes are read."""
        hashing = self.full or sum(map(len, parts.values())) <= FEW
        sampled = {
            role: np.arange(len(part)) if self.full else _evenly(len(part), SAMPLE)
            for role, part in parts.items()
        }
        rows = {role: np.arange(len(part)) if hashing else sampled[role] for role, part in parts.items()}
        read = _Read(decoded=sum(map(len, sampled.values())))
        digests: dict[str, np.ndarray] = {}
        with self.stages.stage(f"reading {task.name}", sum(map(len, rows.values())), 0.0) as step:
            for role, part in parts.items():
                digests[role] = np.zeros((len(rows[role]), WIDTH), dtype=np.uint8)
                images = read_images(part, rows[role], frozenset(sampled[role].tolist()), self.threads)
                for place, (digest, error) in enumerate(images):
                    if error:
                        read.unreadable.append(f"{part.images.name(int(rows[role][place]))} ({error})")
                    else:
                        digests[role][place] = np.frombuffer(digest, dtype=np.uint8)
                    step(1)
        if hashing:
            read.duplicates = count_duplicates(digests)
        return read

    # -- the rest --------------------------------------------------------------------------------------

    def model(self, model: ModelSpec) -> dict[str, Any]:
        """Return the weights of a model on this machine, or how to get them."""
        found = here(model)
        return {
            "model": model.name,
            "weights": found,
            "get": [] if found else [by_hand(weights) for weights in model.weights],
        }

    def describe_machine(self) -> dict[str, Any]:
        """Describe the machine, with its measured matrix-multiply peak."""
        cuda = torch.cuda.is_available()
        return {
            **self.machine.describe(),
            "cores": os.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "available_gb": round(available_bytes() / 1e9, 1),
            "gpu": torch.cuda.get_device_name() if cuda else "",
            "computes_in_bfloat16": computes_in_bfloat16(self.machine.device),
            "precision": self.machine.precision,
            "matmul_gmacs_per_s": round(self.machine.matmul_gmacs_per_s, 1),
            "cache": str(cache_folder()),
            "cache_free_gb": round(free_bytes(cache_folder()) / 1e9, 1),
            "engines": [engine_with_version(name) for name in usable_engines(self.machine)],
            **provenance(),
        }


@dataclass
class _Read:
    """The result of reading images."""

    decoded: int = 0
    unreadable: list[str] = dataclasses.field(default_factory=list)
    duplicates: dict[str, int] | None = None


def _evenly(n: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64)) if n else np.empty(0, np.int64)


def _balance(part: Part | None, classes: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """Return min, median and max of training images per class, and the classes without any."""
    if part is None or not len(part):
        return {}, []
    counts = part.targets.per_class(len(classes))
    if counts is None:
        return {}, []
    missing_classes = [name for name, count in zip(classes, counts, strict=True) if not count]
    return {
        "min": int(counts.min()),
        "median": float(np.median(counts)),
        "max": int(counts.max()),
    }, missing_classes


def _empty(part: Part) -> list[str]:
    """Return empty files and dangling links, by their listed sizes."""
    sizes = getattr(part.images, "sizes", None)
    return [] if sizes is None else [part.images.name(row) for row in np.flatnonzero(sizes <= 0).tolist()]


def _gigabytes(parts: Any) -> float | None:
    """Sum the bytes of images; None if unknown without reading."""
    total = 0
    for part in parts:
        sizes: Any = getattr(part.images, "sizes", None)
        pixels: Any = getattr(part.images, "pixels", None)
        if sizes is None and pixels is None:
            return None
        total += int(sizes.clip(0).sum()) if sizes is not None else pixels.nbytes
    return total / 1e9
