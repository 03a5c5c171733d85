"""Average precision of detections, as COCO defines it (arXiv 1405.0312, pycocotools), and LVIS's variant.

Detections are matched with the objects of their image and class once. What is kept of an image are its
detections' scores and classes, which of them are right at each overlap, which do not count, and how many
objects there are; average precision is computed from these for any weights of the images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
AT_ONCE = 2**23  # weights of detections
NO_CLASS = -1  # pads images with fewer detections
# LVIS: classes by the number of training images they occur in
FREQUENCIES = {"rare": (0, 10), "common": (10, 100), "frequent": (100, np.inf)}


@dataclass(frozen=True)
class Precision:
    """One of the average precisions.

    Attributes:
        by_masks: overlaps are of masks, not of boxes.
        area: a key of AREAS.
        overlaps: places in OVERLAPS, over which it is averaged.
        frequency: a key of FREQUENCIES; '' for all classes.
    """

    by_masks: bool
    area: str = "all"
    overlaps: tuple[int, ...] = tuple(range(len(OVERLAPS)))
    frequency: str = ""


def _precisions() -> dict[str, Precision]:
    table = {}
    for name, by_masks in (("ap_box", False), ("ap_mask", True)):
        table[name] = Precision(by_masks)
        table[f"{name}_50"] = Precision(by_masks, overlaps=(0,))
        table[f"{name}_75"] = Precision(by_masks, overlaps=(5,))
        for area in list(AREAS)[1:]:
            table[f"{name}_{area}"] = Precision(by_masks, area=area)
        for frequency in FREQUENCIES:
            table[f"{name}_{frequency}"] = Precision(by_masks, frequency=frequency)
    return table


PRECISIONS = _precisions()  # metrics by name


@dataclass(frozen=True)
class Found:
    """The detections of one image, the most certain first.

    Attributes:
        scores: (d,).
        labels: (d,).
        boxes: (d, 4), x0, y0, x1, y1 in pixels of the image.
        masks: run-length encoded, None for boxes only.
    """

    scores: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    masks: list[Any] | None = None


@dataclass(frozen=True)
class Matched:
    """The detections of one image, matched with its objects.

    Bit t of `hits` is set if the detection is right at the t-th overlap, of `skips` if it does not count.

    Attributes:
        hits, skips: (d, areas) uint16.
        objects: (K, areas) uint16, that count.
    """

    hits: np.ndarray
    skips: np.ndarray
    objects: np.ndarray


def match(found: Found, truth: Any, num_classes: int, by_masks: bool) -> Matched:
    """Match the detections of an image with its objects (`data.objects.Annotated`).

    Greedily, the most certain detection first, each with the object it overlaps most and which is still free.
    Crowd regions and objects outside the range of areas can be matched too, but then the detection does not
    count. Where the image states which classes are absent (LVIS), detections of other classes it has no
    object of do not count either.
    """
    d, areas = len(found.scores), len(AREAS)
    hits, skips = (np.zeros((d, areas), dtype=np.uint16) for _ in range(2))
    objects = np.zeros((num_classes, areas), dtype=np.uint16)
    low, high = np.array(list(AREAS.values())).T
    ignored = truth.crowd | (truth.areas < low[:, None]) | (truth.areas > high[:, None])  # (areas, objects)
    for area in range(areas):
        objects[:, area] = np.bincount(truth.labels[~ignored[area]], minlength=num_classes)
    sizes = _sizes(found, by_masks)
    outside = (sizes < low[:, None]) | (sizes > high[:, None])
    open_classes = _open(found, truth)
    bits = (1 << np.arange(len(OVERLAPS))).astype(np.uint16)
    for label in np.unique(found.labels):
        mine, theirs = np.flatnonzero(found.labels == label), np.flatnonzero(truth.labels == label)
        overlaps = _overlaps(found, truth, mine, theirs, by_masks)
        right, skipped = _assign(overlaps, ignored[:, theirs], truth.crowd[theirs])
        unmatched = ~right & ~skipped
        skipped |= unmatched & (outside[:, None, mine] | (label in open_classes))
        hits[mine] = (right * bits[:, None]).sum(1).T
        skips[mine] = (skipped * bits[:, None]).sum(1).T
    return Matched(hits, skips, objects)


def _open(found: Found, truth: Any) -> frozenset[int]:
    """Return the classes of detections that may be right although no object is annotated (LVIS)."""
    if truth.absent is None:
        return frozenset()
    known = {*truth.absent.tolist(), *truth.labels.tolist()}
    return frozenset({*found.labels.tolist()} - known) | frozenset(truth.incomplete.tolist())


def _sizes(found: Found, by_masks: bool) -> np.ndarray:
    if by_masks:
        from pycocotools import mask

        assert found.masks is not None
        return np.asarray(mask.area(found.masks), dtype=np.float64) if found.masks else np.empty(0)
    return (found.boxes[:, 2] - found.boxes[:, 0]) * (found.boxes[:, 3] - found.boxes[:, 1])


def _overlaps(found: Found, truth: Any, mine: np.ndarray, theirs: np.ndarray, by_masks: bool) -> np.ndarray:
    """Return the intersections over union (d, g); with a crowd region, over the detection."""
    from pycocotools import mask

    if not len(theirs):
        return np.zeros((len(mine), 0))
    crowd = truth.crowd[theirs].astype(np.uint8).tolist()
    if by_masks:
        assert found.masks is not None
        return mask.iou([found.masks[i] for i in mine], [truth.masks[i] for i in theirs], crowd)
    return mask.iou(*(_as_sizes(boxes) for boxes in (found.boxes[mine], truth.boxes[theirs])), crowd)


def _as_sizes(boxes: np.ndarray) -> np.ndarray:
    boxes = boxes.astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _assign(overlaps: np.ndarray, ignored: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Assign detections (d, g) in order; return which are right, and which hit what is ignored (a, t, d).

    ignored: (a, g); crowd: (g,).
    """
    d, g = overlaps.shape
    right, skipped = (np.zeros((len(ignored), len(OVERLAPS), d), dtype=bool) for _ in range(2))
    if not g:
        return right, skipped
    taken = np.zeros((len(ignored), len(OVERLAPS), g), dtype=bool)
    least = np.minimum(OVERLAPS, 1 - 1e-10)[None, :, None]
    for place, own in enumerate(overlaps):
        possible = (own >= least) & (~taken | crowd)
        counting = possible & ~ignored[:, None]
        candidates = np.where(counting.any(2, keepdims=True), counting, possible)
        # among equal overlaps the last one, as in pycocotools
        best = g - 1 - np.where(candidates, own, -1.0)[..., ::-1].argmax(2)
        matched = candidates.any(2)
        hit = np.take_along_axis(ignored[:, None].repeat(len(OVERLAPS), 1), best[..., None], 2)[..., 0]
        right[:, :, place] = matched & ~hit
        skipped[:, :, place] = matched & hit
        areas, levels = np.nonzero(matched)
        taken[areas, levels, best[areas, levels]] = True
    return right, skipped


