"""Objects in COCO's format: one JSON file per part, and folders of images."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixmim_bench.data.classes import Classes
from mixmim_bench.data.cocojson import read_coco
from mixmim_bench.data.files import Files
from mixmim_bench.data.images import Part
from mixmim_bench.data.layout import LayoutError
from mixmim_bench.data.layouts.folder import image_id
from mixmim_bench.data.objects import Objects, Ragged, packed
from mixmim_bench.errors import a_few, counted

Entry = dict[str, Any]


class COCO:
    """COCO, LVIS, and any set in their format.

    Labels are the ranks of the category ids, which may have gaps. Images without objects are kept. Masks are
    polygons or run lengths; a set in which no object has one has boxes only. Where images state
    `neg_category_ids` and `not_exhaustive_category_ids`, as in LVIS, only these and the classes of their
    objects are scored.

    Args:
        root: the folder.
        parts: the required parts.
        annotations: part -> JSON file.
        images: part -> folder of the images; by default the folder PART, images/PART, images or the root,
            whichever has the first image.
        ids: what identifies an image: `path`, `name` or `class/name`, as in `folder:ImageFolder`.
    """

    def __init__(
        self,
        root: Path,
        parts: Sequence[str],
        annotations: Mapping[str, str],
        images: Mapping[str, str] | None = None,
        ids: str = "path",
    ) -> None:
        self.root = root
        self.parts = tuple(parts)
        for key, value in (("annotations", annotations), ("images", images or {})):
            if not isinstance(value, Mapping):
                reason = f"must be a table such as {{ train = '…' }}, not {value!r}"
                raise LayoutError(reason, f"data.options.{key}")
        self.files = dict(annotations)
        self.folders = dict(images or {})
        self.ids = ids
        for part in self.parts:
            if part not in self.files:
                raise LayoutError(f"no JSON file given for part {part!r}", "data.options.annotations")

    def missing(self) -> str:
        not_found = [str(self._file(part)) for part in self.parts if not self._file(part).is_file()]
        return f"annotations {', '.join(not_found)}" if not_found else ""

    def _file(self, part: str) -> Path:
        return self.root / self.files[part]

    @cached_property
    def _categories(self) -> dict[int, str]:
        """The names of the categories by id, sorted; all parts must have the same."""
        tables = {}
        for part in self.parts:
            listed = self._read(part)["categories"]
            try:
                tables[part] = {category["id"]: str(category["name"]) for category in listed}
            except (KeyError, TypeError) as error:
                raise LayoutError(f"{self._file(part)}: a category has no {error}") from error
            if len(tables[part]) != len(listed):
                raise LayoutError(f"{self._file(part)}: two categories have the same id")
        first, *others = self.parts
        for part in others:
            if tables[part] != tables[first]:
                raise LayoutError(f"{self._file(part)} and {self._file(first)} have different categories")
        if not all(isinstance(category, int) for category in tables[first]):
            raise LayoutError(f"{self._file(first)}: the ids of categories must be integers")
        return dict(sorted(tables[first].items()))

    def _read(self, part: str) -> dict[str, list[Entry]]:
        if part not in self._contents:
            content = self._contents[part] = read_coco(self._file(part))
            if not all(isinstance(entry, dict) for entries in content.values() for entry in entries):
                raise LayoutError(f"{self._file(part)}: an entry is not an object")
            self._masked[part] = any(entry.get("segmentation") for entry in content["annotations"])
            self._federated[part] = any("neg_category_ids" in image for image in content["images"])
        return self._contents[part]

    @cached_property
    def _masked(self) -> dict[str, bool]:
        """Which parts have masks."""
        return {}

    @cached_property
    def _federated(self) -> dict[str, bool]:
        """Which parts state the classes that are absent (LVIS)."""
        return {}

    @cached_property
    def _contents(self) -> dict[str, dict[str, list[Entry]]]:
        return {}

    def classes(self) -> Sequence[str]:
        names = list(self._categories.values())
        repeated = len(set(names)) < len(names)
        return Classes.of_option(list(map(str, self._categories)) if repeated else names).names

    def part(self, name: str) -> Part:
        """List a part; raises LayoutError that names the file and what is wrong in it."""
        label_of = {category: label for label, category in enumerate(self._categories)}
        masked, federated = any(self._masked.values()), any(self._federated.values())
        content = self._read(name)
        self._contents.pop(name)  # gigabytes for the largest sets
        where = str(self._file(name))
        try:
            objects = _objects(content, label_of, where, masked, federated)
            paths = [_path(image) for image in content["images"]]
        except (KeyError, TypeError) as error:
            raise LayoutError(f"{where}: an entry is not an object, or has no {error}") from error
        if not paths:
            raise LayoutError(f"{where} lists no images")
        images = Files(self.root, self._located(name, paths))
        images.check_listed(where)
        ids = np.array([image_id(images.paths[row], self.ids) for row in range(len(paths))])
        return Part(ids, objects, images)

    def _located(self, part: str, paths: Sequence[str]) -> list[str]:
        """Return the paths of images relative to the root."""
        stated = self.folders.get(part)
        folders = [part, f"images/{part}", "images", "."] if stated is None else [stated]
        found = next((f for f in folders if (self.root / f / paths[0]).is_file()), folders[0])
        return [(Path(found) / path).as_posix() for path in paths]


def _path(image: Entry) -> str:
    """Return the file of an image; LVIS states only where it is in COCO's."""
    if "file_name" not in image and "coco_url" in image:
        return "/".join(image["coco_url"].split("/")[-2:])
    return str(image["file_name"]).replace("\\", "/")


