"""Label maps: the class of each pixel of an image, in a second image."""

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mixmim_bench.data.files import ABSENT, Files, Names
from mixmim_bench.data.hashing import WIDTH
from mixmim_bench.data.images import Images, UnreadableImage, decoding, hashed
from mixmim_bench.data.layout import LayoutError
from mixmim_bench.data.listings import keep_listing, read_listing
from mixmim_bench.specs import digest

IGNORED = -1  # pixels that are neither learnt nor scored
UNKNOWN = -2  # values that the task file does not mention
VERSION = 1  # of the survey
THREADS = 4
LARGEST = 65_535  # value of a pixel


@dataclass(frozen=True)
class Values:
    """What the pixels of label maps mean.

    Attributes:
        table: value -> class, IGNORED or UNKNOWN.
        colors: (r, g, b) -> value, for maps that encode classes as colours.
    """

    table: np.ndarray
    colors: Mapping[tuple[int, ...], int]

    @classmethod
    def of_options(
        cls,
        num_classes: int,
        *,
        reduce_zero_label: bool = False,
        ignore: Sequence[int] = (),
        values: Sequence[int] | None = None,
        colors: Sequence[Sequence[int]] | None = None,
    ) -> "Values":
        """Create from the options of a layout.

        Args:
            num_classes: K.
            reduce_zero_label: the value 0 is ignored, and 1 is the first class, as in ADE20K.
            ignore: values of ignored pixels; with `colors`, their colours.
            values: the value of each class; by default 0 to K - 1 (1 to K with `reduce_zero_label`).
            colors: the colour (r, g, b) of each class, of maps in colour.

        Raises:
            LayoutError: the options contradict each other.
        """
        first = int(reduce_zero_label)
        if colors is not None:
            if values is not None or reduce_zero_label:
                raise LayoutError("colors go without values and reduce_zero_label", "data.options.colors")
            return cls._of_colors(colors, ignore, num_classes)
        own = list(range(first, first + num_classes)) if values is None else list(values)
        for key, listed in (("values", own), ("ignore", ignore)):
            if not all(type(each) is int and 0 <= each <= LARGEST for each in listed):
                raise LayoutError(
                    f"must be integers from 0 to {LARGEST}, not {listed}", f"data.options.{key}"
                )
        if len(set(own)) != num_classes:
            reason = f"must be {num_classes} different numbers, one for each class"
            raise LayoutError(reason, "data.options.values")
        ignored = {*ignore, *([0] if reduce_zero_label else [])}
        if both := sorted(ignored & set(own)):
            raise LayoutError(f"the value {both[0]} is a class, and ignored", "data.options.ignore")
        table = np.full(LARGEST + 1, UNKNOWN, dtype=np.int16)
        table[own] = np.arange(num_classes)
        table[list(ignored)] = IGNORED
        return cls(table, {})

    @classmethod
    def _of_colors(cls, colors: Sequence[Sequence[int]], ignore: Sequence[Any], num_classes: int) -> "Values":
        found = {tuple(color): label for label, color in enumerate(_colors(colors, "colors"))}
        if len(found) != num_classes:
            reason = f"must be {num_classes} different colours [r, g, b], one for each class"
            raise LayoutError(reason, "data.options.colors")
        for color in _colors(ignore, "ignore"):
            if found.setdefault(color, LARGEST - 1) != LARGEST - 1:
                raise LayoutError(f"the colour {list(color)} is a class, and ignored", "data.options.ignore")
        table = np.full(LARGEST + 1, UNKNOWN, dtype=np.int16)
        table[:num_classes] = np.arange(num_classes)
        table[LARGEST - 1] = IGNORED
        return cls(table, found)

    def identity(self) -> str:
        """Hash what values mean."""
        colors = f"{sorted(self.colors.items())}".encode()
        return hashlib.sha256(self.table.tobytes() + colors).hexdigest()[:16]

    def read(self, data: bytes) -> np.ndarray:
        """Decode a label map to the classes of its pixels (h, w) int16; raises UnreadableImage."""
        raw = self._pixels(data)
        if self.colors:
            return self.table[_values_of_colors(raw, self.colors)]
        if raw.ndim == 3:
            channels = raw[..., : 1 if raw.shape[-1] == 2 else 3]
            if (channels != channels[..., :1]).any():
                raise UnreadableImage(
                    "a label map in colour; state `colors = [[r, g, b], …]`, one for each class, in the "
                    "options of the layout"
                )
            raw = channels[..., 0]
        if not np.issubdtype(raw.dtype, np.integer) and raw.dtype != bool:
            raise UnreadableImage(f"a label map of {raw.dtype} values instead of integers")
        raw = raw.astype(np.int64)
        return self.table[np.where((raw < 0) | (raw > LARGEST), LARGEST, raw)]

    def _pixels(self, data: bytes) -> np.ndarray:
        with decoding(), Image.open(io.BytesIO(data)) as image:
            in_color = self.colors and image.mode == "P"
            return np.asarray(image.convert("RGB") if in_color else image)

    def unknown(self, data: bytes) -> str:
        """Return the first value of a label map that means nothing, as text."""
        raw = self._pixels(data)
        if self.colors:
            flat = raw[..., :3].reshape(-1, 3)
            wrong = flat[self.table[_values_of_colors(flat, self.colors)] == UNKNOWN]
            return f"the colour {tuple(wrong[0].tolist())}"
        raw = raw[..., 0] if raw.ndim == 3 else raw
        wrong = raw[self.table[raw.astype(np.int64).clip(0, LARGEST)] == UNKNOWN]
        return f"the value {int(wrong.min())}"