# -- average precision -----------------------------------------------------------------------------


def average_precisions(
    items: Sequence[np.ndarray], weights: np.ndarray, overlaps: Sequence[int] = range(len(OVERLAPS))
) -> np.ndarray:
    """Return the average precision of each class, averaged over overlaps: (r, K), NaN for absent classes.

    Args:
        items: of n images: scores (n, d), classes (n, d), bits of hits and skips (n, d), objects (n, K).
        weights: (r, n).
        overlaps: places in OVERLAPS.
    """
    scores, labels, hits, skips, objects = items
    images, columns = np.nonzero(labels != NO_CLASS)
    labels, scores = labels[images, columns], scores[images, columns]
    hits, skips = hits[images, columns], skips[images, columns]
    order = np.lexsort((-scores, labels))  # stable: equal scores in the order of the images
    images, labels, hits, skips = (each[order] for each in (images, labels, hits, skips))
    K = objects.shape[1]
    bounds = np.searchsorted(labels, np.arange(K + 1))
    counts = weights @ objects.astype(np.float64)
    found = np.full((len(weights), K), np.nan)
    for label in np.flatnonzero(objects.any(0)):
        rows = slice(bounds[label], bounds[label + 1])
        of_class = (weights[:, images[rows]], hits[rows], skips[rows])
        present = counts[:, label] > 0
        found[present, label] = _average_precision(*of_class, counts[:, label], overlaps)[present]
    return found


def _average_precision(
    weights: np.ndarray, hits: np.ndarray, skips: np.ndarray, objects: np.ndarray, overlaps: Sequence[int]
) -> np.ndarray:
    """Average the interpolated precision at 101 recalls over overlaps, of sorted detections (r, m)."""
    at_once = max(1, AT_ONCE // max(1, weights.shape[1]))
    if len(weights) > at_once:
        pieces = [slice(start, start + at_once) for start in range(0, len(weights), at_once)]
        return np.concatenate(
            [_average_precision(weights[piece], hits, skips, objects[piece], overlaps) for piece in pieces]
        )
    if not weights.shape[1]:
        return np.zeros(len(weights))
    total = np.zeros(len(weights))
    for overlap in overlaps:
        hit, counting = (hits >> overlap & 1).astype(bool), ~(skips >> overlap & 1).astype(bool)
        right = np.cumsum(weights * (hit & counting), axis=1)
        everything = np.cumsum(weights * counting, axis=1)
        precision = right / (everything + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            recall = right / objects[:, None]
        for row in range(len(weights)):
            first = np.searchsorted(recall[row], RECALLS, side="left")
            total[row] += precision[row, first[first < len(hit)]].sum()
    return total / (len(RECALLS) * len(overlaps))
