"""iNaturalist as released for its competitions: one COCO-style JSON file per part, and image folders."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixmim_bench.data.annotations import read_coco
from mixmim_bench.data.classes import Classes
from mixmim_bench.data.files import Files
from mixmim_bench.data.images import Part
from mixmim_bench.data.layout import LayoutError
from mixmim_bench.data.layouts.folder import image_id


class Competition:
    """One JSON file per part with the lists `images`, `annotations` and `categories`.

    Labels are the ranks of the category ids. The id of an image is its last folder and its file name without
    extension, as in copies with class folders.

    Args:
        root: the folder.
        parts: the required parts.
        annotations: part -> JSON file.
    """

    partial = False

    def __init__(self, root: Path, parts: Sequence[str], annotations: Mapping[str, str]) -> None:
        self.root = root
        self.parts = tuple(parts)
        self.files = dict(annotations)
        for part in self.parts:
            if part not in self.files:
                raise LayoutError(f"no JSON file given for part {part!r}", "data.options.annotations")

    def missing(self) -> str:
        not_found = [str(self._file(part)) for part in self.parts if not self._file(part).is_file()]
        return f"annotations {', '.join(not_found)}" if not_found else ""

    def _file(self, part: str) -> Path:
        nested = self.root / "annotations" / self.files[part]  # as in some copies
        return nested if nested.is_file() else self.root / self.files[part]

    @cached_property
    def _content(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        return {part: read_coco(self._file(part)) for part in self.parts}

    @cached_property
    def _label_of(self) -> dict[int, int]:
        """Rank the categories of the first part; all parts must have the same."""
        ids = {part: {c["id"] for c in content["categories"]} for part, content in self._content.items()}
        first, *others = self.parts
        for part in others:
            if ids[part] != ids[first]:
                raise LayoutError(f"{self._file(part)} and {self._file(first)} have different categories")
        return {category: label for label, category in enumerate(sorted(ids[first]))}

    def classes(self) -> Sequence[str]:
        return self._classes.names

    @cached_property
    def _classes(self) -> Classes:
        named = {c["id"]: str(c["name"]) for c in self._content[self.parts[0]]["categories"]}
        names = [named[category] for category in self._label_of]
        # in some years, several categories have the same name
        return Classes.of_option(names if len(set(names)) == len(names) else [str(i) for i in self._label_of])

    def part(self, name: str) -> Part:
        """List a part; raises LayoutError for missing images and images without a label."""
        where = str(self._file(name))
        try:
            paths, labels = self._list(self._content[name], where)
        except (KeyError, TypeError) as error:
            raise LayoutError(f"{where}: an entry is not an object or has no {error}") from error
        images = Files(self.root, paths)
        if not self.partial:
            images.check_listed(where)
        ids = [image_id(path, "class/name") for path in paths]
        part = Part(np.array(ids), np.array(labels, dtype=np.int64), images)
        return part.take(images.there()) if self.partial else part

    def _list(self, content: Mapping[str, Any], where: str) -> tuple[list[str], list[int]]:
        """Return the path and label of each image."""
        category: dict[Any, Any] = {a["image_id"]: a["category_id"] for a in content["annotations"]}
        paths, labels = [], []
        for image in content["images"]:
            label = self._label_of.get(category.get(image["id"], -1))
            if label is None and image["id"] not in category:
                raise LayoutError(f"{where}: the image {image['file_name']} has no annotation")
            if label is None:
                raise LayoutError(
                    f"{where}: the image {image['file_name']} has the category {category[image['id']]}, "
                    "which is not in `categories`"
                )
            paths.append(image["file_name"])
            labels.append(label)
        return paths, labels
