"""The nouns of the suite: frozen descriptions that hold only JSON values.

Nothing here imports torch: a plan can be made, hashed, stored and shown without building a model.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict, get_args, get_origin, get_type_hints

RECORD_SCHEMA = 1
AUTO = "auto"  # of weights, presets, layers, devices: chosen by what is known
RANDOM_INIT = "random init"  # how tables and plots name weights that were never trained

ROLES = ("train", "val", "test")


def canonical_json(value: Any) -> str:
    """Write JSON in the one form that is hashed: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any, length: int = 16) -> str:
    """Hash a JSON value: the first `length` hexadecimal digits of the SHA-256 of its canonical form."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


@dataclass(frozen=True, kw_only=True)
class WeightsSpec:
    """A published checkpoint of a backbone."""

    name: str
    file: str  # the file name that is looked for in the cache folder
    url: str = ""  # empty: has to be fetched by hand from `home`
    home: str = ""
    sha256: str = ""  # the digest, or as much of its start as was published
    pretraining: str = ""
    finetuned: bool = False
    published: Mapping[str, float] = field(default_factory=dict)  # metric -> percent


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights that were found for a model."""

    kind: str  # file, remote (a plan may hold what is still to be fetched) or random
    name: str  # in tables
    sha256: str = ""
    path: str = ""  # of the file on this machine

    @property
    def random(self) -> bool:
        """Whether the weights are random: nothing was trained."""
        return self.kind == "random"


