"""Scores on day videos, darkened, halved and sent at a low bit rate: an engine against gamma and bicubic doubling."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import islice, tee
from pathlib import Path

import numpy as np

from engines.colour import to_rgb
from engines.data.clips import clip_rate, read_clip
from engines.data.coded import CODED_COLOUR, at_bit_rate
from engines.data.darken import Night, darken
from engines.data.lol import double, halve
from engines.door import Door, kept_after
from engines.evaluation.evaluate import by_name
from engines.evaluation.scores import mean_ratio, psnr, psnr_gt_mean

BIT_RATE = 300_000
FRAMES = 100
GAMMA = 0.4
"""How a viewer without an engine would brighten a dark picture, before bicubic doubling."""
BRIGHTENED = np.rint(255 * (np.arange(256) / 255) ** GAMMA).astype(np.uint8)


@dataclass(frozen=True)
class ClipScore:
    """Mean scores over a video's pictures, against the clean video at full size."""

    name: str
    frames: int
    bit_rate: float
    """Actual bit rate of the link, bit/s."""
    psnr_db: float
    psnr_gt_mean_db: float
    mean_ratio: float
    gamma_psnr_db: float
    """For gamma and bicubic doubling, like the next two."""
    gamma_psnr_gt_mean_db: float
    gamma_mean_ratio: float
    gain_db: float
    """`psnr_db` minus `gamma_psnr_db`."""
    gain_gt_mean_db: float
    """The same after scaling both to the truth's mean: the gain without the effect of exposure."""


def score_clip(engine: Door, path: Path, bit_rate: int = BIT_RATE, frames: int = FRAMES, seed: int = 0) -> ClipScore:
    """Score the first `frames` pictures of a day video; raises `OSError` if it cannot be read, and `EngineMismatch` if
    its pictures are too small; both name the file."""
    rate = clip_rate(path)
    random = np.random.default_rng(seed)
    clean, source = tee(islice(read_clip(path), frames))
    nights = (darken(halve(picture), Night(), random) for picture in source)
    octets, rows = 0, []
    memory, keep = engine.new_memory(), kept_after(float(1 / rate))
    with by_name(path.name):
        for truth, coded in zip(clean, at_bit_rate(nights, bit_rate, rate), strict=True):
            made = to_rgb(*engine.enhance(coded.y, coded.uv, CODED_COLOUR, memory, keep), CODED_COLOUR)
            gamma = double(BRIGHTENED[coded.rgb()])
            rows.append(
                [figure(picture, truth) for picture in (made, gamma) for figure in (psnr, psnr_gt_mean, mean_ratio)]
            )
            octets += coded.octets
    psnr_db, gt_mean, ratio, gamma_db, gamma_gt_mean, gamma_ratio = np.mean(rows, axis=0).tolist()
    return ClipScore(
        name=path.name,
        frames=len(rows),
        bit_rate=float(8 * octets * rate / len(rows)),
        psnr_db=psnr_db,
        psnr_gt_mean_db=gt_mean,
        mean_ratio=ratio,
        gamma_psnr_db=gamma_db,
        gamma_psnr_gt_mean_db=gamma_gt_mean,
        gamma_mean_ratio=gamma_ratio,
        gain_db=psnr_db - gamma_db,
        gain_gt_mean_db=gt_mean - gamma_gt_mean,
    )


def summary(scores: list[ClipScore]) -> dict[str, object]:
    """Means over all videos, equally weighted, and a row for each."""
    keys = [key for key in asdict(scores[0]) if key not in ("name", "frames")]
    means = {key: float(np.mean([getattr(score, key) for score in scores])) for key in keys}
    return {**means, "gain_db_lowest": min(score.gain_db for score in scores), "clips": [asdict(s) for s in scores]}
