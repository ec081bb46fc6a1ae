"""Measures what an engine does to pictures by day, which it should only double."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from engines.data.clips import clip_rate, read_clip
from engines.data.coded import at_rate_factor
from engines.data.kinds import VIDEOS
from engines.data.lol import Picture, double, halve, read_picture, trimmed
from engines.door import Door
from engines.evaluation.evaluate import by_name, enhance_whole
from engines.evaluation.scores import mean_ratio, psnr

BRIGHT = 80
"""Mean code value, of 255, from which a picture counts as one by day."""
EVERY_SECONDS, MOST = 2.0, 10
"""Time between two pictures taken from a video, and the most pictures taken."""


@dataclass(frozen=True)
class DayScore:
    """An enhanced picture against the bicubic double of the input, for two inputs: the halved picture, which is sharp,
    and the full-size one, which is larger and softer. A network can take one for day and not the other."""

    name: str
    psnr_db: float
    mean_ratio: float
    full_size_psnr_db: float
    full_size_mean_ratio: float


def read_bright(path: Path) -> Iterator[tuple[str, Picture]]:
    """Names and pictures that are bright enough (see `BRIGHT`): of a picture file, or of a video every `EVERY_SECONDS`.

    Raises `OSError`, which names the file, if it cannot be read.
    """
    film = path.suffix.lower() in VIDEOS
    for name, picture in _pictures_of_video(path) if film else [(path.name, read_picture(path))]:
        if picture.mean() >= BRIGHT:
            yield name, picture


def _pictures_of_video(path: Path) -> Iterator[tuple[str, Picture]]:
    step = max(1, round(EVERY_SECONDS * clip_rate(path)))
    for number, picture in enumerate(islice(read_clip(path), 0, step * MOST, step)):
        yield f"{path.name} at {number * EVERY_SECONDS:g} s", picture


def day_score(engine: Door, name: str, picture: Picture, crf: int | None = None) -> DayScore:
    """Score a picture; with `crf` it passes through libx264 first. Raises `EngineMismatch`, which names the picture, if
    it is too small."""
    with by_name(name):
        figures: list[float] = []
        for given in (halve(picture), picture):
            shown = given if crf is None else at_rate_factor(trimmed(given, 2), crf)
            bright, doubled = enhance_whole(engine, shown), double(shown)
            figures += psnr(bright, doubled), mean_ratio(bright, doubled)
    return DayScore(name, *figures)


def summary(scores: list[DayScore]) -> dict[str, object]:
    """Means and extremes over all pictures, and a row for each."""
    figures: dict[str, object] = {}
    for size in ("", "full_size_"):
        psnrs = [getattr(score, f"{size}psnr_db") for score in scores]
        ratios = [getattr(score, f"{size}mean_ratio") for score in scores]
        figures |= {
            f"{size}psnr_db": float(np.mean(psnrs)),
            f"{size}psnr_db_lowest": min(psnrs),
            f"{size}mean_ratio": float(np.mean(ratios)),
            f"{size}mean_ratio_lowest": min(ratios),
            f"{size}mean_ratio_highest": max(ratios),
        }
    return {**figures, "pictures": [asdict(score) for score in scores]}
