"""Calibration: whether a classifier is right as often as its confidence says."""

import numpy as np

from mixmim_bench.scoring.intervals import RESAMPLES, resample
from mixmim_bench.specs import Score

BINS = 15  # of equal width, as in Guo et al., arXiv 1706.04599


def confidences(logits: np.ndarray) -> np.ndarray:
    """Return the softmax probability (n,) of the best class of each row of logits (n, K)."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return 1.0 / np.exp(shifted).sum(1)


def calibration_error(confidence: np.ndarray, hits: np.ndarray) -> float:
    """Return the expected calibration error (ECE) of the best classes, a fraction.

    Images are put into 15 bins by confidence; the error is the mean gap between confidence and accuracy,
    weighted by the images of each bin.

    Args:
        confidence: of each image (n,), 0 to 1.
        hits: whether its best class is right (n,).
    """
    return float(_errors(confidence, hits, np.ones((1, len(hits))))[0])


def score_calibration(confidence: np.ndarray, hits: np.ndarray) -> Score:
    """Score the expected calibration error, with a basic bootstrap interval over images.

    Resampling noise adds to the error, so the percentiles of the resamples lie too high; the basic bootstrap
    reflects them at the value.
    """
    value = calibration_error(confidence, hits)
    drawn = np.concatenate([_errors(confidence, hits, weights) for weights in resample(len(hits), RESAMPLES)])
    low, high = (float(2 * value - bound) for bound in np.quantile(drawn, [0.975, 0.025]))
    return {
        "value": value,
        "low": min(max(low, 0.0), value),
        "high": max(min(high, 1.0), value),
        "interval": "basic bootstrap over images",
        "n": len(hits),
        "resamples": RESAMPLES,
    }


def _errors(confidence: np.ndarray, hits: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the error under each of some weights of the images (r, n), (r,)."""
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.zeros((len(hits), BINS))
    gaps[np.arange(len(hits)), bins] = confidence - hits
    return np.abs(weights @ gaps).sum(1) / weights.sum(1)
