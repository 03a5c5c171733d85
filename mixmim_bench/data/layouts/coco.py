"""Objects in COCO's format: one JSON file per part, and folders of images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from mixmim_bench.data.annotations import Annotations, read_annotations
from mixmim_bench.data.classes import Classes
from mixmim_bench.data.files import Files
from mixmim_bench.data.images import Part
from mixmim_bench.data.layout import LayoutError
from mixmim_bench.data.layouts.folder import image_id
from mixmim_bench.data.objects import Ragged


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
    def _annotations(self) -> dict[str, Annotations]:
        """The content of all files, which must have the same categories, and all have masks or none."""
        found = {part: read_annotations(self._file(part)) for part in self.parts}
        first, *others = self.parts
        for part in others:
            if found[part].categories != found[first].categories:
                raise LayoutError(f"{self._file(part)} and {self._file(first)} have different categories")
        with_objects = [part for part, each in found.items() if len(each.objects.labels.values)]
        masked = [part for part in with_objects if found[part].masked]
        if masked and len(masked) < len(with_objects):
            without = next(part for part in with_objects if part not in masked)
            raise LayoutError(
                f"the objects in {self._file(masked[0])} have masks, and those in {self._file(without)} have "
                "none; either all have, or none"
            )
        return found

    @property
    def _categories(self) -> Mapping[int, str]:
        return self._annotations[self.parts[0]].categories

    def classes(self) -> Sequence[str]:
        names = list(self._categories.values())
        repeated = len(set(names)) < len(names)
        return Classes.of_option(list(map(str, self._categories)) if repeated else names).names

    def part(self, name: str) -> Part:
        """List a part; raises LayoutError that names the file and what is wrong in it."""
        every, own = self._annotations.values(), self._annotations[name]
        objects = own.labelled(np.array(list(self._categories)), any(each.federated for each in every))
        if objects.segments is None and any(each.masked for each in every):  # a part without objects
            objects = replace(objects, segments=Ragged.of([], np.uint8))
        paths, where = own.paths, str(self._file(name))
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
