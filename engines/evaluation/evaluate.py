"""Scores on LOL: enhances the dark picture, halved or at full size, and compares it with the bright one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from engines.cards import Card
from engines.colour import Colour, to_planes, to_rgb
from engines.data.lol import HELD_OUT, Pair, Picture, halve, read_lol, trimmed
from engines.door import SCALE, Door, Memory
from engines.errors import EngineMismatch
from engines.evaluation.scores import mean_ratio, psnr, psnr_gt_mean, ssim
from engines.tiles import enhance_tiles, is_large

Split = Literal["eval15", "held-out", "our485"]
PICTURE_COLOUR = Colour(matrix="bt601", full_range=True)
"""Matrix and range in which picture files pass through the engine, as in JPEG (JFIF); see `picture_colour`."""
HALF_SIZE = "half-size input (antialiased bicubic), output compared at full size"
FULL_SIZE = "full-size input, output halved (antialiased bicubic) and compared"


@dataclass(frozen=True)
class Score:
    """One picture's scores; see `engines.evaluation.scores` for each."""

    name: str
    psnr_db: float
    psnr_gt_mean_db: float
    ssim: float
    mean_ratio: float


def read_split(folder: Path, split: Split) -> list[Pair]:
    """LOL's test pairs, the held-out scenes of `our485`, or all of `our485`; see `read_lol`."""
    if split != "held-out":
        return read_lol(folder, split)
    pairs = [pair for pair in read_lol(folder, "our485") if int(pair.name) in HELD_OUT]
    if not pairs:
        raise FileNotFoundError(f"{folder}: our485 has none of the held-out scenes {HELD_OUT[0]} to {HELD_OUT[-1]}")
    return pairs


def learned_before(card: Card, split: Split) -> bool:
    """Whether weights were trained on the pairs of a split, as far as their card says; on `our485` always."""
    return split == "our485" or (split == "held-out" and card.learned_all())


def enhance_picture(engine: Door, picture: Picture, memory: Memory | None = None, keep: float = 0.0) -> Picture:
    """Enhance RGB (H, W, 3) uint8 to RGB (2H, 2W, 3) uint8.

    `memory` and `keep` are for pictures of one video, see `Slot`.
    """
    colour = picture_colour(picture)
    y, uv = to_planes(picture, colour)
    return to_rgb(*engine.enhance(y, uv, colour, memory, keep), colour)


def enhance_whole(engine: Door, picture: Picture) -> Picture:
    """Like `enhance_picture`, for a single picture of any size: a large one is enhanced tile by tile."""
    if not is_large(engine, picture):
        return enhance_picture(engine, picture)
    height, width = picture.shape[:2]
    bright = np.empty((SCALE * height, SCALE * width, 3), np.uint8)
    for row, column, part in enhance_tiles(engine, picture, picture_colour(picture)):
        bright[row : row + part.shape[0], column : column + part.shape[1]] = part
    return bright


def picture_colour(picture: Picture) -> Colour:
    """`PICTURE_COLOUR`, with `grey` set for a picture (H, W, 3) without colour, as from an infrared camera."""
    return replace(PICTURE_COLOUR, grey=bool((picture == picture[..., :1]).all()))


@contextmanager
def by_name(name: str) -> Iterator[None]:
    """Turn `ValueError`, as for a picture that is too small, into `EngineMismatch` with the picture's name."""
    try:
        yield
    except ValueError as error:
        raise EngineMismatch(f"{name}: {error}") from error


def evaluate(engine: Door, pairs: Iterable[Pair], full_size: bool = False) -> Iterator[Score]:
    """Yield the score of each pair as it is measured.

    By default the engine is given the halved dark picture, and its output is compared as it is. With `full_size` it is
    given the full dark picture, and its output is halved before the comparison.
    """
    for pair in pairs:
        with by_name(pair.name):
            if full_size:
                picture = halve(enhance_picture(engine, pair.low))
            else:
                picture = enhance_picture(engine, halve(trimmed(pair.low, 2)))
        height, width = picture.shape[:2]
        truth = pair.high[:height, :width]
        yield Score(
            name=pair.name,
            psnr_db=psnr(picture, truth),
            psnr_gt_mean_db=psnr_gt_mean(picture, truth),
            ssim=ssim(picture, truth),
            mean_ratio=mean_ratio(picture, truth),
        )


def summary(scores: list[Score]) -> dict[str, object]:
    """Means over all pictures, and a row for each, by the keys that `evaluate --json` writes."""
    figures = ("psnr_db", "psnr_gt_mean_db", "ssim", "mean_ratio")
    means = {key: float(np.mean([getattr(score, key) for score in scores])) for key in figures}
    return {**means, "pictures": [asdict(score) for score in scores]}
