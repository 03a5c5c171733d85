"""WebDataset shards: plain tar archives in which members with the same name form a sample."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixmim_bench.data.classes import Classes, Order
from mixmim_bench.data.files import FilesOfParts
from mixmim_bench.data.images import EXTENSIONS, Part
from mixmim_bench.data.layout import LayoutError
from mixmim_bench.data.naming import Naming
from mixmim_bench.data.tars import InTars, Member, in_tars, kept_of_all, members

# key of a sample, its label, what it says of its origin, its image
Sample = tuple[str, int, str, Member]


class Shards:
    """Tar archives with `KEY.jpg` next to `KEY.cls` (a number) or `KEY.json`.

    shards: part -> glob patterns. label: the extension of the label, `cls`, or `json:label` for an entry of a
    JSON object. The id of an image is its key, or the match of `id_pattern` in its key or in the entry
    `filename` of its JSON. classes and class_pattern: the standard order of the classes, and
    how an image names its own; see `Naming`.
    """

    def __init__(
        self,
        root: Path,
        parts: Sequence[str],
        shards: Mapping[str, Any],
        label: str = "cls",
        id_pattern: str = "",
        class_pattern: str = "",
        classes: Any = None,
    ) -> None:
        self.parts = tuple(parts)
        self.shards = FilesOfParts(root, parts, shards, "shards", "data.options.shards")
        self.label = label
        self.naming = Naming(id_pattern, class_pattern)
        self._wanted = classes

    def missing(self) -> str:
        return self.shards.missing()

    def classes(self) -> Sequence[str]:
        return self._classes.names

    @cached_property
    def _classes(self) -> Classes:
        if self._wanted is not None:
            return Classes.of_option(self._wanted)
        highest = max((label for samples in self._samples.values() for _, label, _, _ in samples), default=-1)
        return Classes.of_option(highest + 1)

    @cached_property
    def _samples(self) -> dict[str, list[Sample]]:
        return {part: [s for _, samples in found for s in samples] for part, found in self._found.items()}

    @cached_property
    def _found(self) -> dict[str, list[tuple[Path, list[Sample]]]]:
        found = {}
        for part in self.parts:
            paths = self.shards.of(part)
            found[part] = list(zip(paths, kept_of_all(paths, f"shard {self.label}", self._read), strict=True))
        return found

    @cached_property
    def _order(self) -> Order:
        order = Order(self._classes)
        for samples in self._samples.values():
            for key, label, origin, _ in samples:
                name = self.naming.class_of(key, origin)
                if name:
                    order.learn(label, name, origin or key)
        return order

    def part(self, name: str) -> Part:
        """List the samples of a part; raises LayoutError for truncated shards."""
        samples = self._samples[name]
        labels = np.array([label for _, label, _, _ in samples], dtype=np.int64)
        ids = [self.naming.id_of(key, origin) for key, _, origin, _ in samples]
        images: InTars = in_tars(
            [(path, [image for _, _, _, image in found]) for path, found in self._found[name]]
        )
        return Part(np.array(ids), self._order.map(labels, self.shards.describe([name])), images)

    # -- one shard ---------------------------------------------------------------------------------------

    def _read(self, path: Path) -> list[Sample]:
        grouped: dict[str, dict[str, Member]] = {}
        for member in members(path):
            folder, _, base = member[0].rpartition("/")
            stem, _, extension = base.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if "." not in base:
                continue
            if extension.lower() in grouped.setdefault(key, {}):
                raise LayoutError(f"{path}: {member[0]} occurs twice")
            grouped[key][extension.lower()] = member
        with path.open("rb") as file:

            def content(member: Member) -> bytes:
                file.seek(member[1])
                return file.read(member[2])

            return [self._sample(path, key, found, content) for key, found in grouped.items()]

    def _sample(self, path: Path, key: str, found: Mapping[str, Member], content: Any) -> Sample:
        images = [member for extension, member in found.items() if f".{extension}" in EXTENSIONS]
        if len(images) != 1:
            raise LayoutError(f"{path}: the sample {key} has {len(images)} images, not one")
        kind, _, entry = self.label.partition(":")
        if kind not in found:
            raise LayoutError(f"{path}: the sample {key} has no .{kind}, but {', '.join(sorted(found))}")
        try:
            about = json.loads(content(found["json"])) if "json" in found else {}
            text = about[entry] if entry else content(found[kind]).decode()
            label = int(text)
        except (ValueError, KeyError, TypeError) as error:
            raise LayoutError(
                f"{path}: the label of {key} cannot be read: {type(error).__name__}: {error}"
            ) from error
        origin = about.get("filename", "") if isinstance(about, dict) else ""
        return key, label, str(origin), images[0]
