"""Class folders: `PART/CLASS/**/IMAGE`."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixmim_bench.data.classes import Classes
from mixmim_bench.data.files import scan, scanned
from mixmim_bench.data.images import Part
from mixmim_bench.data.layout import LayoutError
from mixmim_bench.errors import a_few, nearest

IDS = {"path": 0, "name": 1, "class/name": 2}  # number of last path elements in an id; 0: all


_NO_CLASS = ("lost+found",)  # created by file systems at their mount points


class ImageFolder:
    """One folder per part, each with one folder per class and images at any depth.

    All parts must have the same classes.

    Args:
        root: the folder.
        parts: the required parts.
        ids: what identifies an image: its `path` relative to the root; its `name`, the file name without
            extension, if file names are unique; or `class/name`, its last folder and name. May be a table by
            part.
        classes: the standard order of the classes: a key of `mixmim_bench.data.classes.LISTS` or the names;
            by default, they are sorted by name.
        below: the subfolder of the root that contains the parts.
        folders: part -> its folder there, by default of the same name; '.' for the root itself.
        named: 'number' if class folders are named by the number of the class in the standard order.
    """

    partial = False

    def __init__(
        self,
        root: Path,
        parts: Sequence[str],
        ids: str | Mapping[str, str] = "path",
        classes: Any = None,
        below: str = "",
        folders: Mapping[str, str] | None = None,
        named: str = "class",
    ) -> None:
        if named not in ("class", "number"):
            raise LayoutError(f"named is {named!r}, not 'class' or 'number'", "data.options")
        self.root = root / below
        self.folders = dict(folders or {})
        self.by_number = named == "number"
        self.parts = tuple(parts)
        self.ids = dict(ids) if isinstance(ids, Mapping) else dict.fromkeys(parts, ids)
        for part in parts:
            if (choice := self.ids.get(part)) not in IDS:
                known = ", ".join(map(repr, IDS))
                raise LayoutError(f"ids is {choice!r}, not one of {known} ({part})", "data.options")
        for part in self.ids:
            if part not in self.parts:
                raise LayoutError(f"ids has no part {part!r}; {nearest(part, self.parts)}", "data.options")
        self._wanted = classes

    def missing(self) -> str:
        not_found = [str(self._folder(part)) for part in self.parts if not _has_folders(self._folder(part))]
        return f"class folders {', '.join(not_found)}" if not_found else ""

    def _folder(self, part: str) -> Path:
        return self.root / self.folders.get(part, part)

    def classes(self) -> Sequence[str]:
        return self._classes

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        folders = {part: list(_class_folders(self._folder(part))) for part in self.parts}
        if self._wanted is not None:
            standard = Classes.of_option(self._wanted)
            there = Classes.of_option(len(standard)) if self.by_number else standard
            for part, names in folders.items():
                there.check_same(names, str(self._folder(part)), self.partial)
            return standard.names
        all_names = sorted(set().union(*folders.values()))
        for part, names in folders.items():
            missing = sorted(set(all_names) - set(names))
            if missing and not self.partial:
                raise LayoutError(
                    f"{self._folder(part)} has no class folder {a_few(missing)}, but another part does"
                )
        return tuple(all_names)

    def part(self, name: str) -> Part:
        """List the folder of a part; raises LayoutError for a class folder without images."""
        files: list[tuple[str, int, int]] = []
        labels: list[int] = []
        empty: list[str] = []
        folder, inner = self._folder(name), self.folders.get(name, name)
        for label, class_name in enumerate(self._classes):
            own = str(label) if self.by_number else class_name
            if self.partial and not (folder / own).is_dir():
                continue
            images = sorted(scan(folder / own, f"{own}/" if inner == "." else f"{inner}/{own}/"))
            if not images and not self.partial:
                empty.append(str(folder / own))
            files += images
            labels += [label] * len(images)
        if empty:
            raise LayoutError(f"no images in the class folder {a_few(empty)}")
        ids = np.array([image_id(path, self.ids[name]) for path, _, _ in files])
        return Part(ids, np.array(labels, dtype=np.int64), scanned(self.root, files))


def image_id(path: str, ids: str) -> str:
    """Derive the canonical id of an image from its path; `ids` is a key of IDS."""
    if ids == "path":
        return path
    elements = path.rsplit("/", IDS[ids])[-IDS[ids] :]
    elements[-1] = elements[-1].rpartition(".")[0] or elements[-1]
    return "/".join(elements)


def _has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(True for _ in _class_folders(folder))


def _class_folders(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        yield from (e.name for e in entries if e.is_dir() and e.name[0] != "." and e.name not in _NO_CLASS)
