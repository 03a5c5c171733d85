"""What a protocol is: a frozen dataclass of hyper-parameters that evaluates a backbone on a task."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    import numpy as np

    from mixmim_bench.data.dataset import Split
    from mixmim_bench.protocols.workbench import Workbench
    from mixmim_bench.scoring.predictions import Predictions

T = TypeVar("T")
_LATER = "added after version 1"
TRAIN_WORK = 3.0  # a training step costs about three forward passes


def later(default: T) -> T:
    """Declare a hyper-parameter that was added to a protocol whose results exist already.

    Where it has its default it stays out of the identity of runs, so finished runs keep their ids.
    """
    return field(default=default, metadata={_LATER: True})


@dataclass(frozen=True)
class Workload:
    """How many images pass through the backbone."""

    forward: int
    train: int = 0  # also backward, which makes it TRAIN_WORK passes


@dataclass(frozen=True)
class Fitted:
    """What a protocol has fitted.

    Attributes:
        predict: scores the images of a split that was not seen before.
        chosen: what was chosen on val.
        arrays: curves, kept beside the record.
        notes: for the record.
        head_params: parameters behind the backbone.
        head_macs: multiply-adds of one image behind the backbone.
    """

    predict: "Callable[[Split], Predictions]"
    chosen: Mapping[str, Any] = field(default_factory=dict)
    arrays: "Mapping[str, np.ndarray]" = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    head_params: int = 0
    head_macs: int = 0


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A protocol; its fields are the hyper-parameters.

    It is given train and val, chooses on val what there is to choose, and returns a `Fitted`, which is then
    asked once for the scores of test.
    """

    name: ClassVar[str]
    title: ClassVar[str]  # in plots
    kind: ClassVar[str]  # of task
    version: ClassVar[int]  # raised when scores may change
    stochastic: ClassVar[bool]  # whether the seed matters for weights that are not random
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]  # name -> what changes

    def images(self, counts: Mapping[str, int]) -> Workload:
        """Count the images that pass through the backbone; counts: role -> images."""
        raise NotImplementedError

    def fit(self, bench: "Workbench", train: "Split", val: "Split") -> Fitted:
        """Evaluate the backbone of the bench on train and val."""
        raise NotImplementedError

    def input_size(self) -> int:
        """Return the side of the images that the protocol asks for, 0 for that of task or model."""
        return 0

    def frozen_layers(self) -> tuple[str, ...]:
        """Name the layers whose frozen features are read; none where the backbone is trained."""
        return ()

    @classmethod
    def reading(cls, layer: str) -> dict[str, Any]:
        """Return the hyper-parameters that choose a layer to read; none where none is read."""
        del layer
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Return name, version and hyper-parameters as JSON values: what goes into a run's identity."""
        values = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if not (f.metadata.get(_LATER) and getattr(self, f.name) == f.default)
        }
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return {"name": self.name, "version": self.version, **plain}


@dataclass(frozen=True, kw_only=True)
class FrozenProtocol(Protocol):
    """A protocol that reads frozen features, each image once, of the layers that its field `layers` names."""

    def images(self, counts: Mapping[str, int]) -> Workload:
        return Workload(forward=sum(counts.values()))

    def frozen_layers(self) -> tuple[str, ...]:
        layers = self.layers  # type: ignore[attr-defined]
        return (layers,) if isinstance(layers, str) else layers

    @classmethod
    def reading(cls, layer: str) -> dict[str, Any]:
        several = not isinstance(cls.layers, str)  # type: ignore[attr-defined]
        return {"layers": [layer] if several else layer}
