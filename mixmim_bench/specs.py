"""The suite's specifications: frozen dataclasses that hold only JSON values.

Nothing here imports torch: a plan can be created, hashed, stored and shown without building a model.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypedDict, get_args, get_origin, get_type_hints

RECORD_SCHEMA = 1
OF_SESSION = "object_"  # begins architectures that are networks of a Python session
AUTO = "auto"  # weights, presets, layers and devices are then chosen automatically
ECE = "ece"  # the name of a calibration error among scores
RANDOM_INIT = "random init"  # the name of untrained weights in tables and plots

TORCH, OPENVINO, COMPILE = ENGINES = ("torch", "openvino", "compile")  # that compute frozen features

PRECISIONS = ("float32", "bfloat16", "float16")
ROLES = ("train", "val", "test")
LIMITED = "limit"  # begins the variant of a task with so many images, for smoke runs
PERMUTED = "permuted"  # the variant of a task whose labels are permuted, a control
NOISE = "noise"  # begins the variants of a task whose images are so many percent noise, a control


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical_json(value: Any) -> str:
    """Serialise JSON in its canonical form, for hashing: sorted keys, no spaces, no NaN."""
    return _CANONICAL.encode(value)


def digest(value: Any, length: int = 16) -> str:
    """Hash a JSON value: the first `length` hex digits of the SHA-256 of its canonical form."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


