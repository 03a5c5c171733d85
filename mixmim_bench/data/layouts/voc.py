"""Pascal VOC as multi-label classification of 20 classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mixmim_bench.data.files import Files
from mixmim_bench.data.images import Part
from mixmim_bench.data.layout import LayoutError

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)
LABELS = {"1": 1, "-1": 0, "0": -1}  # the class is present, absent, or only a difficult object


class VOC:
    """`VOCdevkit/VOCYEAR` with `ImageSets/Main/CLASS_PART.txt` and `JPEGImages/`.

    Labels are (n, 20): 1 if the class is present, 0 if absent, -1 if only as a difficult object, which VOC's
    evaluation ignores. The id of an image is its number.
    """

    def __init__(self, root: Path, parts: Sequence[str], year: int = 2007) -> None:
        self.parts, self.year = tuple(parts), year
        folders = [f / "VOCdevkit" / f"VOC{year}" for f in (root, root.parent)] + [root / f"VOC{year}"]
        self.folder = next((folder for folder in folders if folder.is_dir()), folders[0])

    def missing(self) -> str:
        not_found = [
            str(path) for part in self.parts for path in self._lists(part).values() if not path.is_file()
        ]
        if not (self.folder / "JPEGImages").is_dir():
            not_found.append(str(self.folder / "JPEGImages"))
        return f"{', '.join(not_found[:3])}{', …' if len(not_found) > 3 else ''}" if not_found else ""

    def _lists(self, part: str) -> dict[str, Path]:
        return {name: self.folder / "ImageSets" / "Main" / f"{name}_{part}.txt" for name in CLASSES}

    def fetch(self, folder: Path) -> str:
        """Let torchvision download the parts to a folder."""
        from torchvision.datasets import VOCDetection

        for part in self.parts:
            VOCDetection(str(folder), year=str(self.year), image_set=part, download=True)
        return f"Pascal VOC {self.year}"

    def classes(self) -> Sequence[str]:
        return CLASSES

    def part(self, name: str) -> Part:
        """List a part; raises LayoutError if the lists of two classes contain different images."""
        ids: list[str] = []
        columns = []
        for path in self._lists(name).values():
            rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
            for row in rows:
                if len(row) != 2 or row[1] not in LABELS:
                    raise LayoutError(f"{path}: expected a line such as '000012 -1', got {' '.join(row)!r}")
            ids = ids or [image for image, _ in rows]
            if [image for image, _ in rows] != ids:
                raise LayoutError(f"{path} lists other images than that of {CLASSES[0]}")
            columns.append([LABELS[label] for _, label in rows])
        images = Files(self.folder, [f"JPEGImages/{image}.jpg" for image in ids])
        images.check_listed(str(self.folder / "ImageSets" / "Main"))
        return Part(np.array(ids), np.array(columns, dtype=np.int64).T, images)
