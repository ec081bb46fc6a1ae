"""Pictures that are too large for one pass, tile by tile: in bounded memory, and without a seam.

Tiles lie on the network's grid and overlap by what it sees around a pixel, so each makes its middle as the whole
picture would; but for feature fusing's weights, which come from the mean over a picture (`engines.network.memory`). So
every tile is first asked for its own, and then all are held to what these have in common.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

from engines.colour import Colour, to_planes, to_rgb
from engines.data.lol import Picture
from engines.door import SCALE, Door, Memory, Numbers
from engines.errors import EngineMismatch

LARGEST_PIXELS = 1 << 21
"""Of a picture that is enhanced in one pass, which takes 550 bytes of memory for each."""
LONGEST = 1024
"""A tile's longest side in pixels, or a little more."""
GRID = 16
"""Pixels between the places where the poolings of all networks, and chroma, begin anew."""
OVERLAP = 18
"""Of two neighbours, in steps of `GRID`: twice what the networks see around a pixel, 137 pixels of `neid-live`."""
NEAR = 0.01
"""Mean distance from a picture's own weights at which a memory is kept whole, see `engines.network.memory`."""
SURE = 1e-6
"""Weights that are as near to 0 or 1 as this count as this near."""


@dataclass(frozen=True)
class Span:
    """A tile along one side of the picture, in pixels."""

    start: int
    stop: int
    first: int
    """Where the part begins that is taken from this tile."""
    end: int
    """Behind the last pixel of that part."""

    def taken(self) -> slice:
        """That part, in the tile's double."""
        return slice(SCALE * (self.first - self.start), SCALE * (self.end - self.start))


def is_large(engine: Door, picture: Picture) -> bool:
    """Whether a picture (H, W, 3) is for `enhance_tiles`."""
    height, width = picture.shape[:2]
    widest, highest = engine.info.largest
    return bool(height * width > LARGEST_PIXELS or width > widest or height > highest)


def enhance_tiles(engine: Door, picture: Picture, colour: Colour) -> Iterator[tuple[int, int, Picture]]:
    """RGB (H, W, 3) uint8 to its enhanced double (2H, 2W, 3) in parts: row, column and RGB (h, w, 3) uint8 of each.

    The parts leave nothing out, overlap nowhere and are the caller's. All tiles have one size, and pass the engine
    twice each. Raises `EngineError`, and `EngineMismatch` for a side that is too short.
    """
    height, width = picture.shape[:2]
    narrowest, lowest = engine.info.smallest
    if width < narrowest or height < lowest:
        raise EngineMismatch(f"a picture of {width}x{height}; it must be {narrowest}x{lowest} or larger")
    places = list(product(cover(height), cover(width)))
    tiles = [picture[rows.start : rows.stop, columns.start : columns.stop] for rows, columns in places]
    own = [own_weights(engine, tile, colour) for tile in tiles]
    wanted = typical(own)
    for (rows, columns), tile, weights in zip(places, tiles, own, strict=True):
        y, uv = engine.enhance(*to_planes(tile, colour), colour, *holding(wanted, weights))
        yield SCALE * rows.first, SCALE * columns.first, to_rgb(y, uv, colour)[rows.taken(), columns.taken()]


def cover(length: int) -> list[Span]:
    """Tiles of one size along a side of so many pixels, each on the grid of the whole side, as few as there can be."""
    steps, rest = divmod(length, GRID)
    count = max(1, math.ceil((steps - OVERLAP) / (LONGEST // GRID - OVERLAP)))
    size = math.ceil((steps + (count - 1) * OVERLAP) / count)
    starts = [GRID * ((steps - size) * index // max(1, count - 1)) for index in range(count)]
    stops = [start + GRID * size + rest for start in starts]
    cuts = [0, *((start + stop) // 2 for start, stop in zip(starts[1:], stops, strict=False)), length]
    return [Span(*ends, *part) for ends, part in zip(zip(starts, stops, strict=True), pairwise(cuts), strict=True)]


def own_weights(engine: Door, tile: Picture, colour: Colour) -> Numbers:
    """Feature fusing's weights (1, C) of a tile (H, W, 3), in [0, 1]."""
    memory = engine.remember()
    engine.enhance(*to_planes(tile, colour), colour, memory)
    return engine.recollect(memory)


def typical(own: Sequence[Numbers]) -> Numbers:
    """What weights (1, C) have in common: the sigmoid of their mean before it, which is nearly linear in what a tile
    shows."""
    sure = np.clip(np.stack(own).astype(np.float64), SURE, 1 - SURE)
    common: Numbers = (1 / (1 + np.exp(-np.log(sure / (1 - sure)).mean(0)))).astype(np.float32)
    return common


def holding(wanted: Numbers, own: Numbers) -> tuple[Memory, float]:
    """The memory and the `keep` by which a picture uses the `wanted` weights (1, C) in place of its `own`.

    A memory is kept whole only where it is near. So it lies on the way to what is wanted, near enough, and is kept as
    many times as the way is longer.
    """
    times = max(1.0, float(np.abs(wanted - own).mean()) / NEAR)
    return Memory.of(own + (wanted - own) / np.float32(times)), times
