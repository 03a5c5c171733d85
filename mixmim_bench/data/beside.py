"""Modules in files beside task files, by names that hold their paths.

So `sys.path` is left alone, two files of one name are two modules, and processes that decode images can load
what they are sent: the module `mixmim_bench.data.beside.HEX` is the file whose path `HEX` spells.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

__path__: list[str] = []  # makes this module a package, of files that lie anywhere


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
    """Run a Python file as a module, once per process; raises whatever it raises."""
    return importlib.import_module(f"{__name__}.{str(path.resolve()).encode('utf-8').hex()}")
