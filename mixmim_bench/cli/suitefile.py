"""Suite files: the options of `run` as TOML, read as its defaults and written from its options.

    schema = 1
    models = ["mixmim-b", "resnet50=weights.pth", "my_model.toml"]
    tasks = ["cifar100", "imagenet1k@5shot"]
    protocols = ["linear"]
    seeds = [0, 1, 2]
    [set.linear]
    steps = 30
    [machine]
    device = "cuda"

What determines results is at the top, and how a machine computes them in `[machine]`. Paths are relative to
the file.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mixmim_bench.cli.options import Duration
from mixmim_bench.errors import BenchError
from mixmim_bench.modelfile import is_model_file
from mixmim_bench.specs import AUTO, name_and_variants
from mixmim_bench.tomlfile import Table, read_toml

SCHEMA = 1
# key of the file -> parameter of the command
RESULTS = {
    name: name
    for name in (
        "models", "weights", "tasks", "suites", "protocols", "preset", "layers", "seeds", "precision",
        "resize", "limit", "controls",
    )
}  # fmt: skip
MACHINE = {
    "data_root": "roots",
    "results": "results",
    "device": "device",
    "devices": "devices",
    "ray": "ray_address",
    "gpus_per_run": "gpus_per_run",
    "engine": "engine",
    "threads": "threads",
    "workers": "workers",
    "batch_size": "batch_size",
    "grad_checkpointing": "grad_checkpointing",
    "compile": "compile_training",
    "fsdp": "sharded",
    "track": "trackers",
    "timeout_per_run": "timeout_s",
    "save_weights": "save_weights",
    "report": "reporting",
}
SET = "changes"
_SETTINGS = f"{__name__}.settings"  # of the file, in the context
ALWAYS = (
    "models",
    "weights",
    "protocols",
    "preset",
    "seeds",
    "precision",
)  # written if they are defaults too


def use_suite_file(context: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    """Take the values of a suite file as the defaults of a command; an eager callback. Raises BenchError."""
    if path is not None:
        values = read_suite_file(context, path)
        context.meta[_SETTINGS] = values.pop(SET)
        context.default_map = {**(context.default_map or {}), **values}
    return path


def merged(context: click.Context, values: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a command with what its suite file says beside them.

    --set replaces single values of the file. Values of protocols that the command line does not select are
    left out; -t and -s of the command line replace both tasks and suites of the file.
    """
    given = {name for name in values if context.get_parameter_source(name) == ParameterSource.COMMANDLINE}
    settings = context.meta.get(_SETTINGS, {})
    if "protocols" in given:
        settings = {key: v for key, v in settings.items() if key.partition(".")[0] in values["protocols"]}
    others = {"tasks": "suites", "suites": "tasks"}
    replaced = {others[name]: () for name in given & set(others) if others[name] not in given}
    return {**values, **replaced, SET: {**settings, **values[SET]}}


def read_suite_file(context: click.Context, path: Path) -> dict[str, Any]:
    """Read and check a file; returns values by parameter. Raises TaskFileError, which names file and key."""
    top = read_toml(path)
    schema = top.take("schema", int)
    if schema != SCHEMA:
        raise top.error("schema", f"is {schema}, and this version reads schema {SCHEMA}")
    parameters = {parameter.name: parameter for parameter in context.command.params}
    machine = top.table("machine", {})
    values = {}
    for table, names in ((top, RESULTS), (machine, MACHINE)):
        for key, name in names.items():
            table.known.append(key)
            if key in table.values:
                value = _checked(context, table, key, parameters[name])
                values[name] = _beside(path.parent, name, value)
    values[SET] = _settings(top)
    top.finish()
    machine.finish()
    return values


def _checked(context: click.Context, table: Table, key: str, parameter: click.Parameter) -> Any:
    """Take a value of the type that an option takes, and let the option check it."""
    value = table.values.pop(key)
    each = value if parameter.multiple and isinstance(value, list) else [value]
    wanted = _types_of(parameter)
    if parameter.multiple != isinstance(value, list) or not all(type(item) in wanted for item in each):
        kind = " or ".join(
            {str: "a string", int: "an integer", float: "a number", bool: "true or false"}[t] for t in wanted
        )
        raise table.error(
            key, f"must be {'a list, each ' if parameter.multiple else ''}{kind}, not {value!r}"
        )
    try:
        parameter.type_cast_value(context, value)
    except click.BadParameter as error:
        raise table.error(key, error.message) from error
    return value


