"""What a layout is: one way in which a dataset lies on a disk.

A task file names its layouts as `module:Class`; a module without a dot is one of this package. Several
may be listed, and the first one that is there is used. A layout only lists images, it decodes none.
"""

import pkgutil
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


def find_layout(name: str) -> type[Layout]:
    """Import a layout class by its `module:Class` name; raises LayoutError."""
    module = name.partition(":")[0]
    full = name if "." in module else f"mixmim_bench.data.{name}"
    try:
        found = pkgutil.resolve_name(full)
    except (ValueError, ImportError, AttributeError) as error:
        raise LayoutError(
            f"no layout {name!r} ({error}); write 'folder:ImageFolder', 'csvlist:CSVList' or the "
            "'package.module:Class' of your own",
            "data.layouts",
        ) from error
    return found


def build_layout(name: str, root: Path, parts: Sequence[str], options: Mapping[str, Any]) -> Layout:
    """Make a layout; options it does not know are a LayoutError."""
    cls = find_layout(name)
    try:
        return cls(root, parts, **options)
    except TypeError as error:
        raise LayoutError(f"{name}: {error}", "data.options") from error
