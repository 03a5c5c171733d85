"""Parquet files in Hugging Face's format, with one labelled image per row."""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mixmim_bench.data.classes import Classes, Order
from mixmim_bench.data.files import FilesOfParts, Names
from mixmim_bench.data.images import Part, decode, decoding, hashed
from mixmim_bench.data.layout import LayoutError
from mixmim_bench.data.naming import Naming

if TYPE_CHECKING:
    import pyarrow

GROUPS_KEPT = 2  # row groups cached per process: consecutive reads are often of neighbouring rows


class Parquet:
    """Files with a column of images (struct of `bytes` and `path`, or bytes) and one of labels.

    Labels are numbers or class names. Reading a row decodes its row group; a hundred images per group, as
    written by Hugging Face, work well.

    Args:
        root: the folder that patterns are relative to.
        parts: the required parts.
        files: part -> glob patterns.
        image: the column of images.
        label: the column of labels.
        id_pattern: matches the id in an image's path; by default, the id is part and position, such as
            `train_00042`.
        class_pattern: matches the class in an image's path, see `Naming`.
        classes: the standard order of the classes.
    """

    partial = False

    def __init__(
        self,
        root: Path,
        parts: Sequence[str],
        files: Mapping[str, Any],
        image: str = "image",
        label: str = "label",
        id_pattern: str = "",
        class_pattern: str = "",
        classes: Any = None,
    ) -> None:
        self.parts = tuple(parts)
        self.files = FilesOfParts(root, parts, files, "parquet files", "data.options.files")
        self.image, self.label = image, label
        self.by_position = not id_pattern
        self.naming = Naming(id_pattern, class_pattern)
        self._wanted = classes

    def missing(self) -> str:
        return self.files.missing()

    def classes(self) -> Sequence[str]:
        return self._classes.names

    @cached_property
    def _classes(self) -> Classes:
        if self._wanted is not None:
            return Classes.of_option(self._wanted)
        for files in self._listed.values():
            for file in files:
                if file.class_names:
                    return Classes.of_option(file.class_names)
        labels = {label for files in self._listed.values() for file in files for label in file.labels}
        if all(isinstance(label, str) for label in labels):
            return Classes.of_option(sorted(labels))
        return Classes.of_option(max(labels, default=-1) + 1)

    @cached_property
    def _listed(self) -> "dict[str, list[_File]]":
        return {
            part: [_read(path, self.image, self.label) for path in self.files.of(part)] for part in self.parts
        }

    @cached_property
    def _order(self) -> Order:
        order = Order(self._classes)
        for files in self._listed.values():
            for file in files:
                order.learn_names(file.class_names, str(file.path))
                for label, path in zip(file.labels, file.paths, strict=True):
                    name = self.naming.class_of(path)
                    if name and isinstance(label, int):
                        order.learn(label, name, path)
        return order

    def part(self, name: str) -> Part:
        """List the rows of a part; raises LayoutError for unreadable files and unexpected schemas."""
        files = self._listed[name]
        labels = [
            self._classes.label(label, str(file.path)) if isinstance(label, str) else label
            for file in files
            for label in file.labels
        ]
        paths = [path for file in files for path in file.paths]
        if self.by_position:
            ids = [f"{name}_{i:05d}" for i in range(len(paths))]
        else:
            ids = [self.naming.id_of(path) for path in paths]
        where = self.files.describe([name])
        mapped = self._order.map(np.array(labels, dtype=np.int64), where)
        return Part(np.array(ids), mapped, InParquet(files, self.image, Names(ids)))


@dataclass(frozen=True)
class _File:
    """The metadata and labels of a file."""

    path: Path
    labels: list[Any]
    paths: list[str]  # '' for rows without a path
    class_names: list[str]  # in label order, [] if the file has none
    groups: list[tuple[int, int]]  # number of rows and bytes of each row group
    stamp: str


