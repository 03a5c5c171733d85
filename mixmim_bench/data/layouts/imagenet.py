"""ImageNet-1K, as the official archives or unpacked.

Ids are file names without extension; classes are the sorted synsets.
"""

import csv
import io
import tarfile
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixmim_bench.data.classes import Classes
from mixmim_bench.data.files import scan, scanned
from mixmim_bench.data.images import Part
from mixmim_bench.data.layout import LayoutError
from mixmim_bench.data.layouts.folder import image_id
from mixmim_bench.data.tars import Member, in_tars, kept, members, nested

TRAIN = "ILSVRC2012_img_train.tar"  # contains n01440764.tar and so on
VAL = "ILSVRC2012_img_val.tar"  # contains the images without folders
DEVKIT = "ILSVRC2012_devkit_t12"  # .tar.gz, or unpacked
KAGGLE = "LOC_val_solution.csv"  # in Kaggle's copy
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
META = "data/meta.mat"


@cache
def _classes() -> Classes:
    """Return the 1,000 classes, loaded lazily because importing timm takes seconds."""
    return Classes.of_option("imagenet1k")


class _Official:
    """Base class of both layouts: the classes, and the labels of val."""

    partial = False

    def __init__(self, root: Path, parts: Sequence[str]) -> None:
        unknown = set(parts) - {"train", "val"}
        if unknown:
            raise LayoutError(
                f"ImageNet has the parts train and val, not {', '.join(sorted(unknown))}", "split"
            )
        self.root = root
        self.parts = tuple(parts)

    def classes(self) -> Sequence[str]:
        return _classes().names

    @cached_property
    def _truth(self) -> "Truth":
        return Truth(self.root)


class Archives(_Official):
    """The archives of train and val and the development kit, as downloaded."""

    def missing(self) -> str:
        archives = [self.root / {"train": TRAIN, "val": VAL}[part] for part in self.parts]
        not_found = [str(path) for path in archives if not path.is_file()]
        if "val" in self.parts and not self._truth.source:
            not_found.append(str(self.root / f"{DEVKIT}.tar.gz"))
        return f"archives {', '.join(not_found)}" if not_found else ""

    def part(self, name: str) -> Part:
        """List an archive; raises LayoutError for truncated or unexpected archives."""
        path = self.root / {"train": TRAIN, "val": VAL}[name]
        if name == "train":
            labelled: list[tuple[int, Member]] = kept(path, "imagenet train", self._read_train)
            entries = [member for _, member in labelled]
            labels = [label for label, _ in labelled]
        else:
            entries = kept(path, "imagenet val", lambda path: list(members(path)))
            labels = [self._truth.label(member[0]) for member in entries]
        ids = [image_id(member[0], "name") for member in entries]
        return Part(np.array(ids), np.array(labels, dtype=np.int64), in_tars([(path, entries)]))

    def _read_train(self, path: Path) -> list[tuple[int, Member]]:
        labelled: list[tuple[int, Member]] = []
        synsets = []
        for archive, inner in nested(path):
            synsets.append(image_id(archive, "name"))
            label = _classes().label(synsets[-1], str(path))
            labelled += [(label, member) for member in inner]
        _classes().check_same(synsets, str(path), self.partial)
        return labelled


class Unpacked(_Official):
    """Class folders for train and a flat folder for val, with the development kit or Kaggle's table.

    The folders are in the root or, as on Kaggle, in `ILSVRC/Data/CLS-LOC/`.
    """

    def missing(self) -> str:
        not_found = [f"folder {self.root / part}" for part in self.parts if not self._folder(part).is_dir()]
        if "val" in self.parts and not self._truth.source:
            not_found.append(f"{self.root / DEVKIT}(.tar.gz) or {self.root / KAGGLE}")
        return ", ".join(not_found)

    def _folder(self, part: str) -> Path:
        nested_folder = self.root / "ILSVRC" / "Data" / "CLS-LOC" / part
        return nested_folder if nested_folder.is_dir() else self.root / part

    def part(self, name: str) -> Part:
        """List a folder; raises LayoutError for unknown class folders and images without a label."""
        folder = self._folder(name)
        entries = sorted(scan(folder))
        if name == "train":
            synsets = [path.partition("/")[0] for path, _, _ in entries]
            _classes().check_same(synsets, str(folder), self.partial)
            labels = [_classes().label(synset, str(folder)) for synset in synsets]
        else:
            labels = [self._truth.label(path) for path, _, _ in entries]
        ids = np.array([image_id(path, "name") for path, _, _ in entries])
        return Part(ids, np.array(labels, dtype=np.int64), scanned(folder, entries))


class Truth:
    """The labels of val, from the development kit or Kaggle's table."""

    def __init__(self, root: Path) -> None:
        sources = [root / DEVKIT, root / f"{DEVKIT}.tar.gz", root / KAGGLE]
        self.source = next((source for source in sources if source.exists()), None)

    def label(self, image: str) -> int:
        """Return the label of an image; raises LayoutError if it has none."""
        label = self._labels.get(image_id(image, "name"))
        if label is None:
            raise LayoutError(f"{self.source} has no label for {image}")
        return label

    @cached_property
    def _labels(self) -> dict[str, int]:
        assert self.source is not None
        if self.source.name == KAGGLE:
            with self.source.open(newline="") as file:
                rows = [(row["ImageId"], row["PredictionString"].split()[0]) for row in csv.DictReader(file)]
            return {image: _classes().label(synset, str(self.source)) for image, synset in rows}
        synset_of = self._synsets()
        numbers = [int(line) for line in self._read(TRUTH).split()]
        unknown = sorted(set(numbers) - synset_of.keys())
        if unknown:
            raise LayoutError(f"{self.source}: {TRUTH} contains class {unknown[0]}, but {META} does not")
        return {
            f"ILSVRC2012_val_{i:08d}": _classes().label(synset_of[number], str(self.source))
            for i, number in enumerate(numbers, 1)
        }

    def _synsets(self) -> dict[int, str]:
        """Read the synset of each class number in the development kit, which starts at 1."""
        from scipy.io import loadmat

        try:
            rows: Any = loadmat(io.BytesIO(self._read(META)), squeeze_me=True)["synsets"]
            leaves = [row for row in rows if int(row["num_children"]) == 0]
            return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
        except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
            raise LayoutError(f"{self.source}: {META} cannot be read: {error}") from error

    def _read(self, name: str) -> bytes:
        assert self.source is not None
        if self.source.is_dir():
            return (self.source / name).read_bytes()
        try:
            with tarfile.open(self.source) as archive:
                member = archive.extractfile(f"{DEVKIT}/{name}")
                assert member is not None
                return member.read()
        except (tarfile.TarError, EOFError, KeyError) as error:
            raise LayoutError(f"{self.source}: {name} cannot be read: {error}; download it again") from error
