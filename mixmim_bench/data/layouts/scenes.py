"""Scenes of handwritten digits on photographs, for dense tasks on machines without datasets.

Scenes are composed from what installed packages carry: scikit-learn's digits and its two photographs. They
are written once to the cache folder, in the layouts of ADE20K's benchmark and of COCO, and read from there by
the same classes as the real sets. The digits keep the splits of the task `digits`, and each part has regions
of the photographs of its own.
"""

import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from mixmim_bench.atomic import write_whole
from mixmim_bench.cache import cache_folder
from mixmim_bench.data.images import Part
from mixmim_bench.data.layout import LayoutError
from mixmim_bench.data.layouts.ade20k import Challenge
from mixmim_bench.data.layouts.coco import COCO
from mixmim_bench.data.layouts.embedded import DIGITS, Embedded
from mixmim_bench.data.slices import Slice, stratified_order

VERSION = 1  # raised when a scene changes
SIDE = 128  # pixels
VOID = 0  # value of pixels that are ignored: those around a digit
BACKGROUND = 1
INK = 0.35  # of full ink, above which a pixel belongs to a digit
FAINT = 0.05  # below which it belongs to the background
# part -> scenes, slice of the digits, and share of the photographs' width
PARTS = {
    "training": (240, "all[:1000]", (0.0, 0.6)),
    "validation": (60, "all[1000:1297]", (0.6, 0.8)),
    "testing": (120, "all[1297:]", (0.8, 1.0)),
}


@dataclass(frozen=True)
class Scene:
    """An image with its digits.

    Attributes:
        pixels: (h, w, 3) uint8.
        masks: the visible pixels of each digit (k, h, w).
        void: pixels at the edge of a digit (h, w).
        labels: (k,).
    """

    pixels: np.ndarray
    masks: np.ndarray
    void: np.ndarray
    labels: list[int]


def scenes(part: str) -> Iterator[Scene]:
    """Compose the scenes of a part; the same on every machine, but for the decoder of the photographs."""
    count, digits, region = PARTS[part]
    all_digits = Embedded(Path(), ["all"], "digits").part("all")
    rows = Slice.parse(digits).rows(stratified_order(all_digits.ids, all_digits.labels), all_digits.labels)
    photographs = [photo[:, _columns(photo, region)] for photo in _photographs()]
    pixels: Any = all_digits.images
    rng = np.random.Generator(np.random.PCG64(VERSION * 10 + list(PARTS).index(part)))
    for _ in range(count):
        photo = photographs[int(rng.integers(len(photographs)))]
        top, left = (int(rng.integers(side - SIDE + 1)) for side in photo.shape[:2])
        chosen = rows[rng.integers(len(rows), size=int(rng.integers(1, 5)))]
        yield _compose(
            photo[top : top + SIDE, left : left + SIDE],
            [pixels.pixels[row].astype(np.int64) for row in chosen],
            all_digits.labels[chosen].tolist(),
            rng,
        )


def _columns(photo: np.ndarray, region: tuple[float, float]) -> slice:
    start, stop = (round(share * photo.shape[1]) for share in region)
    return slice(start, max(stop, start + SIDE))


def _photographs() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    return load_sample_images().images


def _compose(
    background: np.ndarray, digits: Sequence[np.ndarray], labels: Sequence[int], rng: np.random.Generator
) -> Scene:
    """Draw digits in colours that stand out, in places where they do not overlap."""
    pixels = background.astype(np.float64)
    void = np.zeros((SIDE, SIDE), dtype=bool)
    taken: list[tuple[int, int, int]] = []
    masks, kept = [], []
    for digit, label in zip(digits, labels, strict=True):
        factor = int(rng.integers(6, 11))
        side = digit.shape[0] * factor
        place = _free_place(side, taken, rng)
        tint = rng.integers(0, 70, size=3)
        if place is None:
            continue
        top, left = place
        taken.append((top, left, side))
        ink = _enlarged(digit, factor) / 255.0
        window = (slice(top, top + side), slice(left, left + side))
        color = 255 - tint if pixels[window].mean() < 110 else tint
        pixels[window] += ink[..., None] * (color - pixels[window])
        mask = np.zeros((SIDE, SIDE), dtype=bool)
        mask[window] = ink >= INK
        void[window] |= (ink < INK) & (ink >= FAINT)
        masks.append(mask)
        kept.append(int(label))
    return Scene(np.floor(pixels + 0.5).astype(np.uint8), np.array(masks), void, kept)


