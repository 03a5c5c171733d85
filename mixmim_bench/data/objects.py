"""Objects: boxes, classes and masks of the objects of images, as annotated in COCO's format."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from mixmim_bench.data.images import Images

Rle = dict[str, Any]  # of pycocotools: size (h, w) and compressed counts


@dataclass(frozen=True)
class Annotated:
    """The objects of one image.

    Attributes:
        size: (h, w) of the image, as the annotations state it.
        boxes: (k, 4), x0, y0, x1, y1 in pixels.
        labels: (k,).
        crowd: (k,), whether it is a region of many objects, which is not learnt, and ignored in scoring.
        areas: (k,), by which objects are small, medium or large.
        masks: run-length encoded; None where the set has boxes only.
        absent: classes verified as absent, where only some are (LVIS); None: all others are absent.
        incomplete: classes of which not all objects are annotated (LVIS).
    """

    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    masks: list[Rle] | None
    absent: np.ndarray | None = None
    incomplete: np.ndarray | None = None


LONG = 32  # values in a row, on average, that are copied row by row


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths in one array: row i is values[ends[i]:ends[i + 1]]."""

    values: np.ndarray
    ends: np.ndarray  # (n + 1,)

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], dtype: Any, width: tuple[int, ...] = ()) -> "Ragged":
        """Pack arrays."""
        ends = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]).astype(np.int64)
        joined = np.concatenate(rows) if rows else np.empty((0, *width))
        return cls(joined.astype(dtype).reshape(-1, *width), ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.ends[row] : self.ends[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """The length of each row (n,)."""
        return np.diff(self.ends)

    def take(self, rows: np.ndarray) -> "Ragged":
        """Select rows in the given order."""
        lengths = self.lengths[rows]
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        if ends[-1] > LONG * len(rows):  # such as bytes, whose places would take eight times as much
            slices = [self.values[self.ends[row] : self.ends[row + 1]] for row in rows.tolist()]
            return Ragged(np.concatenate(slices), ends)
        places = np.repeat(self.ends[:-1][rows] - ends[:-1], lengths) + np.arange(ends[-1])
        return Ragged(self.values[places], ends)

    def joined(self, others: Sequence["Ragged"]) -> "Ragged":
        """Append rows of the same kind."""
        every = [self, *others]
        starts = np.cumsum([0, *(len(each.values) for each in every)])
        ends = [each.ends[1:] + start for each, start in zip(every, starts, strict=False)]
        return Ragged(np.concatenate([each.values for each in every]), np.concatenate([[0], *ends]))


@dataclass(frozen=True)
class Objects:
    """The objects of n images, in arrays.

    Attributes:
        sizes: (n, 2), h and w.
        boxes: rows of (k, 4): x, y, width and height, as annotated.
        labels, crowd, areas: rows of (k,).
        segments: the bytes of each object's segmentation, in the order of all objects; None without masks.
        absent, incomplete: rows of classes (LVIS), else None.
    """

    sizes: np.ndarray
    boxes: Ragged
    labels: Ragged
    crowd: Ragged
    areas: Ragged
    segments: Ragged | None
    absent: Ragged | None = None
    incomplete: Ragged | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    def load(self, row: int) -> Annotated:
        """Return the objects of one image; masks are encoded at its size."""
        boxes = self.boxes[row].copy()
        boxes[:, 2:] += boxes[:, :2]
        size = (int(self.sizes[row, 0]), int(self.sizes[row, 1]))
        masks = None
        if self.segments is not None:
            start, stop = self.boxes.ends[row : row + 2]
            masks = [encoded(self.segments[place], size) for place in range(start, stop)]
        return Annotated(
            size,
            boxes,
            self.labels[row],
            self.crowd[row],
            self.areas[row],
            masks,
            None if self.absent is None else self.absent[row],
            None if self.incomplete is None else self.incomplete[row],
        )

    def collate(self, loaded: Sequence[Any]) -> list[Any]:
        return list(loaded)

    def _members(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def take(self, rows: np.ndarray) -> "Objects":
        """Select rows in the given order."""
        taken: dict[str, Any] = {}
        for name, each in self._members().items():
            if each is None or isinstance(each, np.ndarray):
                taken[name] = None if each is None else each[rows]
            else:  # segmentations are one a row of all objects
                taken[name] = each.take(_places(self.boxes, rows) if name == "segments" else rows)
        return Objects(**taken)

    def joined(self, others: Sequence["Objects"]) -> "Objects":
        """Append the objects of other images."""
        joined: dict[str, Any] = {}
        for name, mine in self._members().items():
            theirs = [getattr(other, name) for other in others]
            if mine is None:
                joined[name] = None
            elif isinstance(mine, np.ndarray):
                joined[name] = np.concatenate([mine, *theirs])
            else:
                joined[name] = mine.joined(theirs)
        return Objects(**joined)

    def contents(self) -> Iterator[str]:
        for row in range(len(self)):
            hashed = hashlib.sha256(self.sizes[row].tobytes())
            for each in (self.boxes, self.labels, self.crowd, self.areas, self.absent, self.incomplete):
                hashed.update(b"-" if each is None else each[row].tobytes() + b"|")
            if self.segments is not None:
                start, stop = self.boxes.ends[row : row + 2]
                first, last = self.segments.ends[[start, stop]]
                hashed.update(self.segments.values[first:last].tobytes())
            yield hashed.hexdigest()[:16]

    def summary(self) -> bytes:
        hashed = hashlib.sha256()
        for each in self._members().values():
            for array in (
                () if each is None else (each,) if isinstance(each, np.ndarray) else vars(each).values()
            ):
                hashed.update(array.tobytes())
        return hashed.digest()

    def strata(self) -> np.ndarray | None:
        return None

    def per_class(self, num_classes: int) -> np.ndarray | None:
        """Count the images with an object of each class, crowd regions apart."""
        images = np.repeat(np.arange(len(self)), self.labels.lengths)
        labels = self.labels.values
        real = ~self.crowd.values & (labels >= 0) & (labels < num_classes)
        pairs = np.unique(images[real] * num_classes + labels[real])
        return np.bincount(pairs % num_classes, minlength=num_classes)

    def first_wrong(self, num_classes: int, images: Images) -> str | None:
        labels = self.labels.values
        wrong = (labels < 0) | (labels >= num_classes) | ~np.isfinite(self.boxes.values).all(1)
        wrong |= (self.boxes.values[:, 2:] < 0).any(1)
        if not wrong.any():
            without = self.crowd.values.all()
            return (
                f"none of its {len(self)} images, such as {images.name(0)}, has an object"
                if without
                else None
            )
        place = int(np.flatnonzero(wrong)[0])
        row = int(np.searchsorted(self.boxes.ends, place, side="right")) - 1
        x, y, width, height = self.boxes.values[place].tolist()
        return (
            f"an object of {images.name(row)} has the box x {x:g}, y {y:g}, width {width:g}, "
            f"height {height:g} and the class {labels[place]}; no side may be negative, classes are below "
            f"{num_classes}"
        )

    def with_objects(self) -> np.ndarray:
        """Return the rows of images with an object that can be learnt."""
        images = np.repeat(np.arange(len(self)), self.labels.lengths)
        return np.unique(images[self._learnable()])

    def _learnable(self) -> np.ndarray:
        sizes = np.repeat(self.sizes, self.labels.lengths, axis=0)
        return ~self.crowd.values & learnable(self.boxes.values, sizes)

    def remarks(self) -> list[str]:
        """Describe objects that are scored as the official evaluation does, but cannot be learnt."""
        boxes = self.boxes.values
        empty = int((~self.crowd.values & ((boxes[:, 2] <= 0) | (boxes[:, 3] <= 0))).sum())
        outside = int((~self.crowd.values & ~self._learnable()).sum()) - empty
        found = []
        if empty:
            found.append(f"{empty} boxes without an area are left out of training")
        if outside > 0:
            found.append(f"{outside} boxes outside their images are left out of training")
        return found


def _places(rows: Ragged, chosen: np.ndarray) -> np.ndarray:
    """Return the places of the values of some rows."""
    numbered = Ragged(np.arange(len(rows.values)), rows.ends)
    return numbered.take(chosen).values


def learnable(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return which boxes (m, 4) as x, y, width, height have an area within images of sizes (m, 2)."""
    low = boxes[:, :2].clip(min=0)
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], sizes[:, ::-1])
    return (high - low > 1e-3).all(1)


# -- segmentations ---------------------------------------------------------------------------------

_NONE, _POLYGONS, _COUNTS, _COMPRESSED = range(4)


def packed(segmentation: Any, image: tuple[int, int]) -> np.ndarray:
    """Pack a segmentation of COCO's format into bytes: polygons, run lengths, or compressed ones.

    Raises ValueError for anything else, and for a mask that has not the size of its image (h, w).
    """
    if not segmentation:
        return np.array([_NONE], dtype=np.uint8)
    if isinstance(segmentation, list):
        polygons = [np.asarray(polygon, dtype=np.float64) for polygon in segmentation]
        if any(p.ndim != 1 or len(p) < 6 or len(p) % 2 or not np.isfinite(p).all() for p in polygons):
            raise ValueError("a polygon needs three points or more, as x and y in turn")
        lengths = np.array([len(polygons), *map(len, polygons)], dtype=np.int64)
        return _bytes(_POLYGONS, lengths, *polygons)
    if isinstance(segmentation, dict) and {"counts", "size"} <= set(segmentation):
        size = np.array(segmentation["size"], dtype=np.int64)
        counts = segmentation["counts"]
        if size.shape != (2,):
            raise ValueError("the size of a run-length encoded mask must be [height, width]")
        if tuple(size.tolist()) != image:
            raise ValueError(
                f"the mask has {size[0]} x {size[1]} pixels, but its image {image[0]} x {image[1]}"
            )
        if isinstance(counts, str):
            from pycocotools import mask

            mask.decode({"size": size.tolist(), "counts": counts.encode()})  # raises ValueError if damaged
            return _bytes(_COMPRESSED, size, np.frombuffer(counts.encode(), dtype=np.uint8))
        runs = np.array(counts, dtype=np.int64)
        if runs.ndim != 1 or (runs < 0).any() or runs.sum() != size.prod():
            raise ValueError(f"run lengths add up to {runs.sum()}, not to {size[0]} x {size[1]} pixels")
        return _bytes(_COUNTS, size, runs)
    raise ValueError(f"must be polygons or run lengths, not {str(segmentation)[:40]}")


def _bytes(kind: int, *arrays: np.ndarray) -> np.ndarray:
    data = bytes([kind]) + b"".join(array.tobytes() for array in arrays)
    return np.frombuffer(data, dtype=np.uint8)


def encoded(segment: np.ndarray, size: tuple[int, int]) -> Rle:
    """Encode packed bytes as the mask of an image (h, w), as pycocotools does."""
    from pycocotools import mask

    height, width = size
    kind, data = int(segment[0]), segment[1:].tobytes()
    if kind == _POLYGONS:
        (count,) = np.frombuffer(data[:8], dtype=np.int64)
        lengths = np.frombuffer(data[8 : 8 + 8 * count], dtype=np.int64)
        points = np.frombuffer(data[8 + 8 * count :], dtype=np.float64)
        polygons = [each.tolist() for each in np.split(points, np.cumsum(lengths)[:-1])]
        return mask.merge(mask.frPyObjects(polygons, height, width))
    if kind == _NONE:
        return mask.encode(np.zeros((height, width), dtype=np.uint8, order="F"))
    own = np.frombuffer(data[:16], dtype=np.int64).tolist()
    if kind == _COMPRESSED:
        return {"size": own, "counts": data[16:]}
    return mask.frPyObjects({"size": own, "counts": np.frombuffer(data[16:], dtype=np.int64).tolist()}, *own)
