"""Datasets in the layouts of torchvision, without downloads."""

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

# of torchvision's classes, that say which images are meant; others fetch, decode or run something
KEYWORDS = ("split", "train", "annotation_level", "partition", "fold", "classes", "year", "version")


class Torchvision:
    """A class of torchvision.datasets, made with the keyword arguments that `keywords` names for each part.

    needs: files or folders that must exist, in the root or, as usual with torchvision, in its parent folder.
    classes: their number or names, if torchvision's class does not provide them. The id of an image is its
    last folder and file name without extension, or its part and position.
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
                raise LayoutError(f"no keywords are named for the part {part!r}", "data.options.keywords")
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
    def _made(self) -> dict[str, Any]:
        return {part: self._make(part) for part in self.parts}

    def _make(self, part: str) -> Any:
        dataset = self.dataset
        try:
            return dataset(self._root, **self.keywords[part])
        except Exception as error:  # torchvision lets files that are cut short raise in any way
            raise LayoutError(
                f"torchvision's {self.name} cannot read {self._root}: {type(error).__name__}: {error}"
            ) from error

    def classes(self) -> Sequence[str]:
        return self._classes.names

    @cached_property
    def _classes(self) -> Classes:
        if self._wanted is not None:
            return Classes.of_option(self._wanted)
        made = self._made[self.parts[0]]
        return Classes.of_option(list(getattr(made, "classes", None) or made.categories))

    def part(self, name: str) -> Part:
        """List a part; raises LayoutError for missing images."""
        made, root = self._made[name], self._root
        assert root is not None
        listed = _listed(made)
        labels = np.array(listed.labels, dtype=np.int64)
        if listed.paths is None:
            assert listed.images is not None
            ids = [f"{name}_{place:05d}" for place in range(len(labels))]
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


def _listed(made: Any) -> _Listed:
    """Read the lists of a torchvision dataset without decoding."""
    for paths in ("_image_files", "_images"):
        if hasattr(made, paths) and hasattr(made, "_labels"):
            return _Listed(made._labels, getattr(made, paths))
    for samples in ("_samples", "samples"):
        if hasattr(made, samples):
            pairs = getattr(made, samples)
            return _Listed([label for _, label in pairs], [path for path, _ in pairs])
    if hasattr(made, "categories") and hasattr(made, "index"):  # Caltech-101
        folder = Path(made.root) / "101_ObjectCategories"
        found = zip(made.y, made.index, strict=True)
        return _Listed(made.y, [folder / made.categories[y] / f"image_{i:04d}.jpg" for y, i in found])
    if hasattr(made, "h5py"):  # PCAM
        folder = Path(made.root) / "pcam"
        images, targets = (folder / made._FILES[made._split][kind][0] for kind in ("images", "targets"))
        return _Listed(read_array(targets, "y").reshape(-1), images=InHDF5(images, "x"))
    labels = next(getattr(made, name) for name in ("targets", "labels") if hasattr(made, name))
    pixels = np.asarray(made.data)
    if pixels.ndim == 4 and pixels.shape[1] == 3:
        pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    return _Listed(labels, images=Arrays(pixels, f"torchvision's {type(made).__name__}"))
