"""Datasets in the layouts of torchvision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixmim_bench.data.classes import Classes
from mixmim_bench.data.files import Files
from mixmim_bench.data.hdf5 import InHDF5, read_array
from mixmim_bench.data.images import Arrays, Images, Part
from mixmim_bench.data.layout import LayoutError
from mixmim_bench.data.layouts.folder import image_id
from mixmim_bench.errors import nearest

# arguments of torchvision's classes that select images; others download, decode or run code
KEYWORDS = ("split", "train", "annotation_level", "partition", "fold", "classes", "year", "version")


class Torchvision:
    """A dataset of torchvision.datasets.

    The id of an image is its last folder and its file name without extension, or its part and position.

    Args:
        root: the folder; torchvision's root may be this folder or its parent.
        parts: the required parts.
        dataset: the name of torchvision's class.
        keywords: part -> keyword arguments of the class.
        needs: files or folders that must exist in torchvision's root.
        classes: their number or names, if torchvision's class does not provide them.
    """

    def __init__(
        self,
        root: Path,
        parts: Sequence[str],
        dataset: str,
        keywords: Mapping[str, Mapping[str, Any]],
        needs: Sequence[str],
        classes: Any = None,
    ) -> None:
        self.name = dataset
        self.parts = tuple(parts)
        self.keywords = dict(keywords)
        for part in self.parts:
            if part not in self.keywords:
                raise LayoutError(f"no keywords given for part {part!r}", "data.options.keywords")
            for keyword in self.keywords[part]:
                if keyword not in KEYWORDS:
                    raise LayoutError(
                        f"the keyword {keyword!r} does not select images; use one of {', '.join(KEYWORDS)}",
                        f"data.options.keywords.{part}",
                    )
        self.needs, self._wanted, self.roots = tuple(needs), classes, (root, root.parent)

    def missing(self) -> str:
        if self._root is not None:
            return ""
        return ", ".join(str(self.roots[0] / need) for need in self.needs)

    @property
    def _root(self) -> Path | None:
        return next((r for r in self.roots if all((r / need).exists() for need in self.needs)), None)

    @cached_property
    def dataset(self) -> Any:
        """The torchvision class, imported lazily because it takes seconds."""
        from torchvision import datasets

        if self.name not in datasets.__all__:
            raise LayoutError(
                f"torchvision has no dataset {self.name!r}; {nearest(self.name, datasets.__all__)}",
                "data.options.dataset",
            )
        return getattr(datasets, self.name)

    @cached_property
    def _datasets(self) -> dict[str, Any]:
        return {part: self._build(part) for part in self.parts}

    def _build(self, part: str) -> Any:
        dataset = self.dataset
        try:
            return dataset(self._root, **self.keywords[part])
        except Exception as error:  # truncated files raise all kinds of errors
            raise LayoutError(
                f"torchvision's {self.name} cannot read {self._root}: {type(error).__name__}: {error}"
            ) from error

    def fetch(self, folder: Path) -> str:
        """Let torchvision download all parts to a folder."""
        for part in self.parts:
            self.dataset(folder, download=True, **self.keywords[part])
        return f"torchvision's {self.name}"

    def classes(self) -> Sequence[str]:
        return self._classes.names

    @cached_property
    def _classes(self) -> Classes:
        if self._wanted is not None:
            return Classes.of_option(self._wanted)
        dataset = self._datasets[self.parts[0]]
        return Classes.of_option(list(getattr(dataset, "classes", None) or dataset.categories))

    def part(self, name: str) -> Part:
        """List a part; raises LayoutError for missing images."""
        dataset, root = self._datasets[name], self._root
        assert root is not None
        listed = _listed(dataset)
        labels = np.array(listed.labels, dtype=np.int64)
        if listed.paths is None:
            assert listed.images is not None
            ids = [f"{name}_{i:05d}" for i in range(len(labels))]
            return Part(np.array(ids), labels, listed.images)
        paths = [Path(path).relative_to(root).as_posix() for path in listed.paths]
        images = Files(root, paths)
        images.check_listed(f"torchvision's {self.name} ({name})")
        return Part(np.array([image_id(path, "class/name") for path in paths]), labels, images)


@dataclass(frozen=True)
class _Listed:
    """The content of a torchvision dataset: paths or images, and labels."""

    labels: Any
    paths: Sequence[Any] | None = None
    images: Images | None = None


def _listed(dataset: Any) -> _Listed:
    """Read the lists of a torchvision dataset without decoding."""
    for paths in ("_image_files", "_images"):
        if hasattr(dataset, paths) and hasattr(dataset, "_labels"):
            return _Listed(dataset._labels, getattr(dataset, paths))
    for samples in ("_samples", "samples"):
        if hasattr(dataset, samples):
            pairs = getattr(dataset, samples)
            return _Listed([label for _, label in pairs], [path for path, _ in pairs])
    if hasattr(dataset, "categories") and hasattr(dataset, "index"):  # Caltech-101
        folder = Path(dataset.root) / "101_ObjectCategories"
        pairs = zip(dataset.y, dataset.index, strict=True)
        return _Listed(dataset.y, [folder / dataset.categories[y] / f"image_{i:04d}.jpg" for y, i in pairs])
    if hasattr(dataset, "h5py"):  # PCAM
        folder = Path(dataset.root) / "pcam"
        images, targets = (folder / dataset._FILES[dataset._split][kind][0] for kind in ("images", "targets"))
        return _Listed(read_array(targets, "y").reshape(-1), images=InHDF5(images, "x"))
    labels = next(getattr(dataset, name) for name in ("targets", "labels") if hasattr(dataset, name))
    pixels = np.asarray(dataset.data)
    if pixels.ndim == 4 and pixels.shape[1] == 3:
        pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    return _Listed(labels, images=Arrays(pixels, f"torchvision's {type(dataset).__name__}"))
