"""Checks that engines on a GPU keep the contract of all engines, and how close they come to fp32 torch on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engines.cards import NUMBERS, Weights
from engines.checkpoint import load_network
from engines.colour import Colour
from engines.door import SCALE, Door, Memory, Plane, Size, no_past
from engines.padding import past_shapes
from engines.picture import PictureGraph

State = tuple[NDArray[Any], ...]
"""What the graph returns for a feed's next picture: memory and past."""
SIZES: tuple[Size, ...] = ((352, 288), (161, 121), (640, 360))
SCENES = ("dusk", "day", "grey")
FILM = 6
"""Pictures of a still scene."""
KEPT = 0.9
"""The share of a film's memory that is kept from picture to picture."""
BATCH_DIFFERENCE = 2
"""Code values by which a picture in a batch may differ from the same one alone: kernels depend on the count."""
CUT_DB = 50
"""Least PSNR between a picture after a cut and the same picture alone."""


@dataclass(frozen=True)
class Picture:
    """Planes as a decoder gives them."""

    y: Plane
    uv: Plane
    colour: Colour


@dataclass(frozen=True)
class Difference:
    """Difference between planes, in code values; those of several pictures add up."""

    largest: int
    sum: float
    squares: float
    samples: int

    @property
    def mean(self) -> float:
        """Mean absolute difference of all samples."""
        return self.sum / self.samples

    @property
    def psnr(self) -> float:
        """In dB over all planes; infinite if nothing differs."""
        return 10 * math.log10(255**2 * self.samples / self.squares) if self.squares else math.inf

    def __add__(self, other: Difference) -> Difference:
        return Difference(
            max(self.largest, other.largest),
            self.sum + other.sum,
            self.squares + other.squares,
            self.samples + other.samples,
        )


NO_DIFFERENCE = Difference(0, 0.0, 0.0, 0)


def difference(made: Sequence[Plane], expected: Sequence[Plane]) -> Difference:
    """The difference between two pictures, each given as its planes."""
    apart = np.concatenate([np.abs(a.astype(int) - b).ravel() for a, b in zip(made, expected, strict=True)])
    return Difference(int(apart.max()), float(apart.sum()), float((apart**2).sum()), apart.size)


