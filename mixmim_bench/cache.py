"""The cache folder, for files that can be downloaded or computed again, such as weights."""

import os
import shutil
from pathlib import Path

VARIABLE = "MIXMIM_BENCH_CACHE"


def cache_folder() -> Path:
    """Return $MIXMIM_BENCH_CACHE, else the platform's cache folder; it may not exist yet."""
    configured = os.environ.get(VARIABLE)
    if configured:
        return Path(configured).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("mixmim-bench", appauthor=False)


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which may not exist yet."""
    parent = folder.absolute()
    while not parent.exists():
        parent = parent.parent
    return shutil.disk_usage(parent).free
