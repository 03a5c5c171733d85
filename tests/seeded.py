"""Weights and images from a seed: the same numbers wherever numpy is."""

import zlib

import numpy as np


def weights(name, shape, seed):
    """Draw the weights of one tensor, at scales that make every layer matter."""
    draw = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    if name.endswith("relative_position_bias_table"):
        return draw.astype(np.float32)
    if len(shape) == 1:  # norms and biases
        return (0.2 * draw + (1.0 if name.endswith("weight") else 0.0)).astype(np.float32)
    fan_in = np.prod(shape[1:])
    return (draw / np.sqrt(fan_in)).astype(np.float32)


def images(n, size, seed):
    """Draw images (n, 3, size, size)."""
    return np.random.default_rng([seed, 1]).standard_normal((n, 3, size, size)).astype(np.float32)


def digest(results):
    """Shorten arrays to numbers that a file can hold: of a long one its mean, deviation and 8 values."""
    short = {}
    for name, values in results.items():
        flat = np.asarray(values, dtype=np.float64).ravel()
        if len(flat) > 64:
            picked = flat[np.linspace(0, len(flat) - 1, num=8, dtype=int)]
            flat = np.array([flat.mean(), flat.std(), *picked])
        short[name] = [float(f"{value:.7g}") for value in flat]
    return short
