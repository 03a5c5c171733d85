"""Other labels for listed images, and subsets of their classes."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from mixmim_bench.data.images import Part
from mixmim_bench.data.layout import LayoutError
from mixmim_bench.data.slices import Slice, stratified_order
from mixmim_bench.errors import a_few, counted

LABELS = "data.labels"  # the key that names a file of labels
REAL = "imagenet-real"


def relabelled(part: Part, source: str, beside: Path, classes: Sequence[str]) -> Part:
    """Return a part with other labels, each image with one or more; images without any are left out.

    Args:
        part: the listed images.
        source: 'imagenet-real', the labels that "Are we done with ImageNet?" collected for ImageNet's val
            (arXiv 2006.07159; the copy in timm), or a CSV file with the columns `id` and `labels`, names of
            classes separated by spaces.
        beside: the folder that the file is relative to.
        classes: names in label order.

    Raises:
        LayoutError: the file cannot be read, or names an unknown class or no image.
    """
    where, labels = (REAL, _real_labels()) if source == REAL else _read_labels(beside / source, classes)
    rows = np.array([row for row, image in enumerate(part.ids.tolist()) if labels.get(image)], dtype=np.int64)
    if not len(rows):
        raise LayoutError(f"{where} has a label for none of the {len(part)} images", LABELS)
    vectors = np.zeros((len(rows), len(classes)), dtype=np.int8)
    for place, image in enumerate(part.ids[rows].tolist()):
        vectors[place, list(labels[image])] = 1
    kept = part.take(rows)
    return Part(kept.ids, vectors, kept.images)


def _real_labels() -> dict[str, Sequence[int]]:
    text = resources.files("timm.data").joinpath("_info/imagenet_real_labels.json").read_text()
    return {f"ILSVRC2012_val_{number:08d}": each for number, each in enumerate(json.loads(text), 1)}


def _read_labels(path: Path, classes: Sequence[str]) -> tuple[str, Mapping[str, Sequence[int]]]:
    rank = {name: label for label, name in enumerate(classes)}
    labels: dict[str, list[int]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise LayoutError(f"{path} cannot be read: {error}", LABELS) from error
    for number, row in enumerate(rows, 2):
        names = (row.get("labels") or "").split()
        if "id" not in row or row.get("labels") is None:
            raise LayoutError(f"{path} has no column 'id' or no column 'labels'", LABELS)
        for name in names:
            if name not in rank:
                raise LayoutError(f"{path}:{number}: no class {name!r}", LABELS)
        labels[row["id"] or ""] = [rank[name] for name in names]
    return str(path), labels


def of_classes(
    listed: Mapping[str, Part], classes: Sequence[str], wanted: Sequence[str] = ()
) -> tuple[dict[str, Part], tuple[str, ...]]:
    """Return the images of some classes, labelled from 0 in the order of `classes`.

    Args:
        listed: parts with one label per image.
        classes: names in label order.
        wanted: the names of the classes; by default, those that have images in every part.

    Raises:
        LayoutError: a wanted class does not exist or has no images in a part, or fewer than two are left.
    """
    relabel, names = _some(listed, classes, wanted)
    kept = {name: relabel(part) for name, part in listed.items()}
    return {name: part.take(np.flatnonzero(part.labels >= 0)) for name, part in kept.items()}, names


def rows_of_classes(
    listed: Mapping[str, Part],
    classes: Sequence[str],
    wanted: Sequence[str],
    slices: Mapping[str, Slice],
    rows: Mapping[str, np.ndarray],
) -> tuple[dict[str, Part], tuple[str, ...], dict[str, np.ndarray]]:
    """Return all images, with the label -1 where they are of other classes, and the rows of the others.

    Args:
        listed: parts with one label per image.
        classes: names in label order.
        wanted: the names of the classes.
        slices: of each role.
        rows: of each role, of all classes.

    Raises:
        LayoutError: as in `of_classes`.
    """
    relabel, names = _some(listed, classes, wanted)
    kept = {name: relabel(part) for name, part in listed.items()}
    chosen = {}
    for role, cut in slices.items():
        part = kept[cut.part]
        own = rows[role][part.labels[rows[role]] >= 0]
        chosen[role] = own[stratified_order(part.ids[own], part.labels[own])]
    return kept, names, chosen


def _some(
    listed: Mapping[str, Part], classes: Sequence[str], wanted: Sequence[str]
) -> tuple[Callable[[Part], Part], tuple[str, ...]]:
    """Return what labels images of some classes from 0, and others -1, and the names of these classes."""
    present = [set(np.unique(part.labels).tolist()) for part in listed.values()]
    if unknown := sorted(set(wanted) - set(classes)):
        raise LayoutError(f"no class {a_few(unknown)} in the data", "split")
    there = set(range(len(classes))).intersection(*present)
    chosen = [k for k, name in enumerate(classes) if (name in set(wanted) if wanted else k in there)]
    for name, labels in zip(listed, present, strict=True):
        if absent := [classes[label] for label in chosen if label not in labels]:
            raise LayoutError(f"part {name!r} has no images of {a_few(absent)}", "split")
    if len(chosen) < 2:
        raise LayoutError(
            f"{counted(len(chosen), 'class', 'classes')} of {len(classes)} have images in "
            f"{' and '.join(listed)}; a subset needs two",
            "split",
        )
    table = np.full(len(classes), -1, dtype=np.int64)
    table[chosen] = np.arange(len(chosen))
    names = tuple(classes[label] for label in chosen)
    return (lambda part: Part(part.ids, table[part.labels], part.images)), names
