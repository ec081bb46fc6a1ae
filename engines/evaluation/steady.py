"""Measures how steady an engine's pictures are over time: on a still dark scene with sensor noise, and a moving one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, repeat

import numpy as np
from numpy.typing import NDArray

from engines.data.darken import Night, darken
from engines.data.lol import Picture, halve
from engines.door import Door, kept_after
from engines.evaluation.evaluate import enhance_picture
from engines.evaluation.flow import find_flow, warp

NOISE = 2.0
"""Standard deviation of the sensor noise in code values of 255."""
FRAMES = 100
RATE = 25
"""Pictures a second."""
NOISELESS = Night(photons=1e9, read_noise=0.0)
"""Only darkens: noise is added in code values, so that its strength is known."""
VISIBLE = 8.0
"""Largest difference, in code values of any colour, between the clean video and its own warped next picture: beyond it
the flow is wrong or something was occluded, and nothing is compared."""


@dataclass(frozen=True)
class Flicker:
    """Changes over time, in code values of 255, over all three colours."""

    frame_mean_deviation: float
    """Standard deviation over time of the picture's mean."""
    pixel_deviation: float
    """Standard deviation over time of a pixel: the square root of its variance, averaged over all pixels."""
    mabd: float
    """Mean absolute brightness difference between a pixel and the same pixel one picture later."""


def flicker(pictures: Iterable[Picture]) -> Flicker:
    """The flicker of two or more (H, W, 3) uint8 pictures of one size; raises `ValueError` for fewer."""
    means: list[float] = []
    steps: list[float] = []
    total: NDArray[np.int64] | int = 0
    squares: NDArray[np.int64] | int = 0
    previous: NDArray[np.float64] | None = None
    for picture in pictures:
        codes = picture.astype(np.int64)
        brightness = codes.mean(axis=2)
        if previous is not None:
            steps.append(float(np.abs(brightness - previous).mean()))
        total, squares, previous = total + codes, squares + codes**2, brightness
        means.append(float(codes.mean()))
    if not steps:
        raise ValueError(f"{len(means)} pictures; flicker needs 2 or more")
    variance = np.asarray(squares / len(means) - (total / len(means)) ** 2)
    return Flicker(float(np.std(means)), float(np.sqrt(variance.mean().clip(0))), float(np.mean(steps)))


def still_scene(engine: Door, scene: Picture, frames: int = FRAMES, seed: int = 0) -> dict[str, float]:
    """Flicker of input and output for one halved and darkened picture under fresh noise."""
    given, made = _both(engine, repeat(scene, frames), seed)
    return _named(flicker(made), "") | _named(flicker(given), "input_")


def moving_scene(engine: Door, clean: list[Picture], seed: int = 0) -> dict[str, float]:
    """Warping error and MABD of a video that was halved, darkened and made noisy, and those of the clean one.

    `clean` are (H, W, 3) uint8 pictures in order; the flow is measured on them, never on the output.
    """
    _, made = _both(engine, clean, seed)
    height, width = made[0].shape[:2]
    truth = [picture[:height, :width] for picture in clean]
    return {
        **warping_error(made, truth),
        "mabd": flicker(made).mabd,
        "clean_mabd": flicker(truth).mabd,
    }


def warping_error(pictures: list[Picture], clean: list[Picture]) -> dict[str, float]:
    """Root of the mean squared difference, in code values, between each picture and the next one warped onto it.

    Also that of the clean video, the lower bound that the flow allows, and the share of pixels compared. Both lists
    have the same length, 2 or more, and hold (H, W, 3) uint8 pictures of one size.
    """
    error = floor = compared = whole = 0.0
    for (before, after), (clean_before, clean_after) in zip(pairwise(pictures), pairwise(clean), strict=True):
        flow = find_flow(clean_before, clean_after)
        clean_warped, inside = warp(clean_after, flow)
        difference = np.abs(clean_warped - clean_before)
        visible = inside & (difference.max(axis=2) <= VISIBLE)
        floor += float((difference[visible].astype(np.float64) ** 2).sum())
        error += float(((warp(after, flow)[0] - before)[visible].astype(np.float64) ** 2).sum())
        compared += 3 * int(visible.sum())
        whole += before.size
    return {
        "warping_error": float(np.sqrt(error / max(compared, 1))),
        "clean_warping_error": float(np.sqrt(floor / max(compared, 1))),
        "compared_share": compared / whole,
    }


def noisy_nights(scenes: Iterable[Picture], seed: int) -> Iterator[Picture]:
    """Each scene halved, darkened and with fresh noise of deviation `NOISE`; repeatable by `seed`."""
    random = np.random.default_rng(seed)
    for scene in scenes:
        dark = darken(halve(scene), NOISELESS, random)
        noisy = dark + random.normal(0, NOISE, dark.shape)
        yield np.rint(noisy.clip(0, 255)).astype(np.uint8)


def _both(engine: Door, scenes: Iterable[Picture], seed: int) -> tuple[list[Picture], list[Picture]]:
    """The engine's inputs, and its outputs for them as the pictures of one feed."""
    given = list(noisy_nights(scenes, seed))
    memory, keep = engine.new_memory(), kept_after(1 / RATE)
    return given, [enhance_picture(engine, picture, memory, keep) for picture in given]


def _named(figures: Flicker, prefix: str) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in vars(figures).items()}
