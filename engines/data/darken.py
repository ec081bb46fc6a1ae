"""Makes a night camera's picture from a day picture: less light, photon and read noise, a colour cast.

The model is the usual one (Wei et al., "A Physics-based Noise Formation Model for Extreme Low-light Raw
Denoising", CVPR 2020), reduced to what survives an 8-bit video encoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GAMMA = 2.2
"""Exponent from code values to linear light."""


@dataclass(frozen=True)
class Night:
    """How dark and how noisy."""

    exposure: float = 0.02
    """Share of the linear light that is left."""
    photons: float = 4000.0
    """Photons for a white pixel of the *day* picture; fewer are noisier."""
    read_noise: float = 0.0005
    """Standard deviation in linear light, where white is 1."""
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Factors of red, green and blue in linear light."""
    crushed: float = 0.0
    """Code value, of 255, below which the camera keeps nothing; it is subtracted from those above."""
    pedestal: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Code values, of 255, of red, green and blue that the camera sends as black."""

    def __post_init__(self) -> None:
        if self.exposure < 0 or self.photons <= 0 or self.read_noise < 0:
            raise ValueError(f"{self}: exposure and read_noise must be at least 0, photons above 0")
        if not all(0 <= code < 255 for code in (self.crushed, *self.pedestal)):
            raise ValueError(f"{self}: crushed and pedestal must be at least 0 and below 255")


CLEAR = Night(exposure=1.0)
"""A camera that keeps everything."""


def darken(picture: NDArray[np.uint8], night: Night, random: np.random.Generator) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB by day to the same size and type by night."""
    return record(gather(picture, night), night, random)


def gather(picture: NDArray[np.uint8], night: Night) -> NDArray[np.float32]:
    """The light that reaches the camera from (H, W, 3) uint8 RGB: linear float32, the sensor saturates at 1."""
    light = DECODE.take(picture)
    light *= np.asarray(night.cast, np.float32) * np.float32(night.exposure)
    return light


def record(light: NDArray[np.float32], night: Night, random: np.random.Generator) -> NDArray[np.uint8]:
    """The camera's code values for the light (H, W, 3), with its noise: uint8; `light` is not changed."""
    noisy = random.standard_normal(light.shape, np.float32)
    noisy *= np.sqrt(light / np.float32(night.photons) + np.float32(night.read_noise**2))
    noisy += light
    return _codes(noisy, night)


def encode(light: NDArray[np.float32], night: Night = CLEAR) -> NDArray[np.uint8]:
    """The camera's code values for the light (H, W, 3) float32, without noise: uint8; `light` is not changed."""
    return _codes(light.copy(), night)


def visible(light: NDArray[np.float32], night: Night) -> NDArray[np.float32]:
    """How much of the light (H, W, 3) the camera keeps at each place: (H, W) float32 from 0, nothing, to 1, all."""
    brightest = encode(light).max(axis=2).astype(np.float32)
    return np.clip((brightest - np.float32(night.crushed)) / ENOUGH, 0, 1) if night.crushed else np.ones_like(brightest)


def _codes(light: NDArray[np.float32], night: Night) -> NDArray[np.uint8]:
    """Encode in place: overwrites `light`."""
    np.clip(light, BLACK, 1, out=light)
    light **= np.float32(1 / GAMMA)
    light *= 255
    if night.crushed:
        light -= np.float32(night.crushed)
        np.maximum(light, 0, out=light)
    if any(night.pedestal):
        light += np.asarray(night.pedestal, np.float32)
        np.minimum(light, 255, out=light)
    return np.rint(light, out=light).astype(np.uint8)


ENOUGH = 6
"""Code values above the crushed ones from which a place counts as fully seen."""


BLACK = 1e-9
"""Least linear light, which rounds to code value 0: powers of zero itself are several times slower."""

DECODE: NDArray[np.float32] = ((np.arange(256, dtype=np.float32) / 255) ** GAMMA).astype(np.float32)
"""Code value to linear light."""
