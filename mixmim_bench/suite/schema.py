"""Validation of the files in a results folder.

A file may come from another version, be truncated, or have been edited by hand. Invalid files are reported
with field and reason, and never counted.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from mixmim_bench.errors import BenchError
from mixmim_bench.registry import MODELS, by_name
from mixmim_bench.specs import RANDOM_INIT, RECORD_SCHEMA, TORCH, Cost, RunRecord, digest

Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, lt=1e12)]
NotNegative = Annotated[float, Field(ge=0.0)]
Version = Annotated[int, Field(ge=0)]
ROUNDED = 1e-5  # scores of further settings are saved with five decimals


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")


class _Open(BaseModel):
    """Fields that are read; others are allowed."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")


class _Score(_Open):
    value: Share
    low: Share
    high: Share
    n: Annotated[int, Field(ge=1)] | None = None
    draws: Annotated[int, Field(ge=1)] = 1
    std: NotNegative = 0.0
    guess: Share | None = None
    smallest_class: Annotated[int, Field(ge=0)] | None = None
    interval: str = ""

    @model_validator(mode="after")
    def _in_order(self) -> "_Score":
        if not self.low - ROUNDED <= self.value <= self.high + ROUNDED:
            raise ValueError(f"the value {self.value} is outside its interval, {self.low} to {self.high}")
        if "std" not in self.model_fields_set and self.draws > 1:
            raise ValueError(f"the field std is missing, for a score over {self.draws} draws")
        return self


class _Train(_Strict):
    """Scores of the training images; those of metrics, by their names, are fractions."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")
    __pydantic_extra__: dict[str, Share] = Field(init=False)
    loss: float = Field(default_factory=float)  # a factory, since the schema states other defaults
    n: Annotated[int, Field(ge=1)] = Field(default_factory=int)


class _Weights(_Strict):
    kind: Text
    sha256: str


class _Task(_Open):
    name: Text
    kind: Text
    version: Version
    metrics: Annotated[list[Text], Field(min_length=1)]
    num_classes: Annotated[int, Field(ge=1)] | None = None
    metric_versions: dict[str, Version] = {}


class _Protocol(_Open):
    name: Text
    version: Version


class _Identity(_Open):
    arch: Text
    arch_version: Version = 1
    kwargs: dict[str, JsonValue]
    weights: _Weights
    preprocessing: dict[str, JsonValue]
    task: _Task
    data: str
    protocol: _Protocol
    seed: int | None
    precision: Text


class _Provenance(_Open):
    started: str = ""
    engine: Text = TORCH


class _Record(_Strict):
    """The fields of a record; `_check_record` checks that they agree with each other."""

    schema_: Annotated[Literal[RECORD_SCHEMA], Field(alias="schema")]  # type: ignore[valid-type]
    run_id: Text
    identity: _Identity
    model: Text
    weights: Text
    random_init: bool
    task_title: str
    protocol_title: str
    suites: list[str] = []
    costs: dict[str, str] = {}
    data_bytes: str = ""
    scores: dict[str, _Score] = {}
    train: _Train = Field(default_factory=_Train)
    chosen: dict[str, JsonValue] = {}
    counts: dict[str, Annotated[int, Field(ge=0)]] = {}
    timings: dict[str, NotNegative] = {}
    notes: list[str] = []
    provenance: _Provenance = _Provenance()
    error: str = ""


class _Cost(_Strict):
    model: Text
    arch: Text
    image_size: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]
    precision: Text
    device: str
    threads: Annotated[int, Field(ge=1)]
    params_m: Positive
    gmacs: Positive
    uncounted: list[str]
    activations_m: NotNegative
    images_per_s: Positive
    batch_size: Annotated[int, Field(ge=1)]
    peak_share: NotNegative
    peak_memory_mb: float  # the difference of two readings
    engine: Text = TORCH


class NotARecord(BenchError):
    """An invalid file; the message is the reason."""


def record_schema() -> dict[str, Any]:
    """Return the JSON Schema of a record; `run_id` and fields that must agree are checked beyond it."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"mixmim-bench record, schema {RECORD_SCHEMA}",
        **{key: value for key, value in _Record.model_json_schema().items() if key != "title"},
    }


