"""ImageNet-1K as its official archives, which need not be unpacked."""

import io
import tarfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixmim_bench.data.classes import Classes
from mixmim_bench.data.images import Part
from mixmim_bench.data.layout import LayoutError
from mixmim_bench.data.tars import Member, in_tars, kept, members, nested

TRAIN = "ILSVRC2012_img_train.tar"  # holds n01440764.tar and so on
VAL = "ILSVRC2012_img_val.tar"  # holds the images side by side
DEVKIT = "ILSVRC2012_devkit_t12"  # .tar.gz, or unpacked
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
META = "data/meta.mat"


class Archives:
    """The archives of train and val and the development kit, which says of which class each image of val is.

    Images are known by their file names without the extension.
    """

    def __init__(self, root: Path, parts: Sequence[str]) -> None:
        unknown = set(parts) - {"train", "val"}
        if unknown:
            raise LayoutError(
                f"the archives have the parts train and val, not {', '.join(sorted(unknown))}", "split"
            )
        self.root = root
        self.parts = tuple(parts)

    def missing(self) -> str:
        wanted = [self.root / {"train": TRAIN, "val": VAL}[part] for part in self.parts]
        absent = [str(path) for path in wanted if not path.is_file()]
        if "val" in self.parts and not self._devkit.exists():
            absent.append(str(self._devkit))
        return f"archives {', '.join(absent)}" if absent else ""

    @property
    def _devkit(self) -> Path:
        unpacked = self.root / DEVKIT
        return unpacked if unpacked.is_dir() else self.root / f"{DEVKIT}.tar.gz"

    def classes(self) -> Sequence[str]:
        return self._classes.names

    @cached_property
    def _classes(self) -> Classes:
        return Classes.of_option("imagenet1k")

    def part(self, name: str) -> Part:
        """List an archive; raises LayoutError for one that is cut short or holds something else."""
        path = self.root / {"train": TRAIN, "val": VAL}[name]
        read = self._read_train if name == "train" else self._read_val
        found: list[tuple[int, Member]] = kept(path, f"imagenet {name}", read)
        if name == "val":
            found = self._judged(path, found)
        images = in_tars([(path, [member for _, member in found])])
        ids = [member[0].rpartition("/")[2].partition(".")[0] for _, member in found]
        return Part(np.array(ids), np.array([label for label, _ in found], dtype=np.int64), images)

    def _read_train(self, path: Path) -> list[tuple[int, Member]]:
        found: list[tuple[int, Member]] = []
        synsets = []
        for archive, inner in nested(path):
            synset = archive.rpartition("/")[2].partition(".")[0]
            label = self._classes.label(synset, str(path))
            synsets.append(synset)
            found += [(label, member) for member in inner]
        self._classes.check_same(synsets, str(path))
        return found

    def _read_val(self, path: Path) -> list[tuple[int, Member]]:
        return [(-1, member) for member in members(path)]

    def _judged(self, path: Path, found: Sequence[tuple[int, Member]]) -> list[tuple[int, Member]]:
        """Give the images of val their labels: image 1 is that of the first line."""
        labels = self._truth
        judged = []
        for _, member in found:
            number = member[0].rpartition("_")[2].partition(".")[0]
            if not number.isdecimal() or not 1 <= int(number) <= len(labels):
                raise LayoutError(f"{path}: {member[0]} has no line of its own in {TRUTH}")
            judged.append((labels[int(number) - 1], member))
        return judged

    @cached_property
    def _truth(self) -> list[int]:
        """Read the labels of val: the development kit counts classes from 1 in an order of its own."""
        synset_of = self._synsets()
        numbers = [int(line) for line in self._read_devkit(TRUTH).split()]
        unknown = sorted(set(numbers) - synset_of.keys())
        if unknown:
            raise LayoutError(f"{self._devkit}: {TRUTH} names the class {unknown[0]}, and {META} does not")
        return [self._classes.label(synset_of[number], str(self._devkit)) for number in numbers]

    def _synsets(self) -> dict[int, str]:

        from scipy.io import loadmat

        try:
            rows: Any = loadmat(io.BytesIO(self._read_devkit(META)), squeeze_me=True)["synsets"]
            leaves = [row for row in rows if int(row["num_children"]) == 0]
            return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
        except (ValueError, KeyError, TypeError, NotImplementedError) as error:
            raise LayoutError(f"{self._devkit}: {META} cannot be read: {error}") from error

    def _read_devkit(self, name: str) -> bytes:
        if self._devkit.is_dir():
            return (self._devkit / name).read_bytes()
        try:
            with tarfile.open(self._devkit) as archive:
                found = archive.extractfile(f"{DEVKIT}/{name}")
                assert found is not None
                return found.read()
        except (tarfile.TarError, EOFError, KeyError) as error:
            raise LayoutError(f"{self._devkit}: {name} cannot be read: {error}; fetch it again") from error