RANDOM = Weights(kind="random", name=RANDOM_INIT)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How images are prepared for a model; fields as in timm's configuration."""

    size: tuple[int, int]  # (h, w)
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str = ""  # 'fused': resized and cropped in one step

    def identity(self) -> dict[str, Any]:
        """Return the JSON that run ids are made from."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}
        return values if self.resize else {name: v for name, v in values.items() if name != "resize"}

    def describe(self) -> str:
        """Describe the steps in one line; checkpoints do not hold them, so users have to check."""
        height, width = self.size
        resized = math.floor(min(height, width) / self.crop_pct)
        fused = f", {self.resize}" if self.resize else ""
        mean, std = (", ".join(f"{x:g}" for x in values) for values in (self.mean, self.std))
        return (
            f"resize to {resized} ({self.interpolation}{fused}), {self.crop_mode} crop {height} x {width}, "
            f"mean {mean}, std {std}"
        )


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A backbone: a timm architecture with its keyword arguments and its published weights.

    Preprocessing is that of the architecture's timm configuration.
    """

    name: str
    arch: str
    aliases: tuple[str, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[WeightsSpec, ...] = ()
    reference: str = ""
    version: int = 1  # of the architecture: raised when what it computes changes
    # facts about registered models, which `tests/test_mixmim.py` counts again; at the model's own size
    image_size: tuple[int, int] = (0, 0)
    params: int = 0
    macs: int = 0


@dataclass(frozen=True, kw_only=True)
class LayoutSpec:
    """One way in which the images of a task may lie on a disk."""

    name: str  # `module:Class`
    options: Mapping[str, Any] = field(default_factory=dict)
    key: str = "data.options"  # of the task file, where the options stand


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """A dataset, which slices of it play train, val and test, and its official metrics.

    Read from one TOML file by `mixmim_bench.suite.taskfile`; `tasks/README.md` tells what each key means.
    """

    name: str
    path: str
    version: int
    kind: str
    title: str
    num_classes: int
    metrics: tuple[str, ...]
    metric_versions: Mapping[str, int] = field(default_factory=dict)  # of those above 1
    suites: tuple[str, ...]
    layouts: tuple[LayoutSpec, ...]
    counts: Mapping[str, int]
    split: Mapping[str, str]
    root: str = ""
    image_size: int = 0  # 0: the model's own
    crop_pct: float = 0.0  # 0: the model's own
    forbid: tuple[str, ...] = ()
    skip_unreadable: bool = False
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reference: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)  # of splits and metrics
    also_called: tuple[str, ...] = ()  # names that the dataset's folder has elsewhere
    download: tuple[str, ...] = ()  # what to fetch, and where to put it

    @property
    def dataset(self) -> str:
        """The name without a variant: what its folder is called."""
        return self.name.partition("@")[0]

    @property
    def variant(self) -> str:
        """What stands behind the @ of the name, '' for the task as its file has it."""
        return self.name.partition("@")[2]


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """The images that were found for a task; layout and root are where they are on this machine."""

    fingerprint: str
    layout: str = ""
    root: str = ""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One thing to do: evaluate a model on a task with a protocol, with everything resolved.

    `weights`, `preprocessing`, `data` and `protocol` are what `resolve` found: no value is 'auto'.
    """

    model: ModelSpec
    weights: Weights
    preprocessing: Preprocessing
    task: TaskSpec
    data: DataSource
    protocol: Mapping[str, Any]  # name, version and hyper-parameters
    seed: int | None  # None where nothing is random
    precision: str

    def identity(self) -> dict[str, Any]:
        """Return what decides the result, and nothing else: no path, no machine, no commit."""
        task = self.task
        versions = {"arch_version": self.model.version} if self.model.version > 1 else {}
        metric_versions = {"metric_versions": dict(task.metric_versions)} if task.metric_versions else {}
        return {
            "arch": self.model.arch,
            **versions,
            "kwargs": dict(self.model.kwargs),
            "weights": {"kind": self.weights.kind, "sha256": self.weights.sha256},
            "preprocessing": self.preprocessing.identity(),
            "task": {
                "name": task.name,
                "kind": task.kind,
                "version": task.version,
                "num_classes": task.num_classes,
                "metrics": list(task.metrics),
                **metric_versions,
                "split": dict(task.split),
                "image_size": task.image_size,  # what the task states for all models
                "crop_pct": task.crop_pct,
                "forbid": sorted(task.forbid),
                "skip_unreadable": task.skip_unreadable,
            },
            "data": self.data.fingerprint,
            "protocol": dict(self.protocol),
            "seed": self.seed,
            "precision": self.precision,
        }

    @property
    def run_id(self) -> str:
        """The hash of the identity; two runs with one id would give one result."""
        return digest(self.identity())

    @property
    def size(self) -> tuple[int, int]:
        """The image size (h, w)."""
        return self.preprocessing.size

    def to_json(self) -> str:
        """Write the run as JSON, from which another process can do it."""
        return canonical_json(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Run":
        """Read what `to_json` wrote."""
        return restored(cls, json.loads(text))

    @property
    def label(self) -> str:
        """Name the run for people."""
        seed = f" seed {self.seed}" if self.seed else ""
        return f"{self.model.name} · {self.task.name} · {self.protocol['name']}{seed}"


def restored(kind: Any, value: Any) -> Any:
    """Turn JSON values back into dataclasses and tuples, by the types of the fields."""
    if dataclasses.is_dataclass(kind):
        types = get_type_hints(kind)
        return kind(**{name: restored(types[name], each) for name, each in value.items()})  # type: ignore[operator]
    if get_origin(kind) is tuple:
        first, *_ = get_args(kind)
        return tuple(restored(first, each) for each in value)
    return value


class Score(TypedDict, total=False):
    """A metric of one run: fractions with a 95 % interval."""

    value: float
    low: float
    high: float
    interval: str  # the method
    n: int  # items
    guess: float  # what knowing only the class frequencies would score
    smallest_class: int
    resamples: int
    draws: int  # of training images, for few-shot probes
    std: float  # over these draws


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one image costs a model at one size; measured once per machine and kept.

    `gmacs` is fvcore's total with the model's own classifier: multiply-adds, and fvcore's few operations
    an element for norms and pools.
    """

    model: str
    arch: str
    image_size: tuple[int, int]
    precision: str
    device: str
    threads: int
    params_m: float
    gmacs: float
    uncounted: tuple[str, ...]  # operations that multiply and that a counter left out
    activations_m: float  # millions of outputs of convolutions, linear layers and matrix products
    images_per_s: float
    batch_size: int
    peak_share: float  # of the machine's matrix-multiply peak, measured before and after
    peak_memory_mb: float

    @staticmethod
    def key(
        arch: str,
        kwargs: Mapping[str, Any],
        image_size: tuple[int, int],
        precision: str,
        machine: Mapping[str, Any],
    ) -> str:
        """Identify a measurement: what was measured, and on what."""
        return digest(
            {
                "arch": arch,
                "kwargs": dict(kwargs),
                "image_size": list(image_size),
                "precision": precision,
                "machine": dict(machine),
            }
        )


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What came of a run: scores, or the error in their place. One JSON document.

    `run_id` is the hash of `identity`; the other fields say it for people.
    """

    run_id: str
    identity: Mapping[str, Any]
    model: str
    weights: str
    random_init: bool
    task_title: str
    protocol_title: str
    suites: tuple[str, ...] = ()  # that the task belongs to
    costs: Mapping[str, str] = field(default_factory=dict)  # 'own' size and 'run' size -> key of a Cost
    data_bytes: str = ""  # digest of the bytes of all images
    scores: Mapping[str, Score] = field(default_factory=dict)
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

    @property
    def metric(self) -> str:
        """The metric that is ranked."""
        return self.identity["task"]["metrics"][0]

    @property
    def versions(self) -> tuple[int, int, int]:
        """The versions of task, ranked metric and protocol."""
        task, protocol = self.identity["task"], self.identity["protocol"]
        return task["version"], self.metric_version(self.metric), protocol["version"]

    def metric_version(self, metric: str) -> int:
        """Return the version of a metric by which the result was scored."""
        return self.identity["task"].get("metric_versions", {}).get(metric, 1)

    @property
    def arch_version(self) -> int:
        """The version of the architecture."""
        return self.identity.get("arch_version", 1)

    def to_json(self) -> str:
        """Write the record as the text of its file."""
        values = dataclasses.asdict(self)
        return json.dumps(values, indent=1, sort_keys=True, allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    """Give a number of numpy as Python's own; raises TypeError for what is no number."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a record holds JSON values, not {type(value).__name__}")
