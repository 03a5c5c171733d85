"""Whether the images of a task are, byte for byte, those that a result was made from.

A run's identity holds id, size and label of each image, so that machines share results; bytes that change
at equal size would go unnoticed. So a record keeps a digest of the bytes, and each machine what it has seen:
which times the files had when their bytes had which digest. Where the times are others, or were never seen
here, the bytes are hashed again before a result is called finished.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from mixmim_bench.atomic import write_whole
from mixmim_bench.cache import cache_folder
from mixmim_bench.data.dataset import TaskData
from mixmim_bench.data.images import Part, UnreadableImage
from mixmim_bench.specs import ROLES, digest

HASHING_THREADS = 4  # that wait for the disk
WIDTH = 16  # bytes of the digest of an image


def hash_images(part: Part, rows: np.ndarray, advance: Callable[[int], None] = lambda _: None) -> np.ndarray:
    """Hash the bytes of some images, (m, 16) uint8; zeros for one whose bytes cannot be read."""

    def hashed(row: int) -> bytes:
        try:
            return part.images.digest(row)
        except UnreadableImage:
            return bytes(WIDTH)

    found = np.empty((len(rows), WIDTH), dtype=np.uint8)
    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        for place, each in enumerate(threads.map(hashed, rows.tolist())):
            found[place] = np.frombuffer(each, dtype=np.uint8)
            advance(1)
    return found


def digest_of_bytes(digests: Mapping[str, np.ndarray]) -> str:
    """Hash the digests of all images, role -> (n, 16) in the order of the part."""
    hashed = hashlib.sha256()
    for role in ROLES:
        hashed.update(role.encode())
        hashed.update(np.ascontiguousarray(digests[role]).tobytes())
    return hashed.hexdigest()[:16]


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
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
            return str(values["bytes"]) if values["stamps"] == self.stamps else ""
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return ""

    def note(self, digest_of_all: str) -> None:
        """Remember which bytes the files have at these times; what cannot be kept is hashed again."""
        if not digest_of_all:
            return
        with suppress(OSError):
            write_whole(self.path, json.dumps({"stamps": self.stamps, "bytes": digest_of_all}).encode())
