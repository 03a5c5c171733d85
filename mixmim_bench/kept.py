"""Facts about architectures that are worked out once per version of the code, and kept.

They lie in `facts/` below the cache folder. An architecture that neither timm nor this package defines may
change at any time: its facts are kept for this process only.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import mixmim_bench
from mixmim_bench.atomic import read_json, write_whole
from mixmim_bench.cache import cache_folder
from mixmim_bench.specs import digest

VERSION = 1  # raised when a fact is worked out in another way by code outside `models/`

_OF_THIS_PROCESS: dict[tuple[str, Any], Any] = {}  # by key and the function that builds the network


def fact_of(arch: str, what: str, work_out: Callable[[], Any], *about: Any) -> Any:
    """Return a fact about an architecture that timm can build, worked out only where it is not kept.

    Args:
        arch: the architecture.
        what: names the fact.
        work_out: returns the fact, a JSON value; what it raises is not kept.
        about: JSON values that the fact depends on besides the architecture.
    """
    key = digest([VERSION, _code(), what, arch, about], 32)
    path = cache_folder() / "facts" / f"{key}.json"
    kept = read_json(path)
    if "fact" in kept:
        return kept["fact"]
    builder = _builder(arch)
    if (key, builder) in _OF_THIS_PROCESS:
        fact = _OF_THIS_PROCESS[key, builder]
    else:
        fact = work_out()
        builder = _builder(arch)  # which working out the fact may have registered
        _OF_THIS_PROCESS[key, builder] = fact
    if builder is not None and builder.__module__.startswith(("timm.", "mixmim_bench.")):
        with suppress(OSError):  # then it is worked out again next time
            write_whole(path, json.dumps({"arch": arch, "what": what, "fact": fact}).encode())
    return fact


def _builder(arch: str) -> Any:
    """Return the function that timm builds an architecture with, None if it knows none."""
    import timm

    return timm.models.model_entrypoint(arch) if timm.is_model(arch) else None


@cache
def _code() -> list[str]:
    """Identify the code that decides about networks: versions, and the state of the modules of `models/`."""
    versions = [metadata.version(name) for name in ("torch", "timm")]
    modules = sorted((Path(mixmim_bench.__file__).parent / "models").glob("*.py"))
    stats = [module.stat() for module in modules]
    return [mixmim_bench.__version__, *versions, *(f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats)]
