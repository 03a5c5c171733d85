"""The one folder for what can be made or fetched again, such as weights."""

import os
import shutil
from pathlib import Path

VARIABLE = "MIXMIM_BENCH_CACHE"


def cache_folder() -> Path:
    """Return $MIXMIM_BENCH_CACHE, else the platform's cache folder; it need not exist."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("mixmim-bench", appauthor=False)


def free_bytes(folder: Path) -> int:
    """Count what is free on the disk of a folder, which need not exist yet."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