@dataclass(frozen=True, kw_only=True)
class WeightsSpec:
    """A published checkpoint of a backbone."""

    name: str
    file: str  # file name in the cache folder
    url: str = ""  # empty: manual download from `home`
    home: str = ""
    sha256: str = ""  # the digest, or the prefix of it that was published
    pretraining: str = ""
    finetuned: bool = False
    packaged: bool = False  # whether the file is part of this package
    published: Mapping[str, float] = field(default_factory=dict)  # metric -> percent


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights found for a model."""

    kind: str  # file, remote (still to be downloaded), random, or none of a model without weights
    name: str  # as shown in tables
    sha256: str = ""
    path: str = ""  # of the file on this machine

    @property
    def random(self) -> bool:
        """Whether the weights are untrained."""
        return self.kind == "random"

    def identity(self) -> dict[str, str]:
        """Return what run ids and keys of features are computed from."""
        return {"kind": self.kind, "sha256": self.sha256}


RANDOM = Weights(kind="random", name=RANDOM_INIT)
NO_WEIGHTS = Weights(kind="none", name="no weights")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The preprocessing of images for a model; fields as in timm's configuration."""

    size: tuple[int, int]  # (h, w)
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str = ""  # 'fast' or 'reduced'; '': the same pixels as timm's
    transform: str = ""  # key of an object of this process that does all of it; '': none
    noise: int = 0  # percent of the variance that is noise, for controls

    def identity(self) -> dict[str, Any]:
        """Return the JSON that run ids are computed from."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}
        return {name: v for name, v in values.items() if v or name not in ("resize", "transform", "noise")}

    def describe(self, dense: bool = False) -> str:
        """Describe the steps in one line, for users to check: checkpoints do not store them.

        dense: of label maps and objects, whose protocols resize and crop images.
        """
        height, width = self.size
        noise = f", {self.noise} % noise" if self.noise else ""
        if self.transform:
            return f"a transform object ({self.transform}) to {height} x {width}{noise}"
        resized = math.floor(min(height, width) / self.crop_pct)
        how = f", {self.resize}" if self.resize else ""
        mean, std = (", ".join(f"{x:g}" for x in values) for values in (self.mean, self.std))
        if dense:
            return f"resize for {height} x {width} ({self.interpolation}), mean {mean}, std {std}"
        return (
            f"resize to {resized} ({self.interpolation}{how}), {self.crop_mode} crop {height} x {width}, "
            f"mean {mean}, std {std}{noise}"
        )


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A backbone: a timm architecture, its keyword arguments and its published weights.

    Its preprocessing is that of the architecture's timm configuration, where `preprocessing` does not change
    it (fields of `Preprocessing`, as JSON values).
    """

    name: str
    arch: str
    aliases: tuple[str, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[WeightsSpec, ...] = ()
    reference: str = ""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str = ""  # the weights that a model file names: a path, 'auto' or 'random'
    version: int = 1  # of the architecture: bumped when its outputs change
    weightless: bool = False  # whether it has no parameters besides those of its classifier
    # of registered models, at their own size; verified by `tests/test_mixmim.py`
    image_size: tuple[int, int] = (0, 0)
    params: int = 0
    macs: int = 0

    @property
    def of_session(self) -> bool:
        """Whether it is a network of a Python session, which is built as a copy of that and not by code."""
        return self.arch.startswith(OF_SESSION)


@dataclass(frozen=True, kw_only=True)
class LayoutSpec:
    """One way the images of a task may be stored on disk."""

    name: str  # `module:Class`
    options: Mapping[str, Any] = field(default_factory=dict)
    key: str = "data.options"  # where the options are in the task file


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """A dataset, its train, val and test slices, and its official metrics.

    Read from one TOML file by `mixmim_bench.suite.taskfile`; `tasks/README.md` documents each key.
    """

    name: str
    path: str
    version: int
    kind: str
    title: str
    num_classes: int
    metrics: tuple[str, ...]
    metric_versions: Mapping[str, int] = field(default_factory=dict)  # only those above 1
    suites: tuple[str, ...]
    layouts: tuple[LayoutSpec, ...]
    counts: Mapping[str, int]
    split: Mapping[str, str]
    root: str = ""
    folder: str = ""  # in a data root, where that is the one of another task
    classifier: str = ""  # 'imagenet': its classes are WordNet synsets, as those of ImageNet's classifiers
    labels: str = ""  # other labels for listed images: 'imagenet-real', or the path of a CSV file
    partial: bool = False  # whether classes and images may be missing
    subset: tuple[str, ...] = ()  # the names of its classes, where those are not all
    limit: int = 0  # images of each role, for smoke runs; 0: all
    permuted: bool = False  # whether the labels of train and val are permuted, for controls
    noise: int = 0  # percent of the variance of the images that is noise, for controls
    image_size: int = 0  # 0: the model's own
    crop_pct: float = 0.0  # 0: the model's own
    forbid: tuple[str, ...] = ()
    skip_unreadable: bool = False
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reference: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)  # references for splits and metrics
    also_called: tuple[str, ...] = ()  # other common names of the dataset's folder
    download: tuple[str, ...] = ()  # instructions: what to download, and where to put it

    @property
    def dataset(self) -> str:
        """The name without the variant, which is also the folder's name."""
        return self.name.partition("@")[0]

    @property
    def variant(self) -> str:
        """The part of the name after the @, '' for the unmodified task."""
        return self.name.partition("@")[2]

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that have images: all, or only test."""
        return tuple(role for role in ROLES if role in self.split)

    @property
    def key(self) -> tuple[str, tuple[str, ...]]:
        """Name and roles, which tell the images of a command's tasks apart."""
        return self.name, self.roles

    def for_roles(self, roles: Collection[str]) -> "TaskSpec":
        """Return the task with some of its roles, whose images are the same.

        Parts of the dataset that only other roles use are neither needed nor listed.
        """
        split = {role: cut for role, cut in self.split.items() if role in roles}
        unused = {cut.partition("[")[0] for cut in self.split.values()}
        unused -= {cut.partition("[")[0] for cut in split.values()}
        layouts = tuple(
            dataclasses.replace(layout, options={k: _without(v, unused) for k, v in layout.options.items()})
            for layout in self.layouts
        )
        return dataclasses.replace(self, split=split, layouts=layouts)


def name_and_variants(text: str) -> tuple[str, str]:
    """Split `TASK@VARIANT@...` at the first @, or behind a task file, whose path may contain one too."""
    file = re.match(r"(.+?\.toml)(?:@(.*))?$", text)
    if file is not None:
        return file[1], file[2] or ""
    name, _, variants = text.partition("@")
    return name, variants


