"""Whether text that a camera burns into its pictures changes how bright an engine makes the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engines.data.lol import Picture
from engines.data.overlay import write
from engines.door import Door
from engines.evaluation.evaluate import enhance_picture
from engines.evaluation.steady import noisy_nights


def text_scenes(engine: Door, scenes: Sequence[Picture], seed: int = 0) -> dict[str, float]:
    """The mean outside of the text, as a multiple of that without the text: its mean over the scenes, and the lowest.

    `scenes` are (H, W, 3) uint8 by day; each is halved and darkened, and gets text of its own.
    """
    random = np.random.default_rng(seed)
    ratios = []
    for dark in noisy_nights(scenes, seed):
        height, width = dark.shape[:2]
        text = write(height, width, random)
        plain, written = (enhance_picture(engine, picture) for picture in (dark, text.over(dark)))
        outside = text.doubled().share[..., 0] == 0
        ratios.append(written[outside].mean(dtype=np.float64) / max(plain[outside].mean(dtype=np.float64), 1.0))
    return {"mean_ratio": float(np.mean(ratios)), "mean_ratio_lowest": float(np.min(ratios))}
