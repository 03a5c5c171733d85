"""Lists of images in text files: one path per line, labelled by a number or by its folders."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixmim_bench.data.classes import Classes
from mixmim_bench.data.files import Files
from mixmim_bench.data.images import Part
from mixmim_bench.data.layout import LayoutError
from mixmim_bench.data.layouts.folder import IDS, image_id

SCENE = "scene/name"


class TextLists:
    """One file per part with lines `PATH LABEL`, like OpenMMLab's `meta/train.txt` and the lists of Places.

    A path whose folders name a class must have the label of that class.

    Args:
        root: the folder that lists and image folders are relative to.
        parts: the required parts.
        files: part -> file, or a list of files, of which the first existing one is read.
        folders: part -> folder of its images.
        labels: `number`, at the end of the line, or `folder`, the class named by the folders of the path.
        classes: their number, their names, or a key of `mixmim_bench.data.classes.LISTS`.
        class_file: a file with lines `NAME NUMBER`, instead of `classes`.
        ids: as in `ImageFolder`, or `scene/name`: the class named by the folders, and the file name.
    """

    partial = False

    def __init__(
        self,
        root: Path,
        parts: Sequence[str],
        files: Mapping[str, Any],
        folders: Mapping[str, str] | None = None,
        labels: str = "number",
        classes: Any = None,
        class_file: str = "",
        ids: str = "path",
    ) -> None:
        if ids not in (*IDS, SCENE):
            known = ", ".join(map(repr, (*IDS, SCENE)))
            raise LayoutError(f"ids is {ids!r}, not one of {known}", "data.options")
        if labels not in ("number", "folder"):
            raise LayoutError(f"labels is {labels!r}, not 'number' or 'folder'", "data.options")
        self.root, self.parts, self.ids = root, tuple(parts), ids
        self.files, self.folders = dict(files), dict(folders or {})
        self.by_folder = labels == "folder"
        self._wanted, self.class_file = classes, class_file
        for part in self.parts:
            if part not in self.files:
                raise LayoutError(f"no list given for part {part!r}", "data.options.files")

    def missing(self) -> str:
        lists = [self._list(part) for part in self.parts]
        lists += [self.root / self.class_file] if self.class_file else []
        not_found = [str(path) for path in lists if not path.is_file()]
        folders = dict.fromkeys(self.root / folder for folder in self.folders.values())
        not_found += [f"folder {folder}" for folder in folders if not folder.is_dir()]
        return f"lists {', '.join(not_found)}" if not_found else ""

    def _list(self, part: str) -> Path:
        names = [self.files[part]] if isinstance(self.files[part], str) else self.files[part]
        paths = [self.root / name for name in names]
        return next((path for path in paths if path.is_file()), paths[0])

    def classes(self) -> Sequence[str]:
        return self._classes.names

    @cached_property
    def _classes(self) -> Classes:
        if self.class_file:
            return self._read_classes()
        if self._wanted is not None:
            return Classes.of_option(self._wanted)
        if self.by_folder:
            names = {scene_of(path) for rows in self._rows.values() for path, _ in rows}
            return Classes.of_option(sorted(names))
        highest = max((label for rows in self._rows.values() for _, label in rows), default=-1)
        return Classes.of_option(highest + 1)

    def _read_classes(self) -> Classes:
        path = self.root / self.class_file
        names: dict[int, str] = {}
        for line in _lines(path):
            name, _, number = line.strip().rpartition(" ")
            if not number.isdecimal() or not name:
                raise LayoutError(f"{path}: expected a line such as '/a/airfield 0', got {line!r}")
            names[int(number)] = scene_of(f"{name}/")
        if sorted(names) != list(range(len(names))):
            raise LayoutError(f"{path}: class numbers are not consecutive from 0")
        return Classes.of_option([names[number] for number in range(len(names))])

    @cached_property
    def _rows(self) -> dict[str, list[tuple[str, int]]]:
        return {part: self._read(part) for part in self.parts}

    def _read(self, part: str) -> list[tuple[str, int]]:
        path = self._list(part)
        rows = []
        for number, line in enumerate(_lines(path), 1):
            if self.by_folder:
                rows.append((line.strip().lstrip("/"), -1))
                continue
            image, _, label = line.strip().rpartition(" ")
            if not image or not label.isdecimal():
                raise LayoutError(
                    f"{path}:{number}: expected a line such as 'folder/image.jpg 0', got {line.strip()!r}"
                )
            rows.append((image.strip().lstrip("/"), int(label)))
        if not rows:
            raise LayoutError(f"{path} lists no images")
        return rows

    def part(self, name: str) -> Part:
        """List a part; raises LayoutError for missing images and invalid labels."""
        rows, where = self._rows[name], str(self._list(name))
        folder = f"{self.folders[name]}/" if name in self.folders else ""
        # some lists include the folder in their paths
        paths = [path if path.startswith(folder) else folder + path for path, _ in rows]
        images = Files(self.root, paths)
        if not self.partial:
            images.check_listed(where)
        scenes = [scene_of(path.removeprefix(folder)) for path in paths]
        labels = [self._label(scene, label, where) for scene, (_, label) in zip(scenes, rows, strict=True)]
        if self.ids == SCENE:
            stems = [image_id(path, "name") for path in paths]
            ids = [f"{scene}/{stem}" if scene else stem for scene, stem in zip(scenes, stems, strict=True)]
        else:
            ids = [image_id(path, self.ids) for path in paths]
        part = Part(np.array(ids), np.array(labels, dtype=np.int64), images)
        return part.take(images.there()) if self.partial else part

    def _label(self, scene: str, label: int, where: str) -> int:
        if self.by_folder:
            return self._classes.label(scene, where)
        expected = self._classes.rank.get(scene, label)
        if expected != label:
            raise LayoutError(
                f"{where}: images of {scene} have label {label}, but {scene} is class {expected}"
            )
        return label


def scene_of(path: str) -> str:
    """Derive the class from the folders of a path, joined by dashes.

    A first folder that is the first letter of the second is dropped, as in SUN and Places:
    `/a/apartment_building/outdoor/x.jpg` is of the class `apartment_building-outdoor`.
    """
    folders = path.strip("/").split("/") if path.endswith("/") else path.strip("/").split("/")[:-1]
    if len(folders) > 1 and len(folders[0]) == 1 and folders[1].startswith(folders[0]):
        folders = folders[1:]
    return "-".join(folders)


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise LayoutError(f"{path} is not UTF-8: {error}") from error
