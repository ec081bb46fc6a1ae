"""Scores on LOL by the half-size protocol: the dark picture is halved, enhanced to full size and compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import numpy as np

from engines.colour import Colour, to_planes, to_rgb
from engines.door import Engine
from engines.lol import Pair, Picture, halve
from engines.scores import mean_ratio, psnr, psnr_gt_mean, ssim

PICTURE_COLOUR = Colour(matrix="bt601", full_range=True)
"""How picture files pass the engine's door: as JPEG does it (JFIF)."""


@dataclass(frozen=True)
class Score:
    """One picture's scores; see `engines.scores` for each."""

    name: str
    psnr_db: float
    psnr_gt_mean_db: float
    ssim: float
    mean_ratio: float


def enhance_picture(engine: Engine, picture: Picture) -> Picture:
    """RGB (H, W, 3) uint8 to its enhanced double, RGB (2H, 2W, 3) uint8, through the engine's door."""
    y, uv = to_planes(picture, PICTURE_COLOUR)
    return to_rgb(*engine.enhance(y, uv, PICTURE_COLOUR), PICTURE_COLOUR)


def evaluate(engine: Engine, pairs: Iterable[Pair]) -> Iterator[Score]:
    """A score for each pair, as it is measured."""
    for pair in pairs:
        picture = enhance_picture(engine, halve(pair.low))
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
    """Means over all pictures, and a row for each, by the keys that `evaluate --json` prints."""
    figures = ("psnr_db", "psnr_gt_mean_db", "ssim", "mean_ratio")
    means = {key: float(np.mean([getattr(score, key) for score in scores])) for key in figures}
    return {**means, "pictures": [asdict(score) for score in scores]}
