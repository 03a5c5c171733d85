"""Slices of official parts, `train[:95%]`, cut from an order that only the images' ids decide.

The order is stratified: every prefix holds each class in its share, to the nearest image. It comes from
a hash of the images' ids, so a slice is the same on every machine, and in every layout that gives an image
the same id.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

_SLICE = re.compile(r"(?P<part>[\w.-]+)(\[(?P<start>\d+%?)?:(?P<stop>\d+%?)?\])?")


@dataclass(frozen=True)
class Slice:
    """A slice of one part; the bounds are counts of images or, with %, shares of the part."""

    part: str
    start: str = ""
    stop: str = ""

    @classmethod
    def parse(cls, text: str) -> "Slice":
        """Read `part`, `part[:80%]`, `part[1000:1500]`; raises ValueError."""
        match = _SLICE.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a slice such as 'train', 'train[:95%]', 'all[800:]'")
        found = cls(match["part"], match["start"] or "", match["stop"] or "")
        for bound in (found.start, found.stop):
            if bound.endswith("%") and int(bound[:-1]) > 100:
                raise ValueError(f"{text!r} asks for {bound} of a part")
        return found

    def bounds(self, n: int) -> tuple[int, int]:
        """Give the first row and the one after the last, of a part of `n` images; raises ValueError."""
        start = _rows(self.start, n) if self.start else 0
        stop = _rows(self.stop, n) if self.stop else n
        if max(start, stop) > n:
            raise ValueError(f"the slice asks for image {max(start, stop)} of the {n} of part {self.part!r}")
        return start, stop

    @property
    def in_percent(self) -> bool:
        """Whether the bounds hold for a part of any size."""
        return all(bound.endswith("%") or not bound for bound in (self.start, self.stop))


def _rows(bound: str, n: int) -> int:
    return round(n * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)


def overlap(slices: Mapping[str, Slice], sizes: Mapping[str, int]) -> str:
    """Describe the first two slices that share images of a part, '' if there are none.

    sizes: part -> images. A part whose size is not known is only checked as far as that is not needed.
    """
    for (role_a, a), (role_b, b) in combinations(slices.items(), 2):
        if a.part != b.part:
            continue
        n = sizes.get(a.part, 10_000 if a.in_percent and b.in_percent else None)
        if n is None:
            continue
        (a_start, a_stop), (b_start, b_stop) = a.bounds(n), b.bounds(n)
        if max(a_start, b_start) < min(a_stop, b_stop):
            return f"{role_a} and {role_b} share images of part {a.part!r}"
    return ""


def _number(image_id: str) -> int:
    """Hash an id; a file name that is no text has surrogates in it."""
    digest = hashlib.sha256(image_id.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")


def stratified_order(ids: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Order images so that every prefix is stratified: the rows, (n,).

    Within a class images are ranked by a hash of their id; an image of rank r among n of its class
    stands at (r + 1/2) / n of the whole.
    """
    hashes = np.array(
        [_number(str(image_id)) for image_id in ids],
        dtype=np.uint64,
    )
    by_class = np.lexsort((hashes, labels))
    sizes = np.bincount(labels, minlength=1)
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rank = np.empty(len(ids))
    rank[by_class] = np.arange(len(ids)) - first[labels[by_class]]
    return np.lexsort((hashes, (rank + 0.5) / sizes[labels]))
