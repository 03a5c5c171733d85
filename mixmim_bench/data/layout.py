"""Layouts: how the files of a dataset are arranged on disk.

A task file names its layouts as `module:Class`. The module is one of `data/layouts`, a Python file next to
the task file or, if dotted, any importable module. Code next to a task file runs only if the user trusts it.
If several layouts are listed, the first one found is used. Layouts list images without decoding them.
"""

import importlib.util
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mixmim_bench.data import layouts
from mixmim_bench.data.beside import load_file
from mixmim_bench.data.images import Part
from mixmim_bench.errors import BenchError

HUB = "hf:"  # in place of `module:`, before the name of a dataset of the Hugging Face Hub
HUB_LAYOUT = "hub:HuggingFace"
BEFORE_LAYOUTS = "mixmim_bench.data."  # the earlier package of the layout modules; still accepted


class LayoutError(BenchError):
    """A dataset that contradicts the task file; `key` is the key at fault."""

    def __init__(self, message: str, key: str = "data") -> None:
        super().__init__(message)
        self.key = key


class Layout(Protocol):
    """A dataset on disk.

    A layout that can download its dataset has a method `fetch(folder)`, which describes what it has fetched.
    A layout that can list what is there of a dataset has an attribute `partial`; once it is set to True,
    missing classes and images are no errors.
    """

    def __init__(self, root: Path, parts: Sequence[str], **options: Any) -> None:
        """Store the folder and the required parts; `options` is `[data.options]`."""

    def missing(self) -> str:
        """Describe the missing files, '' if the dataset is complete."""

    def classes(self) -> Sequence[str]:
        """Return the class names in label order."""

    def part(self, name: str) -> Part:
        """List a part; raises LayoutError."""


def find_layout(name: str, beside: Path, trusted: bool = False) -> type[Layout]:
    """Import a layout class.

    Args:
        name: `module:Class`.
        beside: the folder of the task file.
        trusted: whether code in that folder may run.

    Raises:
        LayoutError: the layout does not exist, or its code is not trusted.
    """
    module, _, attribute = name.partition(":")
    first = module.partition(".")[0]
    local_file = next((path for path in _code_files(beside, first, "." in module) if path.is_file()), None)
    if local_file is not None and not trusted:
        raise LayoutError(
            f"{name!r} is code next to the task file, {local_file}, which runs only if you trust it: review "
            "it, then pass --trust-task-code or add its folder to `trusted_tasks` in the config file",
            "data.layouts",
        )
    try:
        if local_file is not None and local_file == beside / f"{module}.py":
            layout = getattr(load_file(local_file), attribute)
        elif builtin := _builtin_module(module):
            layout = pkgutil.resolve_name(f"{builtin}:{attribute}")
        else:
            layout = pkgutil.resolve_name(name)
        if not isinstance(layout, type):
            raise AttributeError("it is not a class")
    except Exception as error:  # importing a module may fail in any way
        raise LayoutError(
            f"no layout {name!r} ({error}); use 'folder:ImageFolder', 'csvlist:CSVList' or your own "
            "'module:Class' in a file next to the task file",
            "data.layouts",
        ) from error
    return layout


def _builtin_module(module: str) -> str:
    """Return the full name of a layout module of this package, '' for any other module.

    Both `folder` and `mixmim_bench.data.folder`, its earlier name, are accepted.
    """
    name = module.removeprefix(BEFORE_LAYOUTS)
    full = f"{layouts.__name__}.{name}"
    return full if "." not in name and importlib.util.find_spec(full) else ""


def _code_files(beside: Path, name: str, dotted: bool) -> Iterator[Path]:
    """Yield the files in a folder that importing a module would run."""
    yield beside / f"{name}.py"
    if dotted and (beside / name).is_dir():
        yield from sorted((beside / name).rglob("*.py"))


def build_layout(
    name: str, beside: Path, trusted: bool, root: Path, parts: Sequence[str], options: Mapping[str, Any]
) -> Layout:
    """Create a layout; raises LayoutError for unknown options."""
    if name.startswith(HUB):
        name, options = HUB_LAYOUT, {"repository": name.removeprefix(HUB), **options}
    cls = find_layout(name, beside, trusted)
    try:
        return cls(root, parts, **options)
    except TypeError as error:
        raise LayoutError(f"{name}: {error}", "data.options") from error
