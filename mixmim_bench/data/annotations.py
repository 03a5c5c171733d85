"""A JSON file in COCO's format as arrays: images, objects and categories; cached for large files."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from mixmim_bench.data.layout import LayoutError
from mixmim_bench.data.listings import keep_listing, read_listing
from mixmim_bench.data.objects import Objects, Ragged, packed
from mixmim_bench.errors import a_few, counted
from mixmim_bench.specs import digest

VERSION = 1  # of what is cached
WORTH_KEEPING = 20_000_000  # bytes of JSON; less takes a second or two

Entry = dict[str, Any]


@dataclass(frozen=True)
class Annotations:
    """The content of a file.

    Attributes:
        categories: names by id, sorted by id.
        paths: of the images, as the file states them.
        objects: of the images; their labels are ids of categories.
        federated: whether images state the classes that are absent (LVIS).
    """

    categories: Mapping[int, str]
    paths: Sequence[str]
    objects: Objects
    federated: bool

    @property
    def masked(self) -> bool:
        """Whether objects have masks."""
        return self.objects.segments is not None

    def labelled(self, ids: np.ndarray, federated: bool) -> Objects:
        """Return the objects with ranks among sorted ids of categories as labels.

        federated: whether any part of the set states absent classes; a part that does not has none.
        """

        def ranked(rows: Ragged | None) -> Ragged | None:
            if rows is None:
                return Ragged.of([np.empty(0)] * len(self.paths), np.int64) if federated else None
            return Ragged(np.searchsorted(ids, rows.values), rows.ends)

        members = {field.name: getattr(self.objects, field.name) for field in fields(Objects)}
        labels = Ragged(np.searchsorted(ids, self.objects.labels.values), self.objects.labels.ends)
        absent, incomplete = ranked(self.objects.absent), ranked(self.objects.incomplete)
        return Objects(**{**members, "labels": labels, "absent": absent, "incomplete": incomplete})


def read_coco(path: Path) -> dict[str, list[Entry]]:
    """Read a file with the lists `images`, `annotations` and `categories`; raises LayoutError."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"{path} is not JSON or truncated ({error}); download it again") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise LayoutError(f"{path} has no list {key!r}")
    return content


def read_annotations(path: Path) -> Annotations:
    """Read a file, or what is cached of it by path, size and time; raises LayoutError."""
    try:
        status = path.stat()
    except OSError as error:
        raise LayoutError(f"{path}: {error.strerror}") from error
    if status.st_size < WORTH_KEEPING:
        return _parsed(path)
    name = f"annotations-{digest(str(path.absolute()))}"
    key = f"{VERSION} {status.st_size} {status.st_mtime_ns}"
    if kept := read_listing(name, key):
        return _unpacked(kept)
    found = _parsed(path)
    keep_listing(name, key, _packed(found))
    return found


def _packed(found: Annotations) -> dict[str, np.ndarray]:
    about = {
        "categories": list(found.categories.items()),
        "paths": list(found.paths),
        "federated": found.federated,
    }
    arrays = {"about": np.array(json.dumps(about)), "sizes": found.objects.sizes}
    for field in fields(Objects):
        rows = getattr(found.objects, field.name)
        if isinstance(rows, Ragged):
            arrays[f"{field.name}.values"], arrays[f"{field.name}.ends"] = rows.values, rows.ends
    return arrays


def _unpacked(file: Mapping[str, np.ndarray]) -> Annotations:
    about = json.loads(str(file["about"]))
    members: dict[str, Any] = {"sizes": file["sizes"]}
    for field in fields(Objects):
        if f"{field.name}.values" in file:
            members[field.name] = Ragged(file[f"{field.name}.values"], file[f"{field.name}.ends"])
        elif field.name != "sizes":
            members[field.name] = None
    return Annotations(dict(about["categories"]), about["paths"], Objects(**members), about["federated"])


def _parsed(path: Path) -> Annotations:
    content, where = read_coco(path), str(path)
    if not all(isinstance(entry, dict) for entries in content.values() for entry in entries):
        raise LayoutError(f"{where}: an entry is not an object")
    try:
        categories = _categories(content["categories"], where)
        paths = [_path(image) for image in content["images"]]
        objects = _objects(content, categories, where)
    except (KeyError, TypeError) as error:
        raise LayoutError(f"{where}: an entry has no {error}") from error
    if not paths:
        raise LayoutError(f"{where} lists no images")
    return Annotations(categories, paths, objects, objects.absent is not None)


