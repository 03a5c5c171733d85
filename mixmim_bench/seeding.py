"""The one place where random generators are seeded.

timm's augmentations and Mixup draw from the global generators, so these are seeded for every image and every
step from (seed, epoch, row) or (seed, step): the draws are the same whatever else runs and on any number of
workers. Everything else draws from a generator of its own.
"""

import random

import numpy as np
import torch


def seed_everything(*key: int) -> None:
    """Seed the global generators of Python, NumPy and torch from a tuple of whole numbers."""
    state = np.random.SeedSequence(key).generate_state(2)
    random.seed(int(state[0]))
    np.random.seed(int(state[0]))  # noqa: NPY002 (the legacy generator is what timm draws from)
    torch.manual_seed(int(state[1]))


def generator(*key: int) -> torch.Generator:
    """Make a generator of torch's from a tuple of whole numbers."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)
