"""Seeding of random generators.

timm's augmentations and Mixup draw from the global generators, which are therefore reseeded for every image
and step from (seed, epoch, row) or (seed, step): the draws do not depend on other code or the number of
workers. Everything else uses its own generator.
"""

import random

import numpy as np
import torch


def seed_everything(*key: int) -> None:
    """Seed the global generators of Python, NumPy and torch from integers."""
    state = np.random.SeedSequence(key).generate_state(2)
    random.seed(int(state[0]))
    np.random.seed(int(state[0]))  # noqa: NPY002 (timm draws from the legacy generator)
    if torch.cuda.is_initialized() or torch.xpu.is_initialized() or torch.backends.mps.is_available():
        torch.manual_seed(int(state[1]))
    else:  # which has the same effect, without a formatted stack for each kind of device that is not in use
        torch.default_generator.manual_seed(int(state[1]))


def generator(*key: int) -> torch.Generator:
    """Create a torch generator from integers."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)