def _types_of(parameter: click.Parameter) -> tuple[type, ...]:
    if isinstance(parameter.type, click.types.BoolParamType):
        return (bool,)
    if isinstance(parameter.type, click.types.IntParamType):
        return (int, str) if parameter.default == AUTO else (int,)
    if isinstance(parameter.type, Duration):
        return (str, int, float)
    if isinstance(parameter.type, click.types.FloatParamType):
        return (int, float)
    return (str,)


def _settings(top: Table) -> dict[str, Any]:
    """Take `[set.PROTOCOL]`, as the option --set has it."""
    table = top.table("set", {})
    settings = {}
    for protocol in list(table.values):
        for key, value in table.take(protocol, dict).items():
            try:
                as_toml(value)
            except TypeError:
                raise table.error(
                    f"{protocol}.{key}", f"must be a number, a string, true, false or a list, not {value!r}"
                ) from None
            settings[f"{protocol}.{key}"] = value
    return settings


def as_toml(value: Any) -> str:
    """Write a value as TOML; raises TypeError for other ones than those of a recipe."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # inf, -inf, nan
    if not isinstance(value, str | int | float):
        raise TypeError(type(value).__name__)
    return json.dumps(value, ensure_ascii=False)


# -- paths ------------------------------------------------------------------------------------------


def _beside(folder: Path, name: str, value: Any) -> Any:
    """Make the paths in the value of a parameter relative to the folder of its file."""
    if name in ("models", "tasks", "roots"):
        return [_PATHS[name](folder, text) for text in value]
    if name == "weights" and value not in (AUTO, "random"):
        return str(folder / Path(value).expanduser())
    return str(folder / Path(value).expanduser()) if name == "results" else value


def _model(folder: Path, text: str) -> str:
    if is_model_file(text, folder):
        return str(folder / Path(text).expanduser())
    name, equals, weights = text.partition("=")
    if weights and weights not in (AUTO, "random"):
        weights = str(folder / Path(weights).expanduser())
    return f"{_if_file(folder, name)}{equals}{weights}"


def _task(folder: Path, text: str) -> str:
    name, variants = name_and_variants(text)
    return "@".join(_if_file(folder, part) for part in (name, *variants.split("@")) if part)


def _root(folder: Path, text: str) -> str:
    name, equals, path = text.rpartition("=")
    return f"{name}{equals}{folder / Path(path).expanduser()}"


def _if_file(folder: Path, text: str) -> str:
    is_file = name_and_variants(text)[0].endswith((".toml", ".txt"))
    return str(folder / Path(text).expanduser()) if is_file else text


_PATHS = {"models": _model, "tasks": _task, "roots": _root}


# -- writing ----------------------------------------------------------------------------------------


def suite_file(context: click.Context) -> str:
    """Write the options of a command as a suite file that gives the same results.

    Options of the machine, and those that have their defaults, are left out unless they were given.
    """
    values = merged(context, context.params)
    lines = [f"schema = {SCHEMA}", *_lines(context, values, RESULTS, ALWAYS)]
    tables: dict[str, list[str]] = {}
    for name, value in values[SET].items():
        protocol, dot, key = name.partition(".")
        if not dot:
            raise BenchError(f"--set {name}: must be PROTOCOL.KEY=VALUE")
        tables.setdefault(f"set.{protocol}", []).append(f"{key} = {as_toml(value)}")
    tables["machine"] = list(_lines(context, values, MACHINE))
    for title, rows in tables.items():
        lines += ["", f"[{title}]", *rows] if rows else []
    return "\n".join(lines)


def _lines(
    context: click.Context, values: Mapping[str, Any], names: Mapping[str, str], always: Iterable[str] = ()
) -> Iterable[str]:
    for key, name in names.items():
        given = context.get_parameter_source(name) != ParameterSource.DEFAULT
        value = context.meta.get(raw(name), values[name])
        if key in always or (given and value not in (None, ())):
            yield f"{key} = {as_toml(str(value) if isinstance(value, Path) else value)}"


def raw(name: str) -> str:
    """Return where in a context the text of a parameter is kept that is converted to an object."""
    return f"{__name__}.{name}"
