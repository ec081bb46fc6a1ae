"""Enhances pictures that are too large for one pass, tile by tile: in bounded memory, and without seams.

Tiles lie on the network's grid and overlap by its receptive field, so the middle of each comes out as in the whole
picture. The exception is feature fusing's weights, which come from the mean over a picture (`engines.network.memory`):
so a first pass reads each tile's own, and a second one makes all tiles use what these have in common.
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
"""The largest picture that is enhanced in one pass, which takes 550 bytes of memory a pixel."""
LONGEST = 1024
"""A tile's longest side in pixels, exceeded by less than `GRID`."""
GRID = 16
"""Pixels between positions where the pooling windows of all networks, and chroma samples, line up."""
OVERLAP = 18
"""Overlap of two tiles in steps of `GRID`: twice the networks' reach around a pixel, 137 pixels for `neid-live`."""
NEAR = 0.01
"""Mean distance from a picture's own weights at which a memory is kept in full, see `engines.network.memory`."""
SURE = 1e-6
"""Weights are clamped to this distance from 0 and 1."""


@dataclass(frozen=True)
class Span:
    """A tile along one side of the picture, in pixels."""

    start: int
    stop: int
    first: int
    """First pixel of the part that is taken from this tile."""
    end: int
    """One past the last pixel of that part."""

    def taken(self) -> slice:
        """That part, in the doubled tile."""
        return slice(SCALE * (self.first - self.start), SCALE * (self.end - self.start))


def is_large(engine: Door, picture: Picture) -> bool:
    """Whether a picture (H, W, 3) needs `enhance_tiles`."""
    height, width = picture.shape[:2]
    widest, highest = engine.info.largest
    return bool(height * width > LARGEST_PIXELS or width > widest or height > highest)


def enhance_tiles(engine: Door, picture: Picture, colour: Colour) -> Iterator[tuple[int, int, Picture]]:
    """Enhance RGB (H, W, 3) uint8 to its double in parts: yields the row, column and RGB (h, w, 3) uint8 of each.

    The parts cover (2H, 2W, 3) without overlap and are the caller's. All tiles have one size, and each passes through
    the engine twice. Raises `EngineError`, and `EngineMismatch` for a side that is too short.
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
        y, uv = engine.enhance(*to_planes(tile, colour), colour, *memory_towards(wanted, weights))
        yield SCALE * rows.first, SCALE * columns.first, to_rgb(y, uv, colour)[rows.taken(), columns.taken()]


def cover(length: int) -> list[Span]:
    """The fewest tiles of one size that cover a side of `length` pixels, each on the grid of the whole side."""
    steps, rest = divmod(length, GRID)
    count = max(1, math.ceil((steps - OVERLAP) / (LONGEST // GRID - OVERLAP)))
    size = math.ceil((steps + (count - 1) * OVERLAP) / count)
    starts = [GRID * ((steps - size) * index // max(1, count - 1)) for index in range(count)]
    stops = [start + GRID * size + rest for start in starts]
    cuts = [0, *((start + stop) // 2 for start, stop in zip(starts[1:], stops, strict=False)), length]
    return [Span(*ends, *part) for ends, part in zip(zip(starts, stops, strict=True), pairwise(cuts), strict=True)]


def own_weights(engine: Door, tile: Picture, colour: Colour) -> Numbers:
    """Feature fusing's weights (1, C) of a tile (H, W, 3), in [0, 1]."""
    memory = engine.new_memory()
    engine.enhance(*to_planes(tile, colour), colour, memory)
    return engine.read_memory(memory)


def typical(own: Sequence[Numbers]) -> Numbers:
    """What weights (1, C) have in common: the sigmoid of their mean logit, which is nearly linear in what a tile
    shows."""
    sure = np.clip(np.stack(own).astype(np.float64), SURE, 1 - SURE)
    common: Numbers = (1 / (1 + np.exp(-np.log(sure / (1 - sure)).mean(0)))).astype(np.float32)
    return common


def memory_towards(wanted: Numbers, own: Numbers) -> tuple[Memory, float]:
    """The memory and the `keep` that make a picture use the `wanted` weights (1, C) in place of its `own`.

    A memory is kept in full only if it is near. So this one lies on the way to `wanted`, at most `NEAR` from `own`, and
    `keep` is how many times longer the whole way is.
    """
    times = max(1.0, float(np.abs(wanted - own).mean()) / NEAR)
    return Memory.of(own + (wanted - own) / np.float32(times)), times
