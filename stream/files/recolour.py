"""Converts pictures to the colour matrix and range of a file. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engines.colour import CENTRE, Colour
from stream.frame import Plane

Values = NDArray[np.float32]


def recoloured(y: Plane, uv: Plane, colour: Colour, wanted: Colour) -> tuple[Plane, Plane]:
    """Convert y (2H, 2W) and uv (2, H, W), all uint8, from `colour` to `wanted`, neither of which may be grey.

    With any matrices, the new chroma does not depend on luma: it is not resampled, and neutral chroma stays neutral.
    """
    decode, encode = colour.coefficients()[0], wanted.coefficients()[1]
    matrix = encode[:, :3] @ decode[:, :3]
    offset = encode[:, :3] @ decode[:, 3] + encode[:, 3]
    black, neutral, _ = CENTRE.tolist()
    luma, chroma = y.astype(np.float32) - black, uv.astype(np.float32) - neutral
    luma = matrix[0, 0] * luma + doubled(np.tensordot(matrix[0, 1:], chroma, 1)) + offset[0]
    return codes(luma), codes(np.tensordot(matrix[1:, 1:], chroma, 1) + offset[1:, None, None])


def doubled(plane: Values) -> Values:
    """(H, W) to (2H, 2W), interpolated: each sample sits in the centre of the four that it becomes."""
    for _ in range(2):
        padded = np.pad(plane, ((1, 1), (0, 0)), mode="edge")
        halves = (0.75 * plane + 0.25 * padded[:-2], 0.75 * plane + 0.25 * padded[2:])
        plane = np.stack(halves, axis=1).reshape(-1, plane.shape[1]).T
    return plane


def codes(values: Values) -> Plane:
    """The nearest code values."""
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)
