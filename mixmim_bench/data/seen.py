"""Whether the images of a task are, byte for byte, those that a result was made from.

A run's identity holds id, size and label of each image, so that machines share results; bytes that change
at equal size would go unnoticed. So a record keeps a digest of the bytes, and each machine what it has seen:
which times the files had when their bytes had which digest. Where the times are others, or were never seen
here, the bytes are hashed again before a result is called finished.
"""

import dataclasses
import json
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from mixmim_bench.atomic import read_json, write_whole
from mixmim_bench.cache import cache_folder
from mixmim_bench.data.dataset import TaskData
from mixmim_bench.data.hashing import digest_of_bytes, hash_images
from mixmim_bench.specs import digest


class Seen:
    """What this machine knows of the bytes of a task's images."""

    def __init__(self, name: str, data: TaskData) -> None:
        self.data = data
        key = digest(dataclasses.asdict(data.source), 8)
        self.path = cache_folder() / "seen" / f"{name}-{key}.json"
        self.stamps = {role: split.stamp for role, split in data.splits.items()}

    def hash_again(self, advance: Callable[[int], None] = lambda _: None) -> str:
        """Hash the bytes of all images, and remember the digest."""
        found = digest_of_bytes(
            {role: hash_images(part, np.arange(len(part)), advance) for role, part in self.data.parts.items()}
        )
        self.note(found)
        return found

    def known(self) -> str:
        """Return the digest of the bytes if files have the times that they were seen with, else ''."""
        values = read_json(self.path)
        return str(values.get("bytes", "")) if values.get("stamps") == self.stamps else ""

    def note(self, digest_of_all: str) -> None:
        """Remember which bytes the files have at these times; what cannot be kept is hashed again."""
        if not digest_of_all:
            return
        with suppress(OSError):
            write_whole(self.path, json.dumps({"stamps": self.stamps, "bytes": digest_of_all}).encode())
