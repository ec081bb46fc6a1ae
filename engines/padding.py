"""How a picture is padded for its network, and which shapes follow from that; without torch."""

from __future__ import annotations

from engines.door import PAST, SCALE, Shape
from engines.network.config import NetworkConfig

MARGIN = 8
"""Least padding on every side, in pixels: a convolution's zeros would darken the border of the picture."""


def padding(height: int, width: int, multiple: int) -> tuple[int, int, int, int]:
    """Pixels to add left, right, above and below: `MARGIN`, and then up to the network's multiple."""
    right = MARGIN + -(width + 2 * MARGIN) % multiple
    bottom = MARGIN + -(height + 2 * MARGIN) % multiple
    return MARGIN, right, MARGIN, bottom


def past_shapes(config: NetworkConfig, width: int, height: int) -> dict[str, Shape]:
    """The shapes, without the batch, of what is kept of a picture for the next one: see
    `engines.picture.PictureGraph`."""
    left, right, top, bottom = padding(height, width, config.multiple)
    places = (left + width + right) * (top + height + bottom) // config.unshuffle**2
    luma = (SCALE * config.unshuffle) ** 2
    return dict(zip(PAST, ((places, luma), (places, luma // 2)), strict=True))