def make_picture(scene: str, size: Size, seed: int = 1) -> Picture:
    """A sky over darker ground with a lit window and sensor noise: at dusk, by day, or in infrared grey."""
    (width, height), random = size, np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    y = 60.0 - 30 * rows / height + 6 * np.sin(columns / 9)
    y[rows > 0.6 * height] -= 10
    y[height // 2 : height // 2 + 8, width // 3 : width // 3 + 6] = 120
    y = y + random.normal(0, 1.5, y.shape)
    uv = 128 + random.normal(0, 2, (2, (height + 1) // 2, (width + 1) // 2))
    if scene == "day":
        y = 2 * y + 70
    y = y.clip(16, 235)
    return Picture(y.astype(np.uint8), uv.astype(np.uint8), Colour("bt709", grey=scene == "grey"))


class Reference:
    """The picture graph in fp32 torch on the CPU."""

    def __init__(self, weights: Weights) -> None:
        self._config = (network := load_network(weights.file(NUMBERS))).config
        self._graph = PictureGraph(network).eval()

    def enhance(self, picture: Picture, state: State | None = None) -> tuple[list[Plane], State]:
        """The enhanced planes, and the state for the next picture; `state` is None for the first one."""
        height, width = picture.y.shape
        past = no_past(past_shapes(self._config, width, height))
        memory, *last = state or (np.zeros((1, self._config.memory_size), np.float32), *past.values())
        inputs = (
            picture.y[None, None],
            picture.uv[None],
            picture.colour.coefficients()[None],
            memory,
            np.full((1, 1), KEPT if state else 0, np.float32),
            *last,
        )
        with torch.inference_mode():
            y, uv, *left = (made.numpy() for made in self._graph(*map(torch.from_numpy, inputs)))
        return [y[0, 0], uv[0]], tuple(left)


def contract(engine: Door, sizes: Sequence[Size]) -> dict[str, bool | int]:
    """What every engine promises, by name, and whether this one keeps it; differences are in code values."""
    apart = max(batch_difference(engine, size) for size in sizes)
    return {
        "doubles": all(doubles(engine, make_picture(scene, size)) for size in sizes for scene in SCENES),
        "grey_stays_grey": all(stays_grey(engine, size) for size in sizes),
        "batch_difference_max": apart,
        "batch_equals_singles": apart <= BATCH_DIFFERENCE,
        "memory_carried": memory_carried(engine, sizes[0]),
        "cut_followed": cut_followed(engine, sizes[0]),
    }


def doubles(engine: Door, picture: Picture) -> bool:
    """Whether the planes have twice the sides, are bytes, and hold more than one value."""
    y, uv = through(engine, picture)
    height, width = picture.y.shape
    shapes = y.shape == (SCALE * height, SCALE * width) and uv.shape == (2, height, width)
    return shapes and y.dtype == uv.dtype == np.uint8 and int(np.ptp(y)) > 0


def stays_grey(engine: Door, size: Size) -> bool:
    """Whether chroma of an infrared picture is neutral."""
    return bool((through(engine, make_picture("grey", size))[1] == 128).all())


def batch_difference(engine: Door, size: Size) -> int:
    """The largest difference, in code values, between pictures in one batch and the same pictures one by one."""
    pictures = [make_picture(scene, size, seed) for seed, scene in enumerate(SCENES)]
    slots = [engine.acquire(*size) for _ in pictures]
    try:
        for slot, picture in zip(slots, pictures, strict=True):
            slot.y[:], slot.uv[:], slot.colour = picture.y, picture.uv, picture.colour
        engine.submit(slots)
        for slot in slots:
            slot.wait()
        together = [(slot.y_out.copy(), slot.uv_out.copy()) for slot in slots]
    finally:
        for slot in slots:
            slot.release()
    alone = [through(engine, picture) for picture in pictures]
    return max(difference(*pair).largest for pair in zip(together, alone, strict=True))


def film(engine: Door, size: Size) -> tuple[list[tuple[Plane, Plane]], Memory]:
    """The enhanced pictures of a still scene at dusk under fresh noise, with one memory, and that memory at the end."""
    memory = engine.new_memory()
    return [through(engine, make_picture("dusk", size, seed), memory) for seed in range(FILM)], memory


def memory_carried(engine: Door, size: Size) -> bool:
    """Whether the last picture of a film differs from the same picture alone."""
    made, _ = film(engine, size)
    return difference(made[-1], through(engine, make_picture("dusk", size, FILM - 1))).largest > 0


def cut_followed(engine: Door, size: Size) -> bool:
    """Whether a picture by day after a film at dusk comes out as it does alone."""
    _, memory = film(engine, size)
    day = make_picture("day", size)
    return difference(through(engine, day, memory), through(engine, day)).psnr > CUT_DB


def parity(engine: Door, reference: Reference, sizes: Sequence[Size]) -> dict[str, float | int]:
    """How far the engine is from the reference: over all planes of pictures of all sizes, and at the end of a film."""
    apart = NO_DIFFERENCE
    for size in sizes:
        for scene in SCENES:
            picture = make_picture(scene, size)
            apart += difference(through(engine, picture), reference.enhance(picture)[0])
    state = None
    made, _ = film(engine, sizes[0])
    for seed in range(FILM):
        expected, state = reference.enhance(make_picture("dusk", sizes[0], seed), state)
    return {
        "max": apart.largest,
        "mean": apart.mean,
        "psnr_db": apart.psnr,
        "film_psnr_db": difference(made[-1], expected).psnr,
    }


def through(engine: Door, picture: Picture, memory: Memory | None = None) -> tuple[Plane, Plane]:
    """One picture through the door."""
    return engine.enhance(picture.y, picture.uv, picture.colour, memory, KEPT)
