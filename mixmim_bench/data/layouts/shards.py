"""WebDataset shards: plain tar archives whose members with the same name form a sample."""

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

# key of a sample, label, original file name (or ''), image
Sample = tuple[str, int, str, Member]


class Shards:
    """Tar archives with `KEY.jpg` next to `KEY.cls` (a number) or `KEY.json`.

    Args:
        root: the folder that patterns are relative to.
        parts: the required parts.
        shards: part -> glob patterns.
        label: the extension of labels, such as `cls`, or `json:label` for an entry of a JSON object.
        id_pattern: matches the id in a sample's key or in the entry `filename` of its JSON; by default, the
            id is the key.
        class_pattern: matches the class there, see `Naming`.
        classes: the standard order of the classes.
    """

    partial = False

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
        return {part: [s for _, samples in shards for s in samples] for part, shards in self._listed.items()}

    @cached_property
    def _listed(self) -> dict[str, list[tuple[Path, list[Sample]]]]:
        listed = {}
        for part in self.parts:
            paths = self.shards.of(part)
            samples = kept_of_all(paths, f"shard {self.label}", self._read)
            listed[part] = list(zip(paths, samples, strict=True))
        return listed

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
            [(path, [image for _, _, _, image in samples]) for path, samples in self._listed[name]]
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
                raise LayoutError(f"{path}: duplicate member {member[0]}")
            grouped[key][extension.lower()] = member
        with path.open("rb") as file:

            def content(member: Member) -> bytes:
                file.seek(member[1])
                return file.read(member[2])

            return [self._sample(path, key, files, content) for key, files in grouped.items()]

    def _sample(self, path: Path, key: str, files: Mapping[str, Member], content: Any) -> Sample:
        images = [member for extension, member in files.items() if f".{extension}" in EXTENSIONS]
        if len(images) != 1:
            raise LayoutError(f"{path}: the sample {key} has {len(images)} images instead of one")
        kind, _, entry = self.label.partition(":")
        if kind not in files:
            raise LayoutError(f"{path}: the sample {key} has no .{kind}, only {', '.join(sorted(files))}")
        try:
            about = json.loads(content(files["json"])) if "json" in files else {}
            text = about[entry] if entry else content(files[kind]).decode()
            label = int(text)
        except (ValueError, KeyError, TypeError) as error:
            raise LayoutError(
                f"{path}: the label of {key} cannot be read: {type(error).__name__}: {error}"
            ) from error
        origin = about.get("filename", "") if isinstance(about, dict) else ""
        return key, label, str(origin), images[0]
