"""The one place where the global generators are seeded.

timm's augmentations and Mixup draw from them, so they are seeded for every image and every step from
(seed, epoch, row) or (seed, step): the draws are the same whatever else runs and on any number of workers.
"""

import random

import numpy as np
import torch


def seed_everything(*key: int) -> None:
    """Seed Python, NumPy and torch from a tuple of whole numbers."""
    state = np.random.SeedSequence(key).generate_state(2)
    random.seed(int(state[0]))
    np.random.seed(int(state[0]))  # noqa: NPY002 (the legacy generator is what timm draws from)
    torch.manual_seed(int(state[1]))
