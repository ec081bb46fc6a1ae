"""What code values mean, by matrix and range, as the coefficients that the exported graph takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Matrix = Literal["bt601", "bt709"]

LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}
"""Weights of red and blue in luma (ITU-R BT.601-7 section 2.5.1, BT.709-6 section 3.2)."""

CENTRE = np.array((16, 128, 128))
"""Subtracted from the code values of Y, U and V before decoding: small integers, exact in every precision."""


@dataclass(frozen=True)
class Colour:
    """Matrix and range of a feed's code values; pictures leave the relay with those they came with."""

    matrix: Matrix = "bt601"
    full_range: bool = False
    """0..255, instead of 16..235 for luma and 16..240 for chroma."""
    grey: bool = False
    """Infrared and other pictures without colour: chroma is ignored on the way in and neutral on the way out."""

    def coefficients(self) -> NDArray[np.float32]:
        """(2, 3, 4) float32: [0] takes code values to RGB in [0, 1], [1] takes (R, G, B, 1) back to code values.

        [0] applies to (Y - 16, U - 128, V - 128, 1), see `CENTRE`: otherwise half precision would lose dark colours to
        the cancellation of large numbers. The array is a copy.
        """
        return _coefficients(self).copy()


@cache
def _coefficients(colour: Colour) -> NDArray[np.float32]:
    red, blue = LUMA[colour.matrix]
    to_yuv = np.array(
        [
            [red, 1 - red - blue, blue],
            np.array([-red, red + blue - 1, 1 - blue]) / (2 * (1 - blue)),
            np.array([1 - red, red + blue - 1, -blue]) / (2 * (1 - red)),
        ]
    )
    to_rgb = np.linalg.inv(to_yuv)
    if colour.grey:
        to_yuv[1:] = 0
        to_rgb[:, 1:] = 0
    scale = np.array([255, 255, 255]) if colour.full_range else np.array([219, 224, 224])
    offset = np.array([0 if colour.full_range else 16, 128, 128])
    decode = np.column_stack((to_rgb / scale, (to_rgb / scale) @ (CENTRE - offset)))
    encode = np.column_stack((to_yuv * scale[:, None], offset))
    return np.stack((decode, encode)).astype(np.float32)


def to_planes(picture: NDArray[np.uint8], colour: Colour) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """RGB (H, W, 3) to y (H, W) and uv (2, ceil(H/2), ceil(W/2)), all uint8; chroma is the mean of each 2x2 square."""
    height, width = picture.shape[:2]
    matrix = colour.coefficients()[1]
    code = (picture.astype(np.float32) / 255) @ matrix[:, :3].T + matrix[:, 3]  # (H, W, 3)
    even = np.pad(code[..., 1:], ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    squares = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, 2)
    return _codes(code[..., 0]), _codes(squares.mean((1, 3)).transpose(2, 0, 1))


def to_rgb(
    y: NDArray[np.uint8], uv: NDArray[np.uint8], colour: Colour, *, interpolated: bool = True
) -> NDArray[np.uint8]:
    """The inverse of `to_planes`: y (H, W) and uv (2, ceil(H/2), ceil(W/2)) to RGB (H, W, 3), all uint8.

    Chroma is `interpolated`, or else each sample is repeated over its 2x2 square, as in the picture graph.
    """
    height, width = y.shape
    chroma = uv.astype(np.float32)
    for axis in (1, 2):
        chroma = _double(chroma, axis) if interpolated else chroma.repeat(2, axis)
    code = np.concatenate((y[None].astype(np.float32), chroma[:, :height, :width]))  # (3, H, W)
    matrix = colour.coefficients()[0]
    rgb = np.einsum("ck,khw->hwc", matrix[:, :3], code - CENTRE[:, None, None]) + matrix[:, 3]
    return _codes(255 * rgb)


def _double(plane: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Interpolate to twice the length along `axis`; a sample lies midway between the two that replace it."""
    padded = np.concatenate((plane.take([0], axis), plane, plane.take([-1], axis)), axis=axis)
    before, here, after = (padded.take(range(start, start + plane.shape[axis]), axis) for start in range(3))
    pairs = np.stack((0.75 * here + 0.25 * before, 0.75 * here + 0.25 * after), axis=axis + 1)
    return pairs.reshape([-1 if i == axis else n for i, n in enumerate(plane.shape)]).astype(np.float32)


def _codes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    codes: NDArray[np.uint8] = np.rint(np.clip(values, 0, 255)).astype(np.uint8)
    return codes
