"""The provenance of a result: versions of this package, of its libraries and of the system."""

import platform
import subprocess
from functools import cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import mixmim_bench

_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scikit-learn", "accelerate", "pillow")


@cache
def provenance() -> dict[str, Any]:
    """Return the versions behind a result: this package, its commit if a checkout, and its libraries."""
    versions = {name: metadata.version(name) for name in _LIBRARIES}
    return {
        "mixmim_bench": mixmim_bench.__version__,
        **_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
    }


@cache
def package_digest() -> str:
    """Hash the code of this package, the same on every machine that has it."""
    folder = Path(mixmim_bench.__file__).parent
    hashed = sha256()
    for path in sorted(folder.rglob("*.py")):
        hashed.update(f"{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return hashed.hexdigest()[:16]


def _commit() -> dict[str, Any]:
    """Return the commit of the checkout that the package runs from; empty if it is installed."""
    root = Path(mixmim_bench.__file__).parent.parent
    if not (root / ".git").exists():
        return {}

    def git(*args: str) -> str:
        command = ["git", "-C", str(root), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", ":!results")  # runs write there
        return {"git_sha": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {}