def _colors(colors: Any, key: str) -> list[tuple[int, int, int]]:
    listed = list(colors)
    if not all(
        isinstance(color, list | tuple) and len(color) == 3 and all(type(x) is int for x in color)
        for color in listed
    ):
        raise LayoutError(f"must be colours [r, g, b], not {listed}", f"data.options.{key}")
    return [tuple(color) for color in listed]


def _values_of_colors(raw: np.ndarray, colors: Mapping[tuple[int, ...], int]) -> np.ndarray:
    if raw.ndim < 2 or raw.shape[-1] not in (3, 4):
        raise UnreadableImage("a label map without colours, although the task file states `colors`")
    codes = raw[..., :3].astype(np.int64) @ np.array([65_536, 256, 1])
    values = np.full(codes.shape, LARGEST, dtype=np.int64)
    for (red, green, blue), label in colors.items():
        values[codes == red * 65_536 + green * 256 + blue] = label
    return values


@dataclass(frozen=True)
class Survey:
    """What reading all label maps shows.

    Attributes:
        digests: of their bytes (n, 16).
        sizes: (n, 2), height and width; 0 where unreadable.
        pixels: of each class, and ignored ones (n, K + 1).
        problem: the first one, '' if there is none.
    """

    digests: np.ndarray
    sizes: np.ndarray
    pixels: np.ndarray
    problem: str = ""


def survey(maps: Files, images: Images, values: Values, num_classes: int) -> Survey:
    """Read all label maps, or what is cached of them; compare their sizes with those of the images.

    The result is cached by names, sizes and times of the files.
    """
    key = hashlib.sha256(
        f"{VERSION} {num_classes} {maps.root} {values.identity()}".encode()
        + maps.summary()
        + images.summary()
    ).hexdigest()
    name = f"label-maps-{digest(str(Path(maps.name(0)).parent.absolute()))}"
    if kept := read_listing(name, key):
        return Survey(kept["digests"], kept["sizes"], kept["pixels"])
    found = _read_all(maps, images, values, num_classes)
    if not found.problem:
        keep_listing(name, key, {"digests": found.digests, "sizes": found.sizes, "pixels": found.pixels})
    return found


def _read_all(maps: Files, images: Images, values: Values, num_classes: int) -> Survey:
    n = len(maps)
    digests = np.zeros((n, WIDTH), dtype=np.uint8)
    sizes = np.zeros((n, 2), dtype=np.int32)
    pixels = np.zeros((n, num_classes + 1), dtype=np.int32)

    def read(row: int) -> str:
        try:
            with decoding():
                data = Path(maps.name(row)).read_bytes()
            classes = values.read(data)
        except UnreadableImage as error:
            return f"the label map {maps.name(row)} cannot be read: {error}"
        digests[row] = np.frombuffer(hashed(data), dtype=np.uint8)
        sizes[row] = classes.shape
        counts = np.bincount(classes.ravel().astype(np.int64) - UNKNOWN, minlength=num_classes + 2)
        pixels[row] = np.append(counts[2:], counts[1])
        if counts[0]:
            return (
                f"{values.unknown(data)} in {maps.name(row)} is none of the {num_classes} classes; the "
                "options `values`, `ignore` and `reduce_zero_label` of the layout say what values mean"
            )
        size = _size_of(images, row)
        if size is not None and size != classes.shape:
            heights = [" x ".join(map(str, each)) for each in (classes.shape, size)]
            return f"the label map {maps.name(row)} has {heights[0]} pixels, but its image {heights[1]}"
        return ""

    with ThreadPoolExecutor(THREADS) as threads:
        problems = list(threads.map(read, range(n)))
    return Survey(digests, sizes, pixels, next(filter(None, problems), ""))