def _without(value: Any, keys: Collection[str]) -> Any:
    """Return a table without some keys, and any other value as it is."""
    if not isinstance(value, Mapping):
        return value
    return {key: item for key, item in value.items() if key not in keys}


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """The images found for a task, and their layout and root on this machine."""

    fingerprint: str
    layout: str = ""
    root: str = ""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The evaluation of a model on a task with a protocol, fully resolved.

    `weights`, `preprocessing`, `data` and `protocol` come from `resolve`: no value is 'auto'.
    """

    model: ModelSpec
    weights: Weights
    preprocessing: Preprocessing
    task: TaskSpec
    data: DataSource
    protocol: Mapping[str, Any]  # name, version and hyper-parameters
    seed: int | None  # None if nothing is random
    precision: str
    engine: str = TORCH  # of frozen features; changes them by rounding only, so it is not in the identity
    # of dense tasks, following from architecture and protocol: arguments by which the network takes images of
    # any size, and the size that it computes where that is not the image size
    arguments: Mapping[str, Any] = field(default_factory=dict)
    computes: tuple[int, ...] = ()
    # of protocols that use the weights' own classifier: the number of its classes, 0 if the network has none,
    # and a digest of which outputs are those of the task
    classes: int = 0
    outputs: str = ""

    def identity(self) -> dict[str, Any]:
        """Return everything that determines the result, and nothing else: no path, machine or commit."""
        task = self.task
        versions = {"arch_version": self.model.version} if self.model.version > 1 else {}
        metric_versions = {"metric_versions": dict(task.metric_versions)} if task.metric_versions else {}
        return {
            "arch": self.model.arch,
            **versions,
            "kwargs": dict(self.model.kwargs),
            "weights": self.weights.identity(),
            "preprocessing": self.preprocessing.identity(),
            "task": {
                "name": task.name,
                "kind": task.kind,
                "version": task.version,
                "num_classes": task.num_classes,
                "metrics": list(task.metrics),
                **metric_versions,
                "split": dict(task.split),
                "image_size": task.image_size,  # set by the task for all models
                "crop_pct": task.crop_pct,
                "forbid": sorted(task.forbid),
                "skip_unreadable": task.skip_unreadable,
            },
            "data": self.data.fingerprint,
            "protocol": dict(self.protocol),
            "seed": self.seed,
            "precision": self.precision,
            **({"outputs": self.outputs} if self.outputs else {}),
        }

    @property
    def run_id(self) -> str:
        """The hash of the identity; runs with the same id give the same result."""
        return digest(self.identity())

    @property
    def size(self) -> tuple[int, int]:
        """The image size (h, w)."""
        return self.preprocessing.size

    @property
    def computed_size(self) -> tuple[int, int]:
        """The size (h, w) that the network computes: that of the image, padded or resized to suit it."""
        height, width = self.computes or self.size
        return height, width

    @property
    def network(self) -> ModelSpec:
        """The model as the run computes it, which decides what it costs at the run's size."""
        if not self.arguments:
            return self.model
        return dataclasses.replace(self.model, kwargs={**self.model.kwargs, **self.arguments})

    def to_json(self) -> str:
        """Serialise the run as JSON, for another process to execute."""
        return canonical_json(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Run":
        """Restore a run from the output of `to_json`."""
        return restored(cls, json.loads(text))

    @property
    def label(self) -> str:
        """A readable name of the run."""
        seed = f" seed {self.seed}" if self.seed else ""
        return f"{self.model.name} · {self.task.name} · {self.protocol['name']}{seed}"


def restored(kind: Any, value: Any) -> Any:
    """Convert JSON values back to dataclasses and tuples, by field type."""
    if dataclasses.is_dataclass(kind):
        types = get_type_hints(kind)
        return kind(**{name: restored(types[name], item) for name, item in value.items()})  # type: ignore[operator]
    if get_origin(kind) is tuple:
        first, *_ = get_args(kind)
        return tuple(restored(first, item) for item in value)
    return value


class Score(TypedDict, total=False):
    """A metric of one run, as a fraction, with a 95 % confidence interval."""

    value: float
    low: float
    high: float
    interval: str  # the method
    n: int  # items
    guess: float  # score from knowing only the class frequencies
    smallest_class: int
    resamples: int
    draws: int  # random subsets of the training images, for few-shot probes
    std: float  # over the draws


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost per image of a model at one size; measured once per machine and cached.

    `gmacs` is fvcore's total with the model's own classifier: multiply-adds, plus fvcore's few operations
    per element for norms and pools.
    """

    model: str
    arch: str
    image_size: tuple[int, int]
    precision: str
    device: str
    threads: int
    params_m: float
    gmacs: float
    uncounted: tuple[str, ...]  # operations with multiply-adds that a counter omitted
    activations_m: float  # outputs of convolutions, linear layers and matrix products, in millions
    images_per_s: float
    batch_size: int
    peak_share: float  # fraction of the machine's matrix-multiply peak, measured before and after
    peak_memory_mb: float
    engine: str = TORCH  # with its version

    @staticmethod
    def key(
        arch: str,
        kwargs: Mapping[str, Any],
        image_size: tuple[int, int],
        precision: str,
        machine: Mapping[str, Any],
        engine: str = TORCH,
    ) -> str:
        """Return the key of a measurement: model, size, precision, machine and engine."""
        return digest(
            {
                "arch": arch,
                "kwargs": dict(kwargs),
                "image_size": list(image_size),
                "precision": precision,
                "machine": dict(machine),
                **({} if engine == TORCH else {"engine": engine}),
            }
        )


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The outcome of a run: scores, or an error instead. One JSON document.

    `run_id` is the hash of `identity`; the other fields are for people.
    """

    run_id: str
    identity: Mapping[str, Any]
    model: str
    weights: str
    random_init: bool
    task_title: str
    protocol_title: str
    suites: tuple[str, ...] = ()  # those the task belongs to
    costs: Mapping[str, str] = field(default_factory=dict)  # 'own' size and 'run' size -> key of a Cost
    data_bytes: str = ""  # digest of the bytes of all images
    scores: Mapping[str, Score] = field(default_factory=dict)
    # of the images that the model was fitted to: metrics as fractions, `loss`, and `n`, how many were scored
    train: Mapping[str, float] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    schema: int = RECORD_SCHEMA

    @property
    def task(self) -> str:
        """The name of the task."""
        return self.identity["task"]["name"]

    @property
    def protocol(self) -> str:
        """The name of the protocol."""
        return self.identity["protocol"]["name"]

    @cached_property
    def setting(self) -> str:
        """A digest of what determines the result, except the seed."""
        return digest({**self.identity, "seed": None})

    @property
    def shown(self) -> tuple[str, ...]:
        """The scores in tables: the metrics of the task and a calibration error, not other settings."""
        metrics = self.identity["task"]["metrics"]
        return tuple(name for name in self.scores if name in metrics or name == ECE)

    @property
    def limited(self) -> bool:
        """Whether it is the result of a smoke run, on a limited number of images."""
        return any(_numbered(LIMITED, each) for each in self._variants)

    @property
    def control(self) -> str:
        """The variant of a control without its signal: 'permuted', or 'noise50' and so on; else ''."""
        return next((each for each in self._variants if each == PERMUTED or _numbered(NOISE, each)), "")

    @property
    def _variants(self) -> list[str]:
        return self.task.split("@")[1:]

    @property
    def metric(self) -> str:
        """The metric used for ranking."""
        return self.identity["task"]["metrics"][0]

    @property
    def versions(self) -> tuple[int, int, int]:
        """The versions of the task, the ranking metric and the protocol."""
        task, protocol = self.identity["task"], self.identity["protocol"]
        return task["version"], self.metric_version(self.metric), protocol["version"]

    @property
    def engine(self) -> str:
        """The engine that computed the features, without its version; torch for a trained backbone."""
        return self.provenance.get("engine", TORCH).partition(" ")[0]

    def metric_version(self, metric: str) -> int:
        """Return the version of a metric that the result was scored with."""
        return self.identity["task"].get("metric_versions", {}).get(metric, 1)

    @property
    def arch_version(self) -> int:
        """The version of the architecture."""
        return self.identity.get("arch_version", 1)

    def to_json(self) -> str:
        """Serialise the record as JSON."""
        values = dataclasses.asdict(self)
        return json.dumps(values, indent=1, sort_keys=True, allow_nan=False, default=_plain)


def _numbered(prefix: str, variant: str) -> bool:
    return variant.startswith(prefix) and variant.removeprefix(prefix).isdecimal()


def _plain(value: Any) -> Any:
    """Convert a NumPy number to a Python number; raises TypeError for other values."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"records hold JSON values, not {type(value).__name__}")
