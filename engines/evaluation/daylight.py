"""What an engine does to pictures by day, which it should only double."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from engines.data.coded import at_rate_factor
from engines.data.lol import Picture, double, halve, read_picture, trimmed
from engines.door import Door
from engines.evaluation.evaluate import by_name, enhance_picture
from engines.evaluation.scores import mean_ratio, psnr

BRIGHT = 80
"""Mean code value, of 255, from which a picture counts as one by day."""


@dataclass(frozen=True)
class DayScore:
    """One picture, halved and enhanced, against the bicubic double of what the engine was given."""

    name: str
    psnr_db: float
    mean_ratio: float


def read_bright(paths: Iterable[Path]) -> Iterator[tuple[str, Picture]]:
    """Name and picture of each that is bright enough, see `BRIGHT`."""
    for path in paths:
        picture = read_picture(path)
        if picture.mean() >= BRIGHT:
            yield path.name, picture


def daylight(engine: Door, pictures: Iterable[tuple[str, Picture]], crf: int | None = None) -> Iterator[DayScore]:
    """A score for each named picture; with `crf` the engine is given what libx264 leaves of it."""
    for name, picture in pictures:
        with by_name(name):
            small = halve(picture)
            if crf is not None:
                small = at_rate_factor(trimmed(small, 2), crf)
            bright, doubled = enhance_picture(engine, small), double(small)
        yield DayScore(name, psnr(bright, doubled), mean_ratio(bright, doubled))


def summary(scores: list[DayScore]) -> dict[str, object]:
    """Means and extremes over all pictures, and a row for each."""
    psnrs, ratios = [score.psnr_db for score in scores], [score.mean_ratio for score in scores]
    return {
        "psnr_db": float(np.mean(psnrs)),
        "psnr_db_lowest": min(psnrs),
        "mean_ratio": float(np.mean(ratios)),
        "mean_ratio_lowest": min(ratios),
        "mean_ratio_highest": max(ratios),
        "pictures": [asdict(score) for score in scores],
    }
