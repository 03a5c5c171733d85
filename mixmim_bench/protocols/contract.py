"""The base class of protocols: frozen dataclasses of hyper-parameters that evaluate a backbone on a task."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from mixmim_bench.specs import ROLES

if TYPE_CHECKING:
    import numpy as np

    from mixmim_bench.data.dataset import Split
    from mixmim_bench.protocols.workbench import Workbench
    from mixmim_bench.scoring.predictions import Predictions

T = TypeVar("T")
_LATER = "added after version 1"
TRAIN_WORK = 3.0  # a training step costs about three forward passes
SCORED = 10_000  # training images that are scored at most, where the network has to see them again
SCORED_MAPS = 200  # those with label maps
SCORED_SHARE = 0.1  # of the forward passes of a training, which scoring its images may add


def later(default: T) -> T:
    """Declare a hyper-parameter that was added after the first release of a protocol.

    While it has its default, it stays out of the identity of runs, so finished runs keep their ids.
    """
    return field(default=default, metadata={_LATER: True})


def scored_again(images: int, passes: float, most: int = SCORED) -> int:
    """Return how many of the training images, at least one, are scored after so many forward passes."""
    return min(images, most, max(1, int(SCORED_SHARE * passes)))


@dataclass(frozen=True)
class Workload:
    """The number of images that pass through the backbone."""

    forward: int
    train: int = 0  # also backward, in total TRAIN_WORK passes


@dataclass(frozen=True)
class Fitted:
    """The result of fitting a protocol.

    Attributes:
        predict: returns predictions for a new split.
        chosen: hyper-parameters selected on val.
        arrays: curves, saved beside the record.
        notes: for the record.
        head_params: parameters behind the backbone.
        head_macs: multiply-adds of one image behind the backbone.
        heads: weights (K, d) and bias (K,) of a linear probe, fitted on 'train' and on 'both' train and val.
        train: the field `train` of the record (`protocols/on_train.py`); empty if nothing was fitted.
    """

    predict: "Callable[[Split], Predictions]"
    chosen: Mapping[str, Any] = field(default_factory=dict)
    arrays: "Mapping[str, np.ndarray]" = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    head_params: int = 0
    head_macs: int = 0
    heads: "Mapping[str, tuple[np.ndarray, np.ndarray]]" = field(default_factory=dict)
    train: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A protocol, whose fields are the hyper-parameters.

    It receives train and val, selects hyper-parameters on val, and returns a `Fitted`, which then predicts
    test once.
    """

    name: ClassVar[str]
    title: ClassVar[str]  # in plots
    kind: ClassVar[str]  # of task
    version: ClassVar[int]  # raised when scores may change
    stochastic: ClassVar[bool]  # whether the seed matters for weights that are not random
    trains: ClassVar[bool] = False  # by `training.loop`, in which all processes of a job take part
    roles: ClassVar[tuple[str, ...]] = ROLES  # whose images it needs
    uses_classifier: ClassVar[bool] = False  # whether the weights must have a classifier, which is used
    dense: ClassVar[bool] = False  # whether the network is read as a pyramid of feature maps
    in_place_of: ClassVar[str] = ""  # protocol of other kinds that it replaces where that is asked for
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]  # name -> what changes

    def images(self, counts: Mapping[str, int]) -> Workload:
        """Count the images that pass through the backbone; counts: role -> images."""
        raise NotImplementedError

    def fit(self, bench: "Workbench", train: "Split", val: "Split") -> Fitted:
        """Evaluate the backbone of the bench on train and val."""
        raise NotImplementedError

    def fit_on(self, bench: "Workbench", splits: "Mapping[str, Split]") -> Fitted:
        """Evaluate on the splits of the protocol's roles; overridden by protocols that learn nothing."""
        return self.fit(bench, splits["train"], splits["val"])

    def input_size(self) -> int:
        """Return the image side that the protocol requires; 0 for that of the task or model."""
        return 0

    @classmethod
    def auto_preset(cls, recipe: Mapping[str, Any], counts: Mapping[str, int]) -> str:
        """Return the preset for weights that are not random, given a task's changes and images per role."""
        del recipe, counts
        return "paper"

    def frozen_layers(self) -> tuple[str, ...]:
        """Return the layers of the frozen features; empty if the backbone is trained."""
        return ()

    @classmethod
    def reading(cls, layer: str) -> dict[str, Any]:
        """Return the hyper-parameters that select a layer; empty without frozen features."""
        del layer
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Return name, version and hyper-parameters as JSON values for a run's identity."""
        values = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if not (f.metadata.get(_LATER) and getattr(self, f.name) == f.default)
        }
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return {"name": self.name, "version": self.version, **plain}


@dataclass(frozen=True, kw_only=True)
class FrozenProtocol(Protocol):
    """A protocol on frozen features of the layers in its field `layers`."""

    def images(self, counts: Mapping[str, int]) -> Workload:
        return Workload(forward=sum(counts.values()))

    def frozen_layers(self) -> tuple[str, ...]:
        layers = self.layers  # type: ignore[attr-defined]
        return (layers,) if isinstance(layers, str) else layers

    @classmethod
    def reading(cls, layer: str) -> dict[str, Any]:
        several = not isinstance(cls.layers, str)  # type: ignore[attr-defined]
        return {"layers": [layer] if several else layer}
