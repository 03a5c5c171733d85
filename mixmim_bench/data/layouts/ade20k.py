"""ADE20K's scene parsing benchmark with 150 classes (arXiv 1608.05442)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixmim_bench.data.layout import LayoutError
from mixmim_bench.data.layouts.pairs import MaskFolders

FOLDER = "ADEChallengeData2016"
NAMES = "objectInfo150.txt"
# of the full release, in its versions of 2016 and 2021
FULL = ("index_ade20k.pkl", "index_ade20k.mat", "images/ADE", "ADE20K_2021_17_01", "ADE20K_2016_07_26")


class Challenge(MaskFolders):
    """`ADEChallengeData2016`: images/PART/*.jpg and annotations/PART/*.png, in the root or below it.

    The value 0 of a label map is 'other', which is ignored. The id of an image is its name.

    Args:
        root: the folder.
        parts: `training` and `validation`.
        **options: as in `MaskFolders`.
    """

    def __init__(self, root: Path, parts: Sequence[str], **options: Any) -> None:
        folder = next((f for f in (root / FOLDER, root.parent / FOLDER) if f.is_dir()), root)
        names = _names(folder / NAMES)
        if names and options.get("classes") == len(names):
            options["classes"] = names
        super().__init__(folder, parts, **{"ids": "name", **options})
        self.given = root

    def missing(self) -> str:
        """Describe what is missing; raises LayoutError for the full release, which has other classes."""
        missing = super().missing()
        for name in FULL if missing else ():
            if (self.given / name).exists():
                raise LayoutError(
                    f"{self.given} has the full release of ADE20K ({name}), whose annotations have "
                    "thousands of classes; the benchmark of 150 classes is another download, "
                    f"{FOLDER}.zip: https://data.csail.mit.edu/places/ADEchallenge/{FOLDER}.zip"
                )
        return missing


def _names(path: Path) -> list[str]:
    """Read the names of the classes: the last column, of which the first name is the common one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
    except (OSError, UnicodeDecodeError):
        return []
    names = [line.split("\t")[-1].split(",")[0].strip() for line in lines if line.strip()]
    return names if len(set(names)) == len(names) else [f"{i} {name}" for i, name in enumerate(names, 1)]
