"""Turns and mirrors pictures upright: from a source's display matrix to views of planes. Pure."""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

Orientation = Literal[1, 2, 3, 4, 5, 6, 7, 8]
"""As in TIFF 6.0 and EXIF: 1 is upright; 3, 6 and 8 must be turned by 180, 90 and 270 degrees clockwise; 2 and 4 are
mirrored (left to right, upside down); 5 and 7 are mirrored along a diagonal. From 5 on, width and height are swapped.
"""

UPRIGHT: Orientation = 1

MIRRORINGS = ((False, False), (False, True), (True, True), (True, False))
"""Upside down, and left to right: for 1 to 4, and for 5 to 8 after transposing."""


def orientation_of(display_matrix: tuple[int, ...]) -> Orientation:
    """The orientation of a display matrix (FFmpeg's nine numbers, or none), to the nearest quarter turn.

    It maps the pixel x right of the centre and y below it to (x a + y c, x b + y d), where a, b, _, c and d are the
    first of the nine numbers.
    """
    if not display_matrix:
        return UPRIGHT
    a, b, _, c, d, *_ = display_matrix
    swapped = abs(b) + abs(c) > abs(a) + abs(d)
    right, down = (c, b) if swapped else (a, d)
    return cast("Orientation", 1 + 4 * swapped + MIRRORINGS.index((down < 0, right < 0)))


def swaps_sides(orientation: Orientation) -> bool:
    """Whether width and height are swapped."""
    return orientation > 4


def upright(picture: NDArray[np.uint8], orientation: Orientation) -> NDArray[np.uint8]:
    """A view of a plane (H, W) or an RGB picture (H, W, 3), upright: (W, H) or (W, H, 3) where sides are swapped."""
    if orientation == UPRIGHT:
        return picture
    turned = picture.swapaxes(0, 1) if swaps_sides(orientation) else picture
    upside_down, left_to_right = MIRRORINGS[(orientation - 1) % 4]
    return turned[:: -1 if upside_down else 1, :: -1 if left_to_right else 1]
