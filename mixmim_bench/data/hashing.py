"""Digests of image bytes, computed by several threads and compared between splits."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mixmim_bench.data.images import Part, UnreadableImage
from mixmim_bench.specs import ROLES

THREADS = 4  # mostly waiting for the disk
AHEAD = 1024  # images queued for the threads at a time
WIDTH = 16  # bytes of the digest of an image


def read_images(
    part: Part, rows: np.ndarray, decode: Collection[int] = (), threads: int = THREADS
) -> Iterator[tuple[bytes, str]]:
    """Read images and hash their bytes.

    Args:
        part: the images.
        rows: the rows to read.
        decode: rows to decode as well.
        threads: number of reading threads.

    Yields:
        For each row, its 16-byte digest and "", or b"" and the reason for the failure.
    """

    def read(row: int) -> tuple[bytes, str]:
        try:
            if row in decode:
                part.images.load(row)
            return part.images.digest(row), ""
        except UnreadableImage as error:
            return b"", str(error)

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(rows), AHEAD):
            yield from pool.map(read, rows[start : start + AHEAD].tolist())


def hash_images(part: Part, rows: np.ndarray, advance: Callable[[int], None] = lambda _: None) -> np.ndarray:
    """Hash the bytes of images to (m, 16) uint8, with zeros for unreadable images."""
    digests = np.empty((len(rows), WIDTH), dtype=np.uint8)
    for i, (digest, _) in enumerate(read_images(part, rows)):
        digests[i] = np.frombuffer(digest or bytes(WIDTH), dtype=np.uint8)
        advance(1)
    return digests


def digest_of_bytes(digests: Mapping[str, np.ndarray]) -> str:
    """Hash the digests (n, 16) of all images, given by role."""
    hashed = hashlib.sha256()
    for role in [role for role in ROLES if role in digests]:
        hashed.update(role.encode())
        hashed.update(np.ascontiguousarray(digests[role]).tobytes())
    return hashed.hexdigest()[:16]


def count_duplicates(digests: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Count val images that also occur in train, and test images that also occur in train or val, by bytes.

    Args:
        digests: role -> (n, 16) uint8; images with a digest of zeros are ignored.
    """
    empty = np.empty((0, WIDTH), dtype=np.uint8)
    by_role = [digests.get(role, empty) for role in ROLES]
    train, val, test = (each[each.any(1)].copy().view(f"V{WIDTH}").ravel() for each in by_role)
    return {
        "val_in_train": int(np.isin(val, train).sum()),
        "test_in_train_or_val": int(np.isin(test, np.concatenate([train, val])).sum()),
    }
