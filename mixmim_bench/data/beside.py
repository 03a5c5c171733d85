"""Modules in files next to task files, imported under names that encode their paths.

The module `mixmim_bench.data.beside.HEX` is the file whose path is encoded in `HEX`. `sys.path` stays
unchanged, files of the same name are separate modules, and worker processes can unpickle their objects.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

__path__: list[str] = []  # makes this module a package, whose modules may be anywhere


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        parent, _, name = fullname.rpartition(".")
        if parent != __name__:
            return None
        return importlib.util.spec_from_file_location(fullname, bytes.fromhex(name).decode("utf-8"))


sys.meta_path.append(_Finder())


def load_file(path: Path) -> ModuleType:
    """Import a Python file as a module, once per process; its errors propagate."""
    return importlib.import_module(f"{__name__}.{str(path.resolve()).encode('utf-8').hex()}")
