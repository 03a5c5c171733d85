"""What is known of a dataset's files, kept in `listings/` in the cache folder."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mixmim_bench.atomic import writing_whole
from mixmim_bench.cache import cache_folder


def read_listing(name: str, key: str) -> dict[str, np.ndarray] | None:
    """Read the arrays that were kept under a name; None if they belong to another key or are damaged."""
    try:
        with _path(name).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if str(file["key"]) == key:
                return {each: file[each] for each in file.files if each != "key"}
    except Exception:  # a damaged file is replaced
        pass
    return None


def keep_listing(name: str, key: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Keep arrays in place of those of an earlier key; on a disk that is full they are computed again."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, key=np.array(key), **arrays)
    try:
        with writing_whole(_path(name)) as file:
            file.write(content.getbuffer())
    except OSError:
        pass


def _path(name: str) -> Path:
    return cache_folder() / "listings" / f"{name}.npz"
