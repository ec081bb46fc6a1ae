"""Lamps, signs and headlights, which LOL lacks: small saturated lights with a glow around them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Light = NDArray[np.float32]
"""(H, W, 3) linear light as the camera gathers it: its sensor saturates at 1."""

COLOURS = np.array([(1.0, 0.72, 0.42), (1.0, 0.93, 0.82), (0.85, 0.95, 1.0), (1.0, 0.35, 0.25)], np.float32)
"""Sodium, warm and cold white, tail lights and signs."""
MOST = 5
RADIUS = (0.004, 0.016)
"""Radius of a lamp, as a share of the picture's height."""
LENGTH = 0.06
"""Half the length of the longest tube or sign, as a share of the picture's height."""
POWER = (2.0, 6.0)
GLOW = (0.02, 0.2)
"""Glow at the lamp's rim as a share of its power; it falls off with the square of the distance."""


def lamps(height: int, width: int, random: np.random.Generator) -> Light:
    """(H, W, 3) float32: one to `MOST` discs and bars, each with its glow."""
    light = np.zeros((height, width, 3), np.float32)
    for _ in range(random.integers(1, MOST + 1)):
        light += _lamp(height, width, random)
    return light


def _lamp(height: int, width: int, random: np.random.Generator) -> Light:
    radius = height * log_uniform(RADIUS, random)
    stretch = random.permutation([0.0, height * random.uniform(0, LENGTH)]) * random.integers(2)  # none, or on one axis
    rows = np.abs(np.arange(height) - random.uniform(0, height))
    columns = np.abs(np.arange(width) - random.uniform(0, width))
    distance = np.hypot(np.maximum(rows - stretch[0], 0)[:, None], np.maximum(columns - stretch[1], 0))
    disc = np.clip(radius + 0.5 - distance, 0, 1)
    glow = log_uniform(GLOW, random) * np.maximum(distance / radius, 1) ** -2
    colour = random.choice(COLOURS) * log_uniform(POWER, random)
    return np.asarray(np.maximum(disc, glow)[..., None] * colour, np.float32)


def log_uniform(limits: tuple[float, float], random: np.random.Generator) -> float:
    """A random number between two limits above 0, uniform on a logarithmic scale."""
    return float(np.exp(random.uniform(*np.log(limits))))
