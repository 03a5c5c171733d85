"""Strict reading of TOML files: every key has a type, and unknown keys are errors."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixmim_bench.errors import TaskFileError, nearest

REQUIRED: Any = object()


class Table:
    """A table of a TOML file; keys are taken one at a time, and remaining keys are errors."""

    def __init__(self, path: Path, name: str, values: Mapping[str, Any]) -> None:
        self.path = path
        self.name = name
        self.values = dict(values)
        self.known: list[str] = []

    def error(self, key: str, problem: str) -> TaskFileError:
        return TaskFileError(self.path, f"{self.name}.{key}" if self.name else key, problem)

    def take(self, key: str, kind: type[Any], default: Any = REQUIRED) -> Any:
        """Take a value and check its type (lists contain strings); required if there is no default."""
        self.known.append(key)
        if key not in self.values:
            if default is REQUIRED:
                raise self.error(key, f"the key is missing ({_KINDS[kind]})")
            return default
        value: Any = self.values.pop(key)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (kind is list and any(type(v) is not str for v in value)):
            raise self.error(key, f"must be {_KINDS[kind]}, not {value!r}")
        return value

    def table(self, key: str, default: Any = REQUIRED) -> "Table":
        name = f"{self.name}.{key}" if self.name else key
        return Table(self.path, name, self.take(key, dict, default))

    def finish(self) -> None:
        """Raise TaskFileError if keys remain."""
        for key in self.values:
            raise self.error(key, f"unknown key; {nearest(key, self.known)}")


_KINDS = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list of strings",
    dict: "a table",
}


def read_toml(path: Path) -> Table:
    """Read a file; raises TaskFileError."""
    try:
        return Table(path, "", tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise TaskFileError(path, "", "no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TaskFileError(path, "", str(error)) from error
