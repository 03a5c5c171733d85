"""Predict and score the objects of a split."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mixmim_bench.data.dataset import Split
from mixmim_bench.data.joint import DetectionEval
from mixmim_bench.data.objects import Objects
from mixmim_bench.models.detector import Detector, in_image
from mixmim_bench.protocols.dense import one_by_one, reduced, shown_rows
from mixmim_bench.protocols.workbench import Workbench
from mixmim_bench.scoring.detection import Found, match
from mixmim_bench.scoring.predictions import Detections

PASTED = 2**26  # pixels of masks that are pasted together
DRAWN = 20  # detections of an image that are kept to be drawn


@torch.inference_mode()
def detect(
    bench: Workbench, split: Split, detector: Detector, shorter: int, images_of_classes: np.ndarray
) -> Detections:
    """Detect the objects of a split, and match them with the annotated ones.

    Args:
        bench: the run.
        split: images with `Objects`.
        detector: in evaluation mode.
        shorter: the shorter side of resized images; 0: their longer side is that of the run.
        images_of_classes: in how many training images each class occurs (K,).
    """
    transform = DetectionEval(bench.run.preprocessing, size=bench.run.size[0], shorter=shorter)
    detector.to(bench.machine.device).eval()
    read, found, boxes, masks = [], [], [], []
    shown: dict[str, np.ndarray] = {}
    chosen = set(shown_rows(len(split.part)))
    for seen in one_by_one(bench, split, transform, f"detecting in {split.role}"):
        size, target = seen.image.shape[-2:], seen.target
        with bench.machine.autocast():
            (of_image,) = detector(seen.image[None], [{"size": torch.tensor(size)}])
        mine = as_found(of_image, size, target["shape"])
        truth = target["objects"]
        read.append(seen.row)
        boxes.append(match(mine, truth, bench.num_classes, by_masks=False))
        if truth.masks is not None and mine.masks is not None:
            masks.append(match(mine, truth, bench.num_classes, by_masks=True))
        if seen.row in chosen:
            shown |= _drawable(seen.row, mine, target["shape"])
        found.append(dataclasses.replace(mine, masks=None))  # gigabytes in all
    return Detections(split.part.ids[read], found, boxes, masks or None, images_of_classes, shown)


def as_found(detected: Mapping[str, Any], size: Any, shape: tuple[int, int]) -> Found:
    """Return the detections of a resized image (h, w) in the pixels of the image as it was."""
    order = detected["scores"].argsort(descending=True, stable=True)
    detected = {name: values[order] for name, values in detected.items()}
    at_once = max(1, PASTED // (shape[0] * shape[1]))
    boxes, encoded = [], []
    for start in range(0, max(1, len(order)), at_once):
        some = {name: values[start : start + at_once] for name, values in detected.items()}
        own, masks = in_image(some, size, shape)
        boxes.append(own)
        if masks is not None:
            encoded += _encoded(masks.cpu().numpy())
    return Found(
        detected["scores"].cpu().numpy(),
        detected["labels"].cpu().numpy() - 1,  # 0 is the background
        torch.cat(boxes).cpu().numpy().astype(np.float64),
        encoded if "masks" in detected else None,
    )


def _encoded(masks: np.ndarray) -> list[Any]:
    from pycocotools import mask

    return [mask.encode(np.asfortranarray(each, dtype=np.uint8)) for each in masks]


def _drawable(row: int, found: Found, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Keep the best detections of an image, and their masks as one small map of numbers, 0 for none."""
    kept: dict[str, Any] = {
        f"shown_{row}_boxes": found.boxes[:DRAWN].astype(np.float32),
        f"shown_{row}_labels": found.labels[:DRAWN].astype(np.int16),
        f"shown_{row}_scores": found.scores[:DRAWN].astype(np.float32),
    }
    if found.masks is not None:
        from pycocotools import mask

        drawn = np.zeros(shape, dtype=np.uint8)
        for place in range(min(DRAWN, len(found.masks)) - 1, -1, -1):  # the most certain ones on top
            drawn[mask.decode(found.masks[place]) > 0] = place + 1
        kept[f"shown_{row}_masks"] = reduced(drawn)
    return kept


def rows_to_train(objects: Objects, repeat_below: float, num_classes: int, seed: int) -> np.ndarray:
    """Return the rows of images with objects, those with rare classes several times (LVIS).

    A class in a share f of the images repeats an image sqrt(repeat_below / f) times, the rarest of its
    classes decides, and the fraction of a repetition is drawn once (arXiv 1908.03195, appendix B.2).
    """
    rows = objects.with_objects()
    if not repeat_below or not len(rows):
        return rows
    counts = objects.per_class(num_classes)
    assert counts is not None
    share = np.maximum(counts, 1) / len(objects)
    of_class = np.maximum(1.0, np.sqrt(repeat_below / share))
    factors = np.array([of_class[objects.labels[row]].max() for row in rows])
    drawn = np.random.default_rng(seed).random(len(rows)) < factors % 1.0
    return np.repeat(rows, factors.astype(np.int64) + drawn)
