"""A scene, a pair of pictures and a recipe of few steps, for tests of training."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import torch
from PIL import Image

from engines.data.pairs import Sample
from engines.training.recipe import Recipe


def scene(height: int = 64, width: int = 96) -> np.ndarray:
    """(H, W, 3) uint8: soft gradients with a bright and a coloured patch."""
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.stack((120 + 60 * np.sin(columns / 15), 100 + rows, 140 - rows), axis=2)
    picture[10:30, 20:50] = (220, 60, 40)
    return np.clip(picture, 0, 255).astype(np.uint8)


def sample() -> Sample:
    bright = scene()
    dark = (bright // 8).astype(np.uint8)
    return Sample(small=np.asarray(Image.fromarray(dark).reduce(2)), large=bright, dark=dark)


def recipe(**changes: object) -> Recipe:
    return msgspec.structs.replace(Recipe(batch=1, crop=(32, 48), warm_up_steps=1, mix=(1.0, 0.0, 0.0)), **changes)


CPU = torch.device("cpu")
"""What these tests look at is the same on a machine with a GPU."""
STEADY = {"batch": 2, "twins": 0.5, "noise": 3.0, "steady_weight": 1.0}
"""Half of the steps on twins, all of them with noise."""


def write_lol(folder: Path) -> Path:
    """Four pairs as LOL has them, one of them of a held-out scene."""
    for side, picture in (("low", sample().dark), ("high", sample().large)):
        (folder / "our485" / side).mkdir(parents=True)
        for number in (1, 2, 3, 665):
            Image.fromarray(picture).save(folder / "our485" / side / f"{number}.png")
    return folder
