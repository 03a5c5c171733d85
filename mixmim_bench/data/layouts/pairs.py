"""Images with label maps: in folders of the same structure, or listed in CSV files."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixmim_bench.data.classes import Classes
from mixmim_bench.data.files import Files, scan, scanned
from mixmim_bench.data.images import Part
from mixmim_bench.data.layout import LayoutError
from mixmim_bench.data.layouts.csvlist import CSVFiles
from mixmim_bench.data.layouts.folder import image_id
from mixmim_bench.data.masks import Masks, Values, check_pairs
from mixmim_bench.errors import a_few, counted


class MaskFolders:
    """Images and label maps of the same names in two folders.

    Args:
        root: the folder.
        parts: the required parts.
        classes: their names, or their number.
        images: the folder of a part's images, such as 'images/{part}'.
        maps: the folder of its label maps, such as 'annotations/{part}'.
        lists: a text file with the names of a part's images, such as 'splits/{part}.txt', where one folder
            has the images of all parts; by default a part is all images of its folder.
        image_suffix: at the end of each image's name before the extension, such as '_leftImg8bit'.
        map_suffix: the same for label maps, such as '_gtFine_labelTrainIds'.
        ids: what identifies an image: `path`, `name` or `class/name`, as in `folder:ImageFolder`.
        **values: `reduce_zero_label`, `ignore`, `values`, `colors`: what the values of pixels mean
            (`data.masks.Values`).
    """

    def __init__(
        self,
        root: Path,
        parts: Sequence[str],
        classes: Any,
        images: str = "images/{part}",
        maps: str = "annotations/{part}",
        lists: str = "",
        image_suffix: str = "",
        map_suffix: str = "",
        ids: str = "path",
        **values: Any,
    ) -> None:
        self.root = root
        self.parts = tuple(parts)
        self.images, self.maps, self.lists = images, maps, lists
        self.image_suffix, self.map_suffix = image_suffix, map_suffix
        self.ids = ids
        self._classes = Classes.of_option(classes)
        self.values = Values.of_options(len(self._classes), **values)

    def missing(self) -> str:
        wanted = [self.root / pattern.format(part=part) for part in self.parts for pattern in self._patterns]
        not_found = [str(path) for path in dict.fromkeys(wanted) if not path.exists()]
        return f"images and label maps in {', '.join(not_found)}" if not_found else ""

    @property
    def _patterns(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.images, self.maps, self.lists)))

    def classes(self) -> Sequence[str]:
        return self._classes.names

    def part(self, name: str) -> Part:
        """List a part; raises LayoutError for images without a label map, and label maps without an image."""
        folders = [pattern.format(part=name) for pattern in (self.images, self.maps)]
        found = _by_stem(self.root, folders[0], self.image_suffix)
        maps = _by_stem(self.root, folders[1], self.map_suffix)
        if self.lists:
            stems = self._listed(self.root / self.lists.format(part=name), found)
        else:
            stems = sorted(found)
            if alone := sorted(set(maps) - set(found)):
                count = counted(len(alone), "label map")
                raise LayoutError(f"{self.root / folders[1]}: {count} without an image: {a_few(alone)}")
        if not stems:
            raise LayoutError(f"no images in {self.root / folders[0]}")
        images = scanned(self.root, [found[stem] for stem in stems])
        absent = [f"{folders[1]}/{stem}{self.map_suffix}.png" for stem in stems if stem not in maps]
        if absent:
            count = f"{len(absent)} of {counted(len(stems), 'image')}"
            raise LayoutError(f"{self.root}: {count} have no label map: {a_few(absent)}")
        ids = np.array([image_id(found[stem][0], self.ids) for stem in stems])
        labels = scanned(self.root, [maps[stem] for stem in stems])
        return Part(ids, Masks.of_files(labels, images, self.values, len(self._classes)), images)

    def _listed(self, path: Path, found: Mapping[str, Any]) -> list[str]:
        stems = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        if absent := [stem for stem in stems if stem not in found]:
            raise LayoutError(f"{path} lists {counted(len(absent), 'missing image')}: {a_few(absent)}")
        return stems


def _by_stem(root: Path, folder: str, suffix: str) -> dict[str, tuple[str, int, int]]:
    """List the images of a folder by their path in it, without suffix and extension."""
    found: dict[str, tuple[str, int, int]] = {}
    for path, size, time in scan(root / folder, f"{folder}/"):
        stem = path.removeprefix(f"{folder}/").rpartition(".")[0]
        if not stem.endswith(suffix):
            continue
        stem = stem.removesuffix(suffix)
        if stem in found:
            raise LayoutError(f"two images of the same name: {root / path}, {root / found[stem][0]}")
        found[stem] = (path, size, time)
    return found


class MaskCSV:
    """One CSV file per part, with the columns `path` and `mask`, both relative to the root.

    Args:
        root: the folder.
        parts: the required parts.
        files: part -> CSV file.
        classes: their names, or their number.
        **values: as in `MaskFolders`.

    The id of an image is its path.
    """

    def __init__(
        self, root: Path, parts: Sequence[str], files: Mapping[str, str], classes: Any, **values: Any
    ) -> None:
        self.root = root
        self.lists = CSVFiles(root, parts, files, ("path", "mask"))
        self._classes = Classes.of_option(classes)
        self.values = Values.of_options(len(self._classes), **values)

    def missing(self) -> str:
        return self.lists.missing()

    def classes(self) -> Sequence[str]:
        return self._classes.names

    @cached_property
    def _rows(self) -> dict[str, list[tuple[str, ...]]]:
        return self.lists.read()

    def part(self, name: str) -> Part:
        """List a part; raises LayoutError for missing images and label maps."""
        paths = [Path(path).as_posix() for path, _ in self._rows[name]]
        images = Files(self.root, paths)
        images.check_listed(str(self.lists.file(name)))
        maps = Files(self.root, [mask for _, mask in self._rows[name]])
        check_pairs(maps, paths, str(self.lists.file(name)))
        return Part(np.array(paths), Masks.of_files(maps, images, self.values, len(self._classes)), images)
