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
    """

    def __init__(
        self,
        root: Path,
        parts: Sequence[str],
        ids: str | Mapping[str, str] = "path",
        classes: Any = None,
        below: str = "",
    ) -> None:
        self.root = root / below
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
        not_found = [str(self.root / part) for part in self.parts if not _has_folders(self.root / part)]
        return f"class folders {', '.join(not_found)}" if not_found else ""

    def classes(self) -> Sequence[str]:
        return self._classes

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        folders = {part: list(_class_folders(self.root / part)) for part in self.parts}
        if self._wanted is not None:
            standard = Classes.of_option(self._wanted)
            for part, names in folders.items():
                standard.check_same(names, str(self.root / part))
            return standard.names
        all_names = sorted(set().union(*folders.values()))
        for part, names in folders.items():
            missing = sorted(set(all_names) - set(names))
            if missing:
                raise LayoutError(
                    f"{self.root / part} has no class folder {a_few(missing)}, but another part does"
                )
        return tuple(all_names)

    def part(self, name: str) -> Part:
        """List `root/name`; raises LayoutError for a class folder without images."""
        files: list[tuple[str, int, int]] = []
        labels: list[int] = []
        empty: list[str] = []
        for label, class_name in enumerate(self._classes):
            images = sorted(scan(self.root / name / class_name, f"{name}/{class_name}/"))
            if not images:
                empty.append(str(self.root / name / class_name))
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