def read_record(path: Path) -> RunRecord:
    """Read the record of a run; raises NotARecord."""
    return _record(_read(path, _Record), path.stem)


def record_of(values: Any) -> RunRecord:
    """Check a record that was read as JSON; raises NotARecord."""
    return _record(_validated(values, _Record), str(values.get("run_id", "")))


def _record(values: dict[str, Any], name: str) -> RunRecord:
    record = RunRecord(**{**values, **{key: tuple(values.get(key, ())) for key in ("notes", "suites")}})
    _check_record(record, name)
    return record


def read_cost(path: Path) -> Cost:
    """Read a measurement; raises NotARecord."""
    values = _read(path, _Cost)
    return Cost(**{**values, **{key: tuple(values[key]) for key in ("image_size", "uncounted")}})


def _read(path: Path, schema: type[BaseModel]) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise NotARecord(f"it cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise NotARecord(f"it is not JSON: {error}") from error
    return _validated(values, schema)


def _validated(values: Any, schema: type[BaseModel]) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise NotARecord("it is not a JSON object")
    try:
        schema.model_validate(values)
    except ValidationError as error:
        raise NotARecord(_first(error)) from error
    for key, value in values.items():  # with fields that the schema does not know, since they are written too
        try:
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise NotARecord(f"{key}: it holds text that is not Unicode") from error
        except ValueError as error:
            raise NotARecord(f"{key}: it holds a number that is not finite") from error
    return values


def _first(error: ValidationError) -> str:
    """Describe the first error, with its field."""
    errors = error.errors(include_url=False, include_input=False)
    field = ".".join(str(part) for part in errors[0]["loc"])
    message = errors[0]["msg"].removeprefix("Value error, ")
    more = f"; {len(errors) - 1} more" if len(errors) > 1 else ""
    return f"{field}: {message}{more}" if field else f"{message}{more}"


def _check_record(record: RunRecord, name: str) -> None:
    """Check that a record matches its file name, and its fields match its identity."""
    kind = record.identity["weights"]["kind"]
    try:
        own = digest(record.identity)
    except ValueError as error:  # NaN in a field the schema does not cover
        raise NotARecord(f"identity: {error}") from error
    if own != record.run_id:
        raise NotARecord(f"run_id {record.run_id} is not that of the identity, {own}")
    if record.run_id != name:
        raise NotARecord(f"it is the record of {record.run_id}")
    size = record.identity["preprocessing"].get("size", [1, 1])
    if not isinstance(size, list) or len(size) != 2 or not all(type(s) is int and s > 0 for s in size):
        raise NotARecord(f"identity.preprocessing.size is {size!r}, not a height and a width")
    if record.random_init != (kind == "random"):
        raise NotARecord(f"random_init is {record.random_init}, and the weights are of the kind {kind!r}")
    if (record.weights == RANDOM_INIT) != record.random_init:
        raise NotARecord(f"weights is {record.weights!r}, and random_init {record.random_init}")
    arch = record.identity["arch"]
    known = by_name(MODELS).get(record.model)
    if known is not None and known.arch != arch:
        raise NotARecord(f"model is {record.model!r}, and the architecture is {arch}")
    missing = [metric for metric in record.identity["task"]["metrics"] if metric not in record.scores]
    unknown = sorted(set(record.train) - {*record.identity["task"]["metrics"], "loss", "n"})
    if unknown:
        raise NotARecord(f"train: {unknown[0]!r} is not a metric of the task")
    if missing and not record.error:
        raise NotARecord(f"scores: {missing[0]} is missing, and there is no error")
