"""Lists of labelled images in CSV files."""

import csv
import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from mixmim_bench.data.files import Files
from mixmim_bench.data.images import Part
from mixmim_bench.data.layout import LayoutError

MOST_CLASSES = 1_000_000


class CSVFiles:
    """One CSV file per part, with certain columns, none of which is empty.

    Args:
        root: the folder that the files are relative to.
        parts: the required parts.
        files: part -> file.
        columns: that are read.

    Raises:
        LayoutError: parts and files differ.
    """

    def __init__(
        self, root: Path, parts: Sequence[str], files: Mapping[str, str], columns: Sequence[str]
    ) -> None:
        self.root = root
        self.parts = tuple(parts)
        self.columns = tuple(columns)
        if not isinstance(files, Mapping) or not all(isinstance(name, str) for name in files.values()):
            raise LayoutError("must be a table such as { train = 'train.csv' }", "data.options.files")
        self.files = dict(files)
        for part in self.parts:
            if part not in self.files:
                raise LayoutError(f"no CSV file given for part {part!r}", "data.options.files")
        for part in self.files:
            if part not in self.parts:
                raise LayoutError(f"no split uses part {part!r}", "data.options.files")

    def missing(self) -> str:
        """Describe the missing files, '' if there are none."""
        not_found = [str(self.file(p)) for p in self.parts if not self.file(p).is_file()]
        return f"list files {', '.join(not_found)}" if not_found else ""

    def file(self, part: str) -> Path:
        """Return the file of a part."""
        return self.root / self.files[part]

    def read(self) -> dict[str, list[tuple[str, ...]]]:
        """Read the columns of all rows of each part; raises LayoutError."""
        return {part: self._read(self.file(part)) for part in self.parts}

    def _read(self, path: Path) -> list[tuple[str, ...]]:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise LayoutError(f"{path} is not UTF-8: {error}") from error
        with io.StringIO(text, newline="") as file:
            reader = csv.DictReader(file)
            not_found = set(self.columns) - set(reader.fieldnames or ())
            if not_found:
                raise LayoutError(f"{path} has no column {' or '.join(sorted(not_found))!s}")
            rows = []
            for row in reader:
                if not all(row[column] for column in self.columns):
                    raise LayoutError(f"{path}:{reader.line_num}: {' or '.join(self.columns)} is empty")
                rows.append(tuple(row[column].strip() for column in self.columns))
        if not rows:
            raise LayoutError(f"{path} lists no images")
        return rows


class CSVList:
    """One CSV file per part, with the columns `path` (relative to the root) and `label`.

    If all labels are integers, they are used directly; otherwise, they are class names, ranked in sorted
    order. The id of an image is its path.
    """

    partial = False

    def __init__(self, root: Path, parts: Sequence[str], files: Mapping[str, str]) -> None:
        self.root = root
        self.lists = CSVFiles(root, parts, files, ("path", "label"))

    def missing(self) -> str:
        return self.lists.missing()

    @cached_property
    def _rows(self) -> dict[str, list[tuple[str, ...]]]:
        return self.lists.read()

    def classes(self) -> Sequence[str]:
        return self._classes

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        names = {label for rows in self._rows.values() for _, label in rows}
        if all(name.isdecimal() for name in names):
            highest = max(int(name) for name in names)
            if highest >= MOST_CLASSES:
                raise LayoutError(
                    f"the label {highest} is too large for a class number; names must contain a letter"
                )
            return tuple(str(i) for i in range(highest + 1))
        return tuple(sorted(names))

    def part(self, name: str) -> Part:
        """List the images of a part; raises LayoutError for missing files."""
        rank = {class_name: label for label, class_name in enumerate(self._classes)}
        numbered = all(c.isdecimal() for c in self._classes)
        paths = [Path(path).as_posix() for path, _ in self._rows[name]]
        images = Files(self.root, paths)
        if not self.partial:
            images.check_listed(str(self.lists.file(name)))
        labels = [rank[str(int(x)) if numbered else x] for _, x in self._rows[name]]
        part = Part(np.array(paths), np.array(labels, dtype=np.int64), images)
        return part.take(images.there()) if self.partial else part
