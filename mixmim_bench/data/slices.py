"""Slices of official parts, such as `train[:95%]`, in an order that depends only on the images' ids.

The order is stratified: every prefix has the class proportions of the part, to the nearest image. It is
derived from a hash of the ids, so a slice is the same on every machine and in every layout with these ids.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

_SLICE = re.compile(r"(?P<part>[\w.-]+)(?P<cuts>(\[[^\[\]]*\])*)")
_CUT = re.compile(r"\[(?P<start>\d+%?)?:(?P<stop>\d+%?)?(?P<per_class>/class)?\]")


@dataclass(frozen=True)
class Cut:
    """Bounds in ordered images: counts, percentages, or counts per class."""

    start: str = ""
    stop: str = ""
    per_class: bool = False

    def bounds(self, n: int) -> tuple[int, int]:
        """Return the bounds for `n` images."""
        return (_rows(self.start, n) if self.start else 0), (_rows(self.stop, n) if self.stop else n)

    @property
    def in_percent(self) -> bool:
        """Whether the bounds are percentages."""
        return all(bound.endswith("%") or not bound for bound in (self.start, self.stop))


@dataclass(frozen=True)
class Slice:
    """A slice of a part; each cut applies to the result of the previous one."""

    part: str
    cuts: tuple[Cut, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Slice":
        """Parse `part`, `part[:80%]`, `part[:5/class]`, `part[:80%][:800]` and so on; raises ValueError."""
        match = _SLICE.fullmatch(text)
        cuts = [_CUT.fullmatch(cut) for cut in re.findall(r"\[.*?\]", match["cuts"])] if match else [None]
        if match is None or not all(cuts):
            raise ValueError(
                f"{text!r} is not a slice such as 'train', 'train[:95%]', 'all[800:]', 'train[:5/class]'"
            )
        parsed = tuple(Cut(c["start"] or "", c["stop"] or "", bool(c["per_class"])) for c in cuts if c)
        for cut in parsed:
            for bound in (cut.start, cut.stop):
                if bound.endswith("%") and (cut.per_class or int(bound[:-1]) > 100):
                    of = "of each class" if cut.per_class else "of a part"
                    raise ValueError(f"{text!r} requests {bound} {of}")
        return cls(match["part"], parsed)

    def check(self, n: int) -> None:
        """Raise ValueError if the first cut exceeds a part of `n` images."""
        for cut in self.cuts[:1]:
            if not cut.per_class and max(cut.bounds(n)) > n:
                raise ValueError(
                    f"the slice needs image {max(cut.bounds(n))}, but part {self.part!r} has only {n}"
                )

    def rows(self, order: np.ndarray, strata: np.ndarray | None) -> np.ndarray:
        """Select rows of a part.

        A cut per class selects all images of classes with fewer images.

        Args:
            order: the rows of the part (n,), in the order to slice.
            strata: the class of each image (n,), if it has one.

        Raises:
            ValueError: a cut exceeds the number of images, or is per class without strata.
        """
        self.check(len(order))
        for cut in self.cuts:
            if cut.per_class:
                start, stop = cut.bounds(len(order))
                if strata is None:
                    raise ValueError("slices per class need exactly one label per image")
                rank = _rank_in_class(strata[order])
                order = order[(rank >= start) & (rank < stop)]
                continue
            start, stop = cut.bounds(len(order))
            if max(start, stop) > len(order):
                raise ValueError(f"a cut needs image {max(start, stop)}, but only {len(order)} are left")
            order = order[start:stop]
        return order


def _rows(bound: str, n: int) -> int:
    return round(n * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """Return the rank of each row within its class."""
    by_class = np.argsort(labels, kind="stable")
    ordered = labels[by_class]
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return rank


def overlap(slices: Mapping[str, Slice], sizes: Mapping[str, int]) -> str:
    """Describe the first two slices known to share images of a part, '' if there are none.

    Slices with several cuts, or whose overlap depends on an unknown size, are not checked.

    Args:
        slices: role -> slice.
        sizes: part -> number of images, where known.
    """
    for (role_a, a), (role_b, b) in combinations(slices.items(), 2):
        cuts = [each.cuts[0] if each.cuts else Cut() for each in (a, b)]
        if a.part != b.part or max(len(a.cuts), len(b.cuts)) > 1 or len({c.per_class for c in cuts}) > 1:
            continue
        size_free = cuts[0].per_class or all(cut.in_percent for cut in cuts)
        n = sizes.get(a.part, 10_000 if size_free else None)
        if n is None:
            continue
        (a_start, a_stop), (b_start, b_stop) = (cut.bounds(n) for cut in cuts)
        if max(a_start, b_start) < min(a_stop, b_stop):
            return _shared(role_a, role_b, a.part)
    return ""


def shared_rows(slices: Mapping[str, Slice], rows: Mapping[str, np.ndarray]) -> str:
    """Describe the first two roles that share images, '' if there are none."""
    for (role_a, a), (role_b, b) in combinations(slices.items(), 2):
        if a.part == b.part and len(np.intersect1d(rows[role_a], rows[role_b], assume_unique=True)):
            return _shared(role_a, role_b, a.part)
    return ""


def _shared(role_a: str, role_b: str, part: str) -> str:
    return f"{role_a} and {role_b} share images of part {part!r}"


def _number(image_id: str) -> int:
    """Hash an id to 64 bits."""
    # file names that are not valid text contain surrogates
    digest = hashlib.sha256(image_id.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")


def stratified_order(ids: np.ndarray, strata: np.ndarray | None) -> np.ndarray:
    """Return rows (n,) in an order in which every prefix is stratified.

    Within a class, images are ranked by a hash of their id; rank r of n in a class is placed at (r + 1/2) / n
    of the whole.

    Args:
        ids: the ids of the images (n,).
        strata: the class of each image (n,); without it, the hash alone determines the order.
    """
    hashes = np.fromiter(map(_number, ids.tolist()), dtype=np.uint64, count=len(ids))
    if strata is None:
        return np.argsort(hashes, kind="stable")
    by_class = np.lexsort((hashes, strata))
    sizes = np.bincount(strata, minlength=1)
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rank = np.empty(len(ids))
    rank[by_class] = np.arange(len(ids)) - first[strata[by_class]]
    return np.lexsort((hashes, (rank + 0.5) / sizes[strata]))
