"""Hash what an object computes with: its code, and everything of the user's that this code refers to.

Objects of a Python session have no file or version to be identified by. The code of installed packages is
identified by their versions; that of the user (scripts, notebooks, editable installs) is followed by name
from each function to the functions, classes and values that it uses.
"""

import datetime
import enum
import functools
import hashlib
import re
import sys
import sysconfig
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import nn

from mixmim_bench.specs import digest

# types whose representation says all about a value
_DESCRIBED = (
    *(np.generic, np.dtype, torch.dtype, torch.device, torch.Size),
    *(range, slice, re.Pattern, enum.Enum, PurePath, datetime.timedelta),
)
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_INSTALLED = tuple({sysconfig.get_paths()[name] for name in ("purelib", "platlib", "stdlib", "platstdlib")})


def code_digest(*objects: Any) -> str:
    """Hash functions, classes and instances, with the values in them: numbers, texts, arrays, tensors.

    Of modules, parameters and buffers are described by their shapes only: hash the weights as well.
    """
    seen: dict[int, Any] = {}
    return digest(list(_lines(objects, seen)))


def _lines(objects: Iterable[Any], seen: dict[int, Any]) -> Iterator[str]:
    """Yield a line for everything that is found, following references; `seen` keeps objects alive."""
    todo = list(objects)
    while todo:
        each = todo.pop()
        if isinstance(each, _PLAIN) or id(each) in seen:
            continue
        seen[id(each)] = each
        if isinstance(each, functools.partial):
            yield f"partial {_plain(each.args)} {_plain(each.keywords)}"
            todo += [each.func, *each.args, *each.keywords.values()]
        elif isinstance(each, types.MethodType):
            todo += [each.__func__, each.__self__]
        elif isinstance(each, types.FunctionType):
            yield f"function {each.__qualname__} {_version(each.__module__) or _source(each)}"
            if not _version(each.__module__):
                yield from _values_of(each)
                todo += _used_by(each)
        elif isinstance(each, type):
            yield f"class {each.__qualname__} {_version(each.__module__)}"
            if not _version(each.__module__):
                yield _plain(_attributes(each))
                todo += [*each.__bases__, *_members(each)]
        elif isinstance(each, types.ModuleType | types.BuiltinFunctionType):
            yield f"{getattr(each, '__name__', each)} {_version(getattr(each, '__name__', ''))}"
        elif isinstance(each, Mapping):
            yield _plain(each)
            todo += each.values()
        elif isinstance(each, list | tuple | set | frozenset):
            yield _plain(each)
            todo += each if isinstance(each, list | tuple) else sorted(each, key=_plain)
        else:
            yield f"{type(each).__qualname__} {_plain(_state(each))}"
            todo += [type(each), *_state(each).values()]


def _version(module: str | None) -> str:
    """Return the version of the installed package of a module, '' for the user's own code."""
    name = (module or "").partition(".")[0]
    if name in sys.builtin_module_names or name in sys.stdlib_module_names:
        return "python" if name != "__main__" else ""
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    if not file.startswith(_INSTALLED) and name != "mixmim_bench":
        return ""
    try:
        return f"{name} {metadata.version(_distribution(name))}"
    except metadata.PackageNotFoundError:
        return f"{name} installed"


@functools.cache
def _distribution(name: str) -> str:
    return (metadata.packages_distributions().get(name) or [name])[0]


def _source(function: types.FunctionType) -> str:
    """Return what a function does: its compiled code, which does not change with comments."""
    code = function.__code__
    documented = code.co_consts[:1] == (function.__doc__,)  # None where there is no docstring
    return _code(code, skip=int(documented and code.co_name != "<lambda>"))


def _code(code: types.CodeType, skip: int = 0) -> str:
    constants = [
        _code(each) if isinstance(each, types.CodeType) else f"{type(each).__name__} {_plain(each)}"
        for each in code.co_consts[skip:]
    ]
    names = (code.co_names, code.co_varnames, code.co_freevars)
    return f"{code.co_code.hex()} {constants} {names}"


def _values_of(function: types.FunctionType) -> Iterator[str]:
    """Yield the plain values that a function uses: defaults, closures, globals."""
    yield f"{function.__qualname__} {_plain(function.__defaults__)} {_plain(function.__kwdefaults__)}"
    for name, value in _names_of(function):
        if isinstance(value, _PLAIN):
            yield f"{function.__qualname__}.{name} = {value!r}"


def _used_by(function: types.FunctionType) -> list[Any]:
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return [*defaults, *(value for _, value in _names_of(function))]


def _names_of(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the globals and closed-over values that a function names, and what it names of modules."""
    names = set(_all_names(function.__code__))
    for name in sorted(names):
        if name in function.__globals__:
            value = function.__globals__[name]
            yield name, value
            yield from _of_module(value, names)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def _of_module(value: Any, names: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield what code names of a user's module, and of the modules in it."""
    if not isinstance(value, types.ModuleType) or _version(value.__name__):
        return
    for each in sorted(names):
        if each in vars(value) and vars(value)[each] is not value:
            yield each, vars(value)[each]
            yield from _of_module(vars(value)[each], [name for name in names if name != each])


def _all_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _all_names(constant)


_NOT_CODE = ("__module__", "__doc__", "__qualname__", "__firstlineno__", "__static_attributes__")


def _attributes(cls: type) -> dict[str, Any]:
    """Return the values among the attributes of a class."""
    return {
        name: value
        for name, value in vars(cls).items()
        if name not in _NOT_CODE and not callable(value) and not hasattr(value, "__get__")
    }


def _members(cls: type) -> list[Any]:
    members = [getattr(each, "__func__", each) for each in vars(cls).values()]
    members += [each.fget for each in vars(cls).values() if isinstance(each, property)]
    return [each for each in members if not isinstance(each, types.GetSetDescriptorType | property)]


def _state(instance: Any) -> dict[str, Any]:
    """Return the attributes of an instance, without those that follow from the rest."""
    state = getattr(instance, "__dict__", {})
    state = {  # the keys of hooks count those of the process
        key: list(value.values()) if "_hooks" in key and isinstance(value, dict) else value
        for key, value in state.items()
        if key not in ("training", "_version")
    }
    if isinstance(instance, nn.Module):
        for key in ("_parameters", "_buffers"):
            shapes = {name: None if t is None else [*t.shape] for name, t in state.get(key, {}).items()}
            state[key] = shapes
    slots = getattr(type(instance), "__slots__", ())
    slots = (slots,) if isinstance(slots, str) else slots
    return {**state, **{name: getattr(instance, name) for name in slots if hasattr(instance, name)}}


def _plain(value: Any) -> str:
    """Describe a value, in an order that does not depend on the process."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_plain(k)}: {_plain(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(_plain, value))) + "}"
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {_plain(value.detach().cpu().float().numpy())}"
    if isinstance(value, np.ndarray) and value.dtype != object:
        return (
            f"{value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
        )
    text = repr(value) if isinstance(value, _DESCRIBED) else ""
    return f"{type(value).__qualname__} {text}"