def _size_of(images: Images, row: int) -> tuple[int, int] | None:
    """Return height and width of an image by its header; None if it has none, which loading reports."""
    try:
        with Image.open(images.name(row)) as image:
            return image.height, image.width
    except Exception:  # PIL raises many types
        return None


class Masks:
    """Label maps as targets: (h, w) int16, with IGNORED pixels.

    Args:
        paths: of the label maps.
        values: what their pixels mean.
        found: what is known of them.
    """

    def __init__(self, paths: Names, values: Values, found: Survey) -> None:
        self.paths = paths
        self.values = values
        self.found = found

    @classmethod
    def of_files(cls, maps: Files, images: Images, values: Values, num_classes: int) -> "Masks":
        """Create from the label maps of images."""
        names = Names(maps.name(row) for row in range(len(maps)))
        return cls(names, values, survey(maps, images, values, num_classes))

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, row: int) -> np.ndarray:
        """Decode a label map; raises UnreadableImage."""
        with decoding():
            data = Path(self.paths[row]).read_bytes()
        return self.values.read(data)

    def collate(self, loaded: Sequence[Any]) -> Any:
        """Stack transformed label maps of the same size (B, h, w); a list of others."""
        import torch  # not needed to list datasets

        same = len({tuple(each.shape) for each in loaded}) == 1
        return torch.stack([torch.as_tensor(each) for each in loaded]) if same else list(loaded)

    def take(self, rows: np.ndarray) -> "Masks":
        """Select rows in the given order."""
        found = self.found
        part = Survey(found.digests[rows], found.sizes[rows], found.pixels[rows], found.problem)
        return Masks(Names(self.paths[int(row)] for row in rows), self.values, part)

    def joined(self, others: Sequence["Masks"]) -> "Masks":
        """Append label maps with the same meaning."""
        every = [self, *others]
        found = [each.found for each in every]
        return Masks(
            Names(each.paths[row] for each in every for row in range(len(each))),
            self.values,
            Survey(
                np.concatenate([each.digests for each in found]),
                np.concatenate([each.sizes for each in found]),
                np.concatenate([each.pixels for each in found]),
                self.found.problem,
            ),
        )

    def contents(self) -> Iterator[str]:
        """Yield the digest of each label map's bytes, with what its values mean."""
        meaning = self.values.identity()
        return (f"{digest.tobytes().hex()} {meaning}" for digest in self.found.digests)

    def summary(self) -> bytes:
        return hashlib.sha256(self.found.digests.tobytes() + self.values.identity().encode()).digest()

    def strata(self) -> np.ndarray | None:
        return None

    def per_class(self, num_classes: int) -> np.ndarray | None:
        return (self.found.pixels[:, :num_classes] > 0).sum(0)

    def pixels(self) -> np.ndarray:
        """Return the pixels of each class in all label maps (K,)."""
        return self.found.pixels[:, :-1].sum(0, dtype=np.int64)

    def remarks(self) -> list[str]:
        ignored = self.found.pixels[:, -1].sum(dtype=np.int64)
        share = 100 * ignored / max(self.found.pixels.sum(dtype=np.int64), 1)
        return [f"{share:.1f} % of the pixels are ignored"] if ignored else []

    def first_wrong(self, num_classes: int, images: Images) -> str | None:
        del num_classes, images
        return self.found.problem or None


def check_pairs(maps: Files, of: Iterable[str], where: str) -> None:
    """Raise LayoutError if label maps are missing; `of`: the names of their images."""
    absent = np.flatnonzero(maps.sizes == ABSENT)
    if len(absent):
        names = list(of)
        first = int(absent[0])
        raise LayoutError(
            f"{where}: {len(absent)} of {len(maps)} images have no label map, such as {names[first]} "
            f"({maps.name(first)})"
        )
