"""Predict and score the label maps of a split."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mixmim_bench.data.dataset import Split
from mixmim_bench.data.images import Part
from mixmim_bench.data.joint import SegmentationEval
from mixmim_bench.data.windows import windows as cut
from mixmim_bench.models.pyramid import Pyramid
from mixmim_bench.protocols.dense import one_by_one, reduced, shown_rows
from mixmim_bench.protocols.on_train import of_items, sample
from mixmim_bench.protocols.segmentation import SLIDE, WHOLE
from mixmim_bench.protocols.workbench import Workbench
from mixmim_bench.scoring.predictions import PixelCounts
from mixmim_bench.scoring.segmentation import count_pixels

CLASSES_AT_ONCE = 16  # whose logits are enlarged together

Logits = Callable[[Tensor], Tensor]  # of images (b, 3, h, w): (b, K, h, w)


def evaluation_of(pyramid: Pyramid, asked: str, notes: list[str]) -> str:
    """Return how images are evaluated: by windows, if a network takes images of one size only."""
    if asked == WHOLE and pyramid.size is not None:
        notes.append("evaluated by sliding windows, since the network takes images of one size only")
        return SLIDE
    return asked


def score_on_train(
    bench: Workbench, part: Part, most: int, network: Logits, evaluation: str, stride: int
) -> dict[str, float]:
    """Score at most so many of the images that a network was trained on, as those of test are scored."""
    split = Split("train", sample(part, most))
    (counts,) = predict_maps(bench.aside(), split, [network], evaluation, stride)
    return of_items(dict.fromkeys(bench.metrics, counts.items), len(counts))


@torch.inference_mode()
def predict_maps(
    bench: Workbench, split: Split, networks: Sequence[Logits], evaluation: str, stride: int
) -> list[PixelCounts]:
    """Predict the label maps of a split with several networks, and count their pixels.

    Images are resized to the run's size (the shorter side), and the logits to the size of the label map.
    """
    K = bench.num_classes
    crop = bench.run.size[0]
    counts = np.zeros((len(networks), len(split.part), 3, K), dtype=np.int64)
    chosen = set(shown_rows(len(split.part)))
    shown: list[dict[str, np.ndarray]] = [{} for _ in networks]
    transform = SegmentationEval(bench.run.preprocessing, size=crop)
    read = []
    for seen in one_by_one(bench, split, transform, f"segmenting {split.role}"):
        read.append(seen.row)
        labels = seen.target.numpy()
        for place, network in enumerate(networks):
            if evaluation == SLIDE:
                logits = slide(network, seen.image, crop, stride, bench)
            else:
                with bench.machine.autocast():
                    logits = network(seen.image[None])[0].float()
            predicted = best_classes(logits, labels.shape).cpu().numpy()
            counts[place, seen.row] = count_pixels(labels, predicted, K)
            if seen.row in chosen:
                shown[place][f"shown_{seen.row}"] = reduced(predicted).astype(np.int16)
    return [
        PixelCounts(split.part.ids[read], of_one[read], s) for of_one, s in zip(counts, shown, strict=True)
    ]


def slide(network: Logits, image: Tensor, crop: int, stride: int, bench: Workbench) -> Tensor:
    """Average the logits (K, h, w) of overlapping windows of an image (3, h, w), as in mmsegmentation."""
    windows = [
        (slice(top, top + height), slice(left, left + width))
        for top, left, height, width in cut(image.shape[-2], image.shape[-1], crop, stride)
    ]
    total: Tensor | None = None
    counts = torch.zeros(image.shape[-2:], device=image.device)
    at_once = bench.machine.batch_size
    for start in range(0, len(windows), at_once):
        group = windows[start : start + at_once]
        with bench.machine.autocast():
            logits = network(torch.stack([image[(slice(None), *window)] for window in group])).float()
        if total is None:
            total = torch.zeros(logits.shape[1], *image.shape[-2:], device=image.device)
        for window, of_window in zip(group, logits, strict=True):
            total[(slice(None), *window)] += of_window
            counts[window] += 1
    assert total is not None
    return total / counts


def best_classes(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """Enlarge logits (K, h, w) to a size, and return the best class of each pixel, the first among equals."""
    best: Any = None
    for start in range(0, len(logits), CLASSES_AT_ONCE):
        some = logits[None, start : start + CLASSES_AT_ONCE]
        values, classes = F.interpolate(some, size, mode="bilinear", align_corners=False)[0].max(0)
        if best is None:
            best = [values, classes]
        else:
            better = values > best[0]
            best = [torch.where(better, values, best[0]), torch.where(better, classes + start, best[1])]
    return best[1]