def _free_place(
    side: int, taken: Sequence[tuple[int, int, int]], rng: np.random.Generator
) -> tuple[int, int] | None:
    for _ in range(20):
        top, left = (int(each) for each in rng.integers(SIDE - side + 1, size=2))
        if all(
            top + side <= y or y + other <= top or left + side <= x or x + other <= left
            for y, x, other in taken
        ):
            return top, left
    return None


def _enlarged(digit: np.ndarray, factor: int) -> np.ndarray:
    """Enlarge a digit (h, w) bilinearly, in integers: the same on every machine."""
    side = digit.shape[0]
    doubled = 2 * np.arange(side * factor) + 1 - factor  # twice the position, in steps of 1 / factor
    low = np.floor_divide(doubled, 2 * factor)
    weight = doubled - 2 * factor * low
    first, second = low.clip(0, side - 1), (low + 1).clip(0, side - 1)
    along = digit[first] * (2 * factor - weight)[:, None] + digit[second] * weight[:, None]
    both = along[:, first] * (2 * factor - weight) + along[:, second] * weight
    return both // (2 * factor) ** 2


# -- files -----------------------------------------------------------------------------------------


def png(pixels: np.ndarray) -> bytes:
    """Encode (h, w) or (h, w, 3) uint8 as PNG without compression: the same bytes with any zlib."""
    height, width = pixels.shape[:2]
    color = 2 if pixels.ndim == 3 else 0
    rows = pixels.reshape(height, -1)
    raw = np.concatenate([np.zeros((height, 1), dtype=np.uint8), rows], axis=1).tobytes()
    blocks = [raw[start : start + 65_535] for start in range(0, len(raw), 65_535)]
    stored = b"".join(
        struct.pack("<BHH", block is blocks[-1], len(block), len(block) ^ 0xFFFF) + block for block in blocks
    )
    data = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(raw))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)),
        (b"IDAT", data),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def write_scenes(folder: Path) -> None:
    """Write all scenes to a folder, in ADE20K's and COCO's layouts."""
    for part in PARTS:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, scene in enumerate(scenes(part), 1):
            name = f"scene_{part}_{number:05d}.png"
            write_whole(folder / "images" / part / name, png(scene.pixels))
            labels = np.full((SIDE, SIDE), BACKGROUND, dtype=np.uint8)
            labels[scene.void] = VOID
            for mask, label in zip(scene.masks, scene.labels, strict=True):
                labels[mask] = BACKGROUND + 1 + label
                annotations.append(_annotation(len(annotations) + 1, number, mask, label))
            write_whole(folder / "annotations" / part / name, png(labels))
            images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": label + 1, "name": name} for label, name in enumerate(DIGITS)],
        }
        write_whole(folder / f"instances_{part}.json", json.dumps(content, separators=(",", ":")).encode())


def _annotation(number: int, image: int, mask: np.ndarray, label: int) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    flat = mask.T.ravel()  # run lengths go down the columns, and start with those of zeros
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *([0] if flat[0] else []), *changes, len(flat)]).tolist()
    return {
        "id": number,
        "image_id": image,
        "category_id": label + 1,
        "bbox": [
            int(columns[0]),
            int(rows[0]),
            int(columns[-1] - columns[0]) + 1,
            int(rows[-1] - rows[0]) + 1,
        ],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": [SIDE, SIDE], "counts": counts},
    }


def made() -> Path:
    """Return the folder of the scenes, and write them if they are not there or not whole."""
    folder = cache_folder() / "scenes" / f"v{VERSION}"
    if not (folder / "whole").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not (folder / "whole").exists():
                write_scenes(folder)
                write_whole(folder / "whole", b"")
    return folder


class _Scenes:
    """The scenes, behind the layout of a real set."""

    def __init__(self, root: Path, parts: Sequence[str]) -> None:
        del root  # they are in the cache folder
        self.parts = tuple(parts)
        for part in self.parts:
            if part not in PARTS:
                raise LayoutError(f"the scenes have the parts {', '.join(PARTS)}, not {part!r}")

    @cached_property
    def _layout(self) -> Any:
        raise NotImplementedError

    def missing(self) -> str:
        return ""

    def classes(self) -> Sequence[str]:
        return self._layout.classes()

    def part(self, name: str) -> Part:
        """List a part."""
        return self._layout.part(name)


class Segmented(_Scenes):
    """The scenes with label maps: background and ten digits, in ADE20K's layout."""

    @cached_property
    def _layout(self) -> Challenge:
        return Challenge(made(), self.parts, classes=["background", *DIGITS], reduce_zero_label=True)


class Detected(_Scenes):
    """The scenes with boxes and masks of ten digits, in COCO's layout."""

    @cached_property
    def _layout(self) -> COCO:
        return COCO(made(), self.parts, {part: f"instances_{part}.json" for part in self.parts}, ids="name")
