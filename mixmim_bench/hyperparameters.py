"""Hyper-parameters: fields of frozen dataclasses, set by name and checked against their defaults."""

import dataclasses
import math
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from mixmim_bench.errors import BenchError, nearest


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Parse `KEY=VALUE`, with values as in TOML: `epochs=3`, `norm="none"`, `betas=[0.9, 0.95]`.

    A value that is not TOML is a string. Raises BenchError.
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise BenchError(f"--set {text}: must be KEY=VALUE")
        if key.strip() in values:
            raise BenchError(f"--set {key.strip()} was given twice")
        try:
            values[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = value.strip()
    return values


def check_values(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Check the names and types of values for a dataclass of hyper-parameters.

    Raises BenchError with the invalid one.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    checked = {}
    for key, value in values.items():
        if key not in fields:
            raise BenchError(f"unknown key {key!r}; {nearest(key, fields)}")
        default = fields[key].default
        if type(default) is float and type(value) is int:
            value = float(value)
        if type(default) is tuple and not isinstance(value, tuple):
            value = tuple(value) if isinstance(value, list) else (value,)
        if not _alike(value, default):
            raise BenchError(f"{key} must be like {default!r}, not {value!r}")
        checked[key] = value
    return checked


def _alike(value: Any, default: Any) -> bool:
    """Return whether a value has the type of a default, including the elements of lists."""
    if isinstance(default, tuple):
        if not default or not isinstance(value, tuple):
            return isinstance(value, tuple)
        kinds = (int, float) if type(default[0]) is float else type(default[0])
        return all(isinstance(v, kinds) and not isinstance(v, bool) for v in value)
    if type(default) is float:
        return type(value) is float and math.isfinite(value)
    return type(value) is type(default)


def require(condition: bool, message: str) -> None:
    """Raise BenchError for a hyper-parameter that is out of range."""
    if not condition:
        raise BenchError(message)


def require_bounds(recipe: Any, *names: str) -> None:
    """Raise BenchError for hyper-parameters that are not two positive numbers in ascending order."""
    for name in names:
        bounds = getattr(recipe, name)
        require(
            len(bounds) == 2 and 0.0 < bounds[0] <= bounds[1],
            f"{name} must be two positive numbers in ascending order",
        )
