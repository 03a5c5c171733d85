"""Check that the images of a task are byte-identical to those of a result.

A run's identity covers the id, size and label of each image, so that machines can share results, but changes
that keep the size would go unnoticed. Records therefore store a digest of the bytes, and each machine
remembers the file times for which it computed a digest. For unknown times, the bytes are hashed before a
result counts as finished.
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
    """The digests of a task's images known to this machine."""

    def __init__(self, name: str, data: TaskData) -> None:
        self.data = data
        key = digest(dataclasses.asdict(data.source), 8)
        self.path = cache_folder() / "seen" / f"{name}-{key}.json"
        self.stamps = {role: split.stamp for role, split in data.splits.items()}

    def hash_again(self, advance: Callable[[int], None] = lambda _: None) -> str:
        """Hash the bytes of all images and store the digest."""
        digest_of_all = digest_of_bytes(
            {role: hash_images(part, np.arange(len(part)), advance) for role, part in self.data.parts.items()}
        )
        self.note(digest_of_all)
        return digest_of_all

    def known(self) -> str:
        """Return the digest of the bytes if it is known for the current file times, else ''."""
        values = read_json(self.path)
        return str(values.get("bytes", "")) if values.get("stamps") == self.stamps else ""

    def note(self, digest_of_all: str) -> None:
        """Store the digest for the current file times; write errors are ignored."""
        if not digest_of_all:
            return
        with suppress(OSError):
            write_whole(self.path, json.dumps({"stamps": self.stamps, "bytes": digest_of_all}).encode())
