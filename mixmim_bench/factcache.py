"""A cache of facts about architectures, computed once per version of the code.

It is in `facts/` in the cache folder. An architecture defined outside timm and this package may change at any
time, so its facts are cached for this process only.
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

_IN_PROCESS: dict[tuple[str, Any], Any] = {}  # by key and the function that builds the network


def fact_of(arch: str, what: str, work_out: Callable[[], Any], *about: Any) -> Any:
    """Return a fact about an architecture that timm can build, computing it only if it is not cached.

    Args:
        arch: the architecture.
        what: the name of the fact.
        work_out: computes the fact, a JSON value; errors are not cached.
        about: JSON values that the fact depends on besides the architecture.
    """
    key = digest([_code(), what, arch, about], 32)
    path = cache_folder() / "facts" / f"{key}.json"
    cached = read_json(path)
    if "fact" in cached:
        return cached["fact"]
    builder = _builder(arch)
    if (key, builder) in _IN_PROCESS:
        fact = _IN_PROCESS[key, builder]
    else:
        fact = work_out()
        builder = _builder(arch)  # computing the fact may have registered it
        _IN_PROCESS[key, builder] = fact
    if builder is not None and builder.__module__.startswith(("timm.", "mixmim_bench.")):
        with suppress(OSError):  # computed again next time
            write_whole(path, json.dumps({"arch": arch, "what": what, "fact": fact}).encode())
    return fact


def _builder(arch: str) -> Any:
    """Return timm's function that builds an architecture, None if it has none."""
    import timm

    return timm.models.model_entrypoint(arch) if timm.is_model(arch) else None


@cache
def _code() -> list[str]:
    """Identify the code behind all facts: library versions, size and time of this package's modules."""
    versions = [metadata.version(name) for name in ("torch", "timm")]
    stats = [module.stat() for module in sorted(Path(mixmim_bench.__file__).parent.rglob("*.py"))]
    return [*versions, *(f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats)]