def _objects(
    content: Mapping[str, Sequence[Entry]],
    label_of: Mapping[int, int],
    where: str,
    masked: bool,
    federated: bool,
) -> Objects:
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
        if entry["category_id"] not in label_of:
            raise LayoutError(
                f"{where}: annotation {number} has the category {entry['category_id']}, which is not in "
                "`categories`"
            )
        by_image[rows[entry["image_id"]]].append(entry)
    sizes = [(int(image["height"]), int(image["width"])) for image in images]
    return Objects(
        sizes=np.array([[image["height"], image["width"]] for image in images], dtype=np.int64).reshape(
            -1, 2
        ),
        boxes=Ragged.of([_boxes(entries, where) for entries in by_image], np.float64, (4,)),
        labels=_rows_of(by_image, lambda entry: label_of[entry["category_id"]], np.int64),
        crowd=_rows_of(by_image, lambda entry: bool(entry.get("iscrowd", 0)), np.bool_),
        areas=_rows_of(by_image, _area, np.float64),
        segments=_segments(by_image, sizes, where) if masked else None,
        absent=_classes_of(images, "neg_category_ids", label_of) if federated else None,
        incomplete=_classes_of(images, "not_exhaustive_category_ids", label_of) if federated else None,
    )


def _rows_of(by_image: Sequence[Sequence[Entry]], read: Any, dtype: Any) -> Ragged:
    return Ragged.of(
        [np.array([read(entry) for entry in entries], dtype=dtype) for entries in by_image], dtype
    )


def _classes_of(images: Sequence[Entry], key: str, label_of: Mapping[int, int]) -> Ragged:
    listed = [[label_of[category] for category in image.get(key, ())] for image in images]
    return Ragged.of([np.array(labels, dtype=np.int64) for labels in listed], np.int64)


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


def _segments(by_image: Sequence[Sequence[Entry]], sizes: Sequence[tuple[int, int]], where: str) -> Ragged:
    """Pack the masks of all objects."""
    entries = [(entry, size) for each, size in zip(by_image, sizes, strict=True) for entry in each]
    without = [str(entry.get("id")) for entry, _ in entries if not entry.get("segmentation")]
    if without:
        raise LayoutError(
            f"{where}: {counted(len(without), 'annotation')} of {len(entries)} have no segmentation, such as "
            f"{a_few(without)}; either all objects of all parts have a mask, or none"
        )
    segments = []
    for entry, size in entries:
        try:
            segments.append(packed(entry["segmentation"], size))
        except (ValueError, TypeError) as error:
            message = f"the segmentation of annotation {entry.get('id')}: {error}"
            raise LayoutError(f"{where}: {message}") from error
    return Ragged.of(segments, np.uint8)
