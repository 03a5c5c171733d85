"""Networks converted for an engine, kept in `engines/` in the cache folder under a hash of what made them."""

import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mixmim_bench.atomic import read_json, write_whole
from mixmim_bench.cache import cache_folder
from mixmim_bench.features import EXTRACTOR_VERSION
from mixmim_bench.specs import OPENVINO, canonical_json, digest

SCHEMA = 1


def folder() -> Path:
    """Return the folder of the converted networks."""
    return cache_folder() / "engines"


def converted_networks() -> list["Converted"]:
    """Return all converted networks, also unfinished, damaged and refused ones."""
    keys = {path.name.strip(".").partition(".")[0] for path in folder().glob("*") if path.suffix != ".lock"}
    return [Converted(folder() / key) for key in sorted(keys)]


def converted_network(key: Mapping[str, Any], layers: Sequence[str]) -> "Converted":
    """Return the converted network of a source key and layers; it may not exist yet."""
    made_by = {**key, "layers": list(layers), **_versions()}
    return Converted(folder() / digest(made_by, 32), made_by)


def _versions() -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in (OPENVINO, "torch", "timm")}
    return {"extractor": EXTRACTOR_VERSION, "versions": versions}


class Converted:
    """A converted network: its files, and `whole.json`, written last.

    Args:
        path: its folder.
        made_by: everything that determines it; read from the manifest if not given.
    """

    def __init__(self, path: Path, made_by: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.key = path.name
        self.made_by: Mapping[str, Any] = self.manifest().get("made_by", {}) if made_by is None else made_by

    @property
    def partial(self) -> Path:
        """The folder in which the network is converted, under the lock."""
        return self.path.with_name(f".{self.key}")

    def _kept(self) -> list[Path]:
        """Return the folders and files of the network, and what is remembered of it."""
        paths = [self.path, self.partial, *self.path.parent.glob(f"{self.key}.*.json")]
        return [path for path in paths if path.exists()]

    def manifest(self) -> dict[str, Any]:
        """Read the manifest; empty if there is none."""
        return read_json(self.path / "whole.json")

    def write_manifest(self, layers: Sequence[str]) -> None:
        """Declare the network complete, with the layers in the order of its outputs."""
        files = {file.name: file.stat().st_size for file in sorted(self.path.iterdir())}
        manifest = {"schema": SCHEMA, "layers": list(layers), "files": files, "made_by": dict(self.made_by)}
        write_whole(self.path / "whole.json", canonical_json(manifest).encode())

    def is_whole(self) -> bool:
        """Return whether the network is complete, by the sizes of its files."""
        manifest = self.manifest()
        files = manifest.get("files")
        if manifest.get("schema") != SCHEMA or not isinstance(files, dict):
            return False
        paths = {self.path / name: size for name, size in files.items()}
        return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())

    def is_current(self) -> bool:
        """Return whether the installed versions would use it."""
        return {name: self.made_by.get(name) for name in ("extractor", "versions")} == _versions()

    def lock(self) -> FileLock:
        """Return the lock that a process holds while it converts or opens the network."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.with_suffix(".lock"))

    def reason_against(self, precision: str) -> str:
        """Return why the network cannot be used in a precision, as found before; '' if not known."""
        return read_json(self._refused(precision)).get("reason", "")

    def refuse(self, precision: str, reason: str) -> None:
        """Remember why the network cannot be used in a precision."""
        write_whole(self._refused(precision), canonical_json({"reason": reason}).encode())

    def _refused(self, precision: str) -> Path:
        return self.path.with_suffix(f".{precision}.json")

    def touch(self) -> None:
        """Note the time of use."""
        os.utime(self.path / "whole.json")

    def last_used(self) -> datetime:
        """Return the time of last use."""
        marker = self.path / "whole.json"
        path = marker if marker.exists() else self._kept()[0]
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)

    def bytes(self) -> int:
        """Return the size on disk."""
        files = [file for path in self._kept() for file in (path.iterdir() if path.is_dir() else [path])]
        return sum(file.stat().st_size for file in files)

    def remove(self) -> bool:
        """Remove the network with what is remembered of it; return False if another process uses it."""
        try:
            with self.lock().acquire(timeout=0):
                for path in self._kept():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        except Timeout:
            return False
        return True