def _read(path: Path, image: str, label: str) -> _File:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise LayoutError(
            f"parquet files need pyarrow: pip install 'mixmim-bench[parquet]' ({error})"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            columns_found = ", ".join(f"{field.name}: {field.type}" for field in schema)
            for column, is_valid in ((image, _holds_images), (label, _holds_labels)):
                if column not in schema.names or not is_valid(schema.field(column).type):
                    raise LayoutError(
                        f"{path} has no column {column!r} with {'images' if column == image else 'labels'} "
                        f"(columns: {columns_found}); set the layout's options `image` and `label`"
                    )
            as_struct = pyarrow.types.is_struct(schema.field(image).type)
            columns = [label, *([f"{image}.path"] if as_struct else [])]
            table = file.read(columns=columns, use_threads=False)
            labels = table.column(label).to_pylist()
            if None in labels:
                raise LayoutError(f"{path}: row {labels.index(None)} has no label")
            paths = [""] * len(labels)
            if as_struct and "path" in [field.name for field in schema.field(image).type]:
                paths = [row["path"] or "" for row in table.column(image).to_pylist()]
            metadata = file.metadata
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            sizes = [(group.num_rows, group.total_byte_size) for group in groups]
            names = _class_names(schema.metadata or {}, label)
    except (pyarrow.ArrowException, OSError) as error:
        raise LayoutError(f"{path} cannot be read as parquet ({error}); download it again") from error
    status = path.stat()
    return _File(path, labels, paths, names, sizes, f"{status.st_size}:{status.st_mtime_ns}")


def _holds_images(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_images(field.type) for field in kind)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _holds_labels(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    return types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)


def _class_names(metadata: Mapping[bytes, bytes], label: str) -> list[str]:
    """Read the names of Hugging Face's ClassLabel, [] if there are none."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[label]["names"]]
    except (KeyError, ValueError, TypeError):
        return []


class InParquet:
    """Images in rows of parquet files."""

    def __init__(self, files: "Sequence[_File]", column: str, names: Names) -> None:
        self.paths = tuple(file.path for file in files)
        self.stamps = tuple(file.stamp for file in files)
        self.column = column
        self.names = names
        rows = [(i, g, n, size) for i, file in enumerate(files) for g, (n, size) in enumerate(file.groups)]
        counts = np.array([n for _, _, n, _ in rows], dtype=np.int64)
        self.groups = np.array([(i, g, size) for i, g, _, size in rows], dtype=np.int64).reshape(-1, 3)
        self.ends = np.cumsum(counts)
        self._clear_cache()

    def _clear_cache(self) -> None:
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_cache", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear_cache()

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def _locate(self, row: int) -> tuple[int, int]:
        """Return the group of a row and its position in it."""
        group = int(np.searchsorted(self.ends, row, side="right"))
        return group, int(row - (self.ends[group - 1] if group else 0))

    def _read(self, row: int) -> bytes:
        group, position = self._locate(row)
        with decoding(), self._lock:
            if group not in self._cache:
                self._cache[group] = self._read_group(group)
                while len(self._cache) > GROUPS_KEPT:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(group)
            value = self._cache[group][position].as_py()
            if value is None:
                raise ValueError("the row has no bytes")
            return value

    def _read_group(self, group: int) -> Any:
        import pyarrow
        from pyarrow import parquet

        file, number, _ = self.groups[group]
        with parquet.ParquetFile(self.paths[file], memory_map=True) as opened:
            as_struct = pyarrow.types.is_struct(opened.schema_arrow.field(self.column).type)
            name = f"{self.column}.bytes" if as_struct else self.column
            column = opened.read_row_group(int(number), columns=[name], use_threads=False).column(0)
            chunk = column.combine_chunks()
            return chunk.field("bytes") if as_struct else chunk

    def load(self, row: int) -> Image.Image:
        return decode(self._read(row))

    def name(self, row: int) -> str:
        group, position = self._locate(row)
        file, number, _ = self.groups[group]
        return f"{self.paths[file]}: row {position} of group {number} ({self.names[row]})"

    def content(self, row: int) -> str:
        group, position = self._locate(row)
        # the size of a single image is unknown until it is read
        return f"{self.groups[group][2]}:{position}"

    def stamp(self, row: int) -> str:
        group, _ = self._locate(row)
        return f"{self.content(row)}:{self.stamps[self.groups[group][0]]}"

    def digest(self, row: int) -> bytes:
        return hashed(self._read(row))

    def summary(self) -> bytes:
        texts = " ".join([*map(str, self.paths), *self.stamps, self.column])
        arrays = (self.groups, self.ends, self.names.bytes, self.names.ends)
        return hashlib.sha256(
            b"".join([texts.encode("utf-8", "surrogateescape"), *(array.tobytes() for array in arrays)])
        ).digest()
