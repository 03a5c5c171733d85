"""The one folder for what can be made or fetched again, such as weights."""

import os
from pathlib import Path

VARIABLE = "MIXMIM_BENCH_CACHE"


def cache_folder() -> Path:
    """Return $MIXMIM_BENCH_CACHE, else the platform's cache folder; it need not exist."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("mixmim-bench", appauthor=False)
