"""Text that cameras burn into their pictures, such as place and time: as bright by night as by day."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from engines.data.lamps import log_uniform
from engines.data.lol import Picture, double

COLOURS = ((255, 255, 255), (235, 235, 235), (255, 255, 0), (0, 255, 0), (255, 160, 0))
"""RGB code values."""
WHITE = 0.7
"""Share of the texts in the first colour, which most cameras write in; the others have any."""
HEIGHT = (0.04, 0.11)
"""Height of a line, as a share of the picture's height."""
BOXED, OUTLINED = 0.25, 0.35
"""Share of the texts on a black box, and share with a black outline."""
MOST_LINES = 3
LENGTH = (4, 24)
"""Fewest and most characters of a line."""
CHARACTERS = "0123456789" * 3 + ":/- ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ELSEWHERE, MARGIN = 0.2, 0.06
"""Share of the lines that stand anywhere; the others stand in a corner, at most so far from the border, as a share of
the picture's height."""


@dataclass(frozen=True)
class Overlay:
    """Text to put over pictures of one size."""

    share: NDArray[np.float32]
    """(H, W, 1): how much of each pixel the text covers, from 0 to 1."""
    ink: NDArray[np.float32]
    """(H, W, 3): its RGB code values times `share`."""

    def over(self, picture: Picture) -> Picture:
        """The picture (H, W, 3) uint8 with the text."""
        covered: Picture = np.rint(picture * (1 - self.share) + self.ink).astype(np.uint8)
        return covered

    def doubled(self) -> Overlay:
        """The same text for pictures of twice the size."""
        covered = np.rint(255 * self.share.repeat(3, axis=2)).astype(np.uint8)
        share = np.divide(double(covered)[..., :1], 255, dtype=np.float32)
        ink = double(np.rint(self.ink).astype(np.uint8)).astype(np.float32)
        return Overlay(share, np.minimum(ink, 255 * share))


def write(height: int, width: int, random: np.random.Generator) -> Overlay:
    """One to `MOST_LINES` lines of random characters, for pictures of this size."""
    image = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(image)
    colour = COLOURS[0 if random.random() < WHITE else random.integers(len(COLOURS))]
    size = height * log_uniform(HEIGHT, random)
    font = ImageFont.load_default(max(7.0, size))
    style = random.random()
    for _ in range(random.integers(1, MOST_LINES + 1)):
        text = "".join(random.choice(list(CHARACTERS), random.integers(*LENGTH, endpoint=True)))
        left, top, right, bottom = font.getbbox(text)
        room = (max(1.0, width - (right - left)), max(1.0, height - (bottom - top)))
        if random.random() < ELSEWHERE:
            x, y = (random.uniform(0, side) for side in room)
        else:
            near = random.uniform(0, MARGIN * height, 2)
            x, y = (place if random.random() < 0.5 else side - place for place, side in zip(near, room, strict=True))
        place = (round(x) - left, round(y) - top)
        if style < BOXED:
            draw.rectangle(draw.textbbox(place, text, font), "black")
        outline = round(size / 12) if BOXED <= style < BOXED + OUTLINED else 0
        draw.text(place, text, colour, font, stroke_width=outline, stroke_fill="black")
    layer = np.asarray(image, np.float32)
    share = layer[..., 3:] / np.float32(255)
    return Overlay(share.astype(np.float32), (layer[..., :3] * share).astype(np.float32))
