"""Pairs of pictures in the layout of LOL, for tests."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SCORES = ("psnr_db", "psnr_gt_mean_db", "ssim", "mean_ratio")


def scene(number: int, light: float) -> np.ndarray:
    """(48, 64, 3) uint8: waves that no other number has."""
    rows, columns = np.mgrid[0:48, 0:64]
    wave = 128 + 60 * np.sin((columns + number) / 9) + 40 * np.cos(rows / (5 + number % 7))
    return np.clip(light * np.stack((wave, 0.9 * wave, 1.1 * wave), axis=2), 0, 255).astype(np.uint8)


def make_lol(folder: Path, part: str, numbers: Sequence[int]) -> Path:
    """Scenes in the folders of the original release."""
    for side, light in (("low", 0.08), ("high", 1.0)):
        (folder / part / side).mkdir(parents=True)
        for number in numbers:
            Image.fromarray(scene(number, light)).save(folder / part / side / f"{number}.png")
    return folder


def packed(folder: Path, part: str, shard: str) -> Path:
    """The same as a tar shard, in a folder of its own."""
    target = folder.with_name(f"{folder.name}-tar")
    target.mkdir()
    with tarfile.open(target / shard, "w") as tar:
        for side in ("low", "high"):
            tar.add(folder / part / side, side)
    return target
