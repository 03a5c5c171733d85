"""Protocols: how a backbone is evaluated. One module per protocol and kind of task, found by scanning.

A module in a subpackage (the kind of task) exports its class as `PROTOCOL`, a subclass of
`contract.Protocol`. At the top level it imports nothing that imports torch, since listing imports all. The
effective hyper-parameters are: defaults < preset < the task file's `[recipe.<name>]` < the user's `--set`.
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

from mixmim_bench.errors import BenchError, nearest
from mixmim_bench.hyperparameters import check_values
from mixmim_bench.protocols.contract import Protocol
from mixmim_bench.specs import AUTO

# -- the table -------------------------------------------------------------------------------------


@cache
def load_protocols() -> Mapping[tuple[str, str], type[Protocol]]:
    """Scan the subpackages: (name, kind) -> protocol class; raises ValueError for duplicates."""
    modules = [
        module.name
        for kind in pkgutil.iter_modules(__path__, f"{__name__}.")
        if kind.ispkg
        for module in pkgutil.iter_modules(importlib.import_module(kind.name).__path__, f"{kind.name}.")
    ]
    table: dict[tuple[str, str], type[Protocol]] = {}
    for name in modules:
        cls = getattr(importlib.import_module(name), "PROTOCOL", None)
        if cls is None:
            continue
        if (cls.name, cls.kind) in table:
            raise ValueError(f"two protocols are called {cls.name!r} for {cls.kind}")
        table[cls.name, cls.kind] = cls
    return MappingProxyType(table)


def kinds() -> tuple[str, ...]:
    """Return the kinds of task that have protocols."""
    return tuple(sorted({kind for _, kind in load_protocols()}))


def protocol_names() -> tuple[str, ...]:
    """Return the names of all protocols."""
    return tuple(dict.fromkeys(name for name, _ in load_protocols()))


def all_presets() -> tuple[str, ...]:
    """Return the names of all presets."""
    return tuple(sorted({preset for cls in load_protocols().values() for preset in cls.presets}))


def find_protocol(name: str, kind: str) -> type[Protocol]:
    """Find a protocol by name and kind of task; raises BenchError."""
    table = load_protocols()
    if (name, kind) not in table:
        known = [known for known, of_kind in table if of_kind == kind]
        raise BenchError(f"no protocol {name!r} for {kind} tasks; {nearest(name, known)}")
    return table[name, kind]


def replaced(names: Sequence[str], kind: str) -> dict[str, str]:
    """Return the protocols of a kind of task that replace some of those asked for: asked -> replacement."""
    table = load_protocols()
    of_kind = {cls.in_place_of: name for (name, known), cls in table.items() if known == kind}
    return {name: of_kind[name] for name in names if (name, kind) not in table and name in of_kind}


def split_by_kind(names: Sequence[str], kind: str) -> tuple[list[str], list[str]]:
    """Split protocols into those available for a kind of task, replacements included, and the others.

    Raises BenchError for an unknown name.
    """
    table = load_protocols()
    for name in names:
        if name not in protocol_names():
            find_protocol(name, kind)
    others = replaced(names, kind)
    there = list(dict.fromkeys(others.get(name, name) for name in names))
    there = [name for name in there if (name, kind) in table]
    return there, [name for name in names if name not in there and name not in others]


# -- hyper-parameters ------------------------------------------------------------------------------


def check_recipe(name: str, kind: str, recipe: object) -> None:
    """Check a task's changes to a protocol against every preset; raises BenchError."""
    if not isinstance(recipe, Mapping):
        raise BenchError(f"must be a table of hyper-parameters, not {recipe!r}")
    cls = find_protocol(name, kind)
    for preset in cls.presets.values():
        cls(**check_values(cls, {**preset, **recipe}))


def resolve_protocol(
    name: str,
    kind: str,
    preset: str,
    recipe: Mapping[str, Any],
    random_weights: bool,
    counts: Mapping[str, int] | None = None,
) -> Protocol:
    """Resolve all hyper-parameters; raises BenchError.

    preset: a name, or 'auto' for the preset 'random' if it exists and the weights are random, else for that
    which suits the images per role.
    """
    cls = find_protocol(name, kind)
    changes: Mapping[str, Any] = {}
    if preset == AUTO:
        chosen = "random" if random_weights else cls.auto_preset(recipe, counts or {})
        changes = cls.presets.get(chosen, {})
    elif preset in cls.presets:
        changes = cls.presets[preset]
    elif preset not in all_presets():
        raise BenchError(f"no preset {preset!r}; {nearest(preset, [AUTO, *all_presets()])}")
    # a value that is stated is not chosen from a preset's grid
    changes = {key: value for key, value in changes.items() if key.removesuffix("_grid") not in recipe}
    return cls(**check_values(cls, {**changes, **recipe}))


def build_protocol(values: Mapping[str, Any], kind: str) -> Protocol:
    """Rebuild a protocol from `Protocol.to_dict`."""
    cls = find_protocol(values["name"], kind)
    own = {key: value for key, value in values.items() if key not in ("name", "version")}
    return cls(**check_values(cls, own))