def _categories(listed: Sequence[Entry], where: str) -> dict[int, str]:
    names = {category["id"]: str(category["name"]) for category in listed}
    if len(names) != len(listed):
        raise LayoutError(f"{where}: two categories have the same id")
    if not all(isinstance(category, int) for category in names):
        raise LayoutError(f"{where}: the ids of categories must be integers")
    return dict(sorted(names.items()))


def _path(image: Entry) -> str:
    """Return the file of an image; LVIS states only where it is in COCO's."""
    if "file_name" not in image and "coco_url" in image:
        return "/".join(image["coco_url"].split("/")[-2:])
    return str(image["file_name"]).replace("\\", "/")


def _objects(content: Mapping[str, Sequence[Entry]], categories: Mapping[int, str], where: str) -> Objects:
    images = content["images"]
    rows = {image["id"]: row for row, image in enumerate(images)}
    if len(rows) != len(images):
        raise LayoutError(f"{where}: two images have the same id")
    by_image: list[list[Entry]] = [[] for _ in images]
    seen: set[Any] = set()
    for entry in content["annotations"]:
        number = entry.get("id")
        if number is not None and number in seen:
            raise LayoutError(f"{where}: two annotations have the id {number}")
        seen.add(number)
        if entry["image_id"] not in rows:
            raise LayoutError(
                f"{where}: annotation {number} is of image {entry['image_id']}, which is not listed"
            )
        if entry["category_id"] not in categories:
            raise LayoutError(
                f"{where}: annotation {number} has the category {entry['category_id']}, which is not in "
                "`categories`"
            )
        by_image[rows[entry["image_id"]]].append(entry)
    sizes = [(int(image["height"]), int(image["width"])) for image in images]
    federated = any("neg_category_ids" in image for image in images)
    return Objects(
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        boxes=Ragged.of([_boxes(entries, where) for entries in by_image], np.float64, (4,)),
        labels=_rows_of(by_image, lambda entry: entry["category_id"], np.int64),
        crowd=_rows_of(by_image, lambda entry: bool(entry.get("iscrowd", 0)), np.bool_),
        areas=_rows_of(by_image, _area, np.float64),
        segments=_segments(by_image, sizes, where),
        absent=_classes_of(images, "neg_category_ids") if federated else None,
        incomplete=_classes_of(images, "not_exhaustive_category_ids") if federated else None,
    )


def _rows_of(by_image: Sequence[Sequence[Entry]], read: Any, dtype: Any) -> Ragged:
    return Ragged.of(
        [np.array([read(entry) for entry in entries], dtype=dtype) for entries in by_image], dtype
    )


def _classes_of(images: Sequence[Entry], key: str) -> Ragged:
    return Ragged.of([np.array(image.get(key, ()), dtype=np.int64) for image in images], np.int64)


def _boxes(entries: Sequence[Entry], where: str) -> np.ndarray:
    boxes = np.empty((len(entries), 4))
    for place, entry in enumerate(entries):
        box = entry["bbox"]
        if not (isinstance(box, list) and len(box) == 4 and all(isinstance(x, int | float) for x in box)):
            message = f"annotation {entry.get('id')} has the box {box}, not [x, y, width, height]"
            raise LayoutError(f"{where}: {message}")
        boxes[place] = box
    return boxes


def _area(entry: Entry) -> float:
    area = entry.get("area")
    if not isinstance(area, int | float):
        return float(entry["bbox"][2]) * float(entry["bbox"][3])
    return float(area) if math.isfinite(area) else 0.0


def _segments(
    by_image: Sequence[Sequence[Entry]], sizes: Sequence[tuple[int, int]], where: str
) -> Ragged | None:
    """Pack the masks of all objects; None if there are none."""
    entries = [(entry, size) for each, size in zip(by_image, sizes, strict=True) for entry in each]
    without = [str(entry.get("id")) for entry, _ in entries if not entry.get("segmentation")]
    if len(without) == len(entries):
        return None
    if without:
        raise LayoutError(
            f"{where}: {counted(len(without), 'annotation')} of {len(entries)} have no segmentation, such as "
            f"{a_few(without)}; either all objects have a mask, or none"
        )
    segments = []
    for entry, size in entries:
        try:
            segments.append(packed(entry["segmentation"], size))
        except (ValueError, TypeError) as error:
            message = f"the segmentation of annotation {entry.get('id')}: {error}"
            raise LayoutError(f"{where}: {message}") from error
    return Ragged.of(segments, np.uint8)
