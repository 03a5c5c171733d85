"""Scores of label maps: pixels that agree, per image and class, summed over all images before any ratio."""

from collections.abc import Sequence

import numpy as np


def count_pixels(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of an image.

    Args:
        labels: (h, w), negative where ignored.
        predicted: (h, w), a class for every pixel.
        num_classes: K.

    Returns:
        (3, K): pixels that agree, predicted pixels and labelled pixels of each class; ignored ones are in
        none.
    """
    valid = labels >= 0
    labels, predicted = labels[valid].astype(np.int64), predicted[valid].astype(np.int64)
    return np.stack(
        [
            np.bincount(each, minlength=num_classes)
            for each in (labels[labels == predicted], predicted, labels)
        ]
    )


def iou_of_classes(items: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each class (r, K), NaN for classes that do not occur.

    items: agreeing, predicted and labelled pixels (n, K) each; weights (r, n).
    """
    agreeing, predicted, labelled = (weights @ each for each in items)
    union = predicted + labelled - agreeing
    with np.errstate(invalid="ignore"):
        return np.where(union > 0, agreeing / union, np.nan)


def accuracy_of_classes(items: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Return the share of each class's labelled pixels that are right (r, K), NaN for classes without any."""
    agreeing, _, labelled = (weights @ each for each in items)
    with np.errstate(invalid="ignore"):
        return np.where(labelled > 0, agreeing / labelled, np.nan)


def pixel_accuracy(items: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Return the share of all labelled pixels that are right (r,)."""
    agreeing, _, labelled = (weights @ each.sum(1) for each in items)
    return agreeing / labelled
