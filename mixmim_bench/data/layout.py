"""What a layout is: one way in which a dataset lies on a disk.

A task file names its layouts as `module:Class`. The module is one of this package, or a Python file beside
the task file, or, with dots, any module that can be imported. Several layouts may be listed, and the first
one that is there is used. A layout only lists images, it decodes none.
"""

import importlib.util
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mixmim_bench.data.images import Part
from mixmim_bench.errors import BenchError


class LayoutError(BenchError):
    """A dataset that is there and is not what it should be; `key` is the key of the task file."""

    def __init__(self, message: str, key: str = "data") -> None:
        super().__init__(message)
        self.key = key


class Layout(Protocol):
    """A dataset on a disk."""

    def __init__(self, root: Path, parts: Sequence[str], **options: Any) -> None:
        """Remember where to look and which parts will be asked for; `options` is `[data.options]`."""

    def missing(self) -> str:
        """Say what has to be put where, '' if the dataset is there."""

    def classes(self) -> Sequence[str]:
        """Name the classes, in the order of their labels."""

    def part(self, name: str) -> Part:
        """List a part; raises LayoutError."""


def find_layout(name: str, beside: Path) -> type[Layout]:
    """Import a layout class by its `module:Class` name; `beside` is the folder of the task file.

    Raises LayoutError.
    """
    module = name.partition(":")[0]
    full, own = name, beside / f"{module}.py"
    if "." not in module and own.is_file():
        if str(beside) not in sys.path:
            sys.path.insert(0, str(beside))  # for good: processes that decode images import it too
    elif "." not in module and importlib.util.find_spec(f"mixmim_bench.data.{module}"):
        full, own = f"mixmim_bench.data.{name}", Path()
    try:
        found = pkgutil.resolve_name(full)
        taken = getattr(sys.modules.get(module), "__file__", None)
        if own.is_file() and taken is not None and not own.samefile(taken):
            raise ImportError(f"a module {module!r} is in use already, {taken}: rename {own}")
        if not isinstance(found, type):
            raise AttributeError("it names no class")
    except Exception as error:  # a module may fail in any way
        raise LayoutError(
            f"no layout {name!r} ({error}); write 'folder:ImageFolder', 'csvlist:CSVList' or the "
            "'module:Class' of your own, in a file beside the task file",
            "data.layouts",
        ) from error
    return found


def build_layout(
    name: str, beside: Path, root: Path, parts: Sequence[str], options: Mapping[str, Any]
) -> Layout:
    """Make a layout; options it does not know are a LayoutError."""
    cls = find_layout(name, beside)
    try:
        return cls(root, parts, **options)
    except TypeError as error:
        raise LayoutError(f"{name}: {error}", "data.options") from error
