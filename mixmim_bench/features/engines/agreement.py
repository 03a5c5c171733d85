"""When the features of two engines are the same, up to rounding."""

from collections.abc import Mapping

import torch
from torch import Tensor

FLOAT32_TOLERANCE = 1e-4  # of the largest value of a layer; 2e-6 is usual
BFLOAT16_COSINE = 0.999  # of each image, with features in float32; 0.99997 is usual


def difference_of(expected: Mapping[str, Tensor], computed: Mapping[str, Tensor], precision: str) -> str:
    """Compare the features of a few images with those of torch in float32; return the difference, '' if none.

    In float32, values may differ by 1e-4 of the largest one; in bfloat16, the cosine of an image must be at
    least 0.999.
    """
    for layer, right in expected.items():
        other = computed[layer]
        if right.shape != other.shape:
            return f"{layer} has the shape {tuple(other.shape)}, not {tuple(right.shape)}"
        if precision == "bfloat16":
            cosine = torch.nn.functional.cosine_similarity(right.double(), other.double()).min().item()
            if not cosine >= BFLOAT16_COSINE:
                return f"the cosine of {layer} is {cosine:.5f}"
        else:
            relative = ((right - other).abs().max() / right.abs().max().clamp(min=1e-30)).item()
            if not relative <= FLOAT32_TOLERANCE:
                return f"{layer} differs by {relative:.1e} of the largest value"
    return ""
