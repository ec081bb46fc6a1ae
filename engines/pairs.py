"""Training pairs: small dark pictures and the bright ones of twice the size that they should become."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from engines.darken import Night, darken
from engines.lol import HELD_OUT, OUTLIERS, Pair, Picture, halve, read_lol, read_picture

ALIGN = 16
"""Crops are multiples of this, so that they need no padding."""


PHOTO_CROP = (144, 224)
"""Height and width of the small crops of photos."""


@dataclass(frozen=True)
class Sample:
    """One training pair."""

    small: Picture
    """(h, w, 3) uint8 RGB: what the camera sent."""
    large: Picture
    """(2h, 2w, 3) uint8 RGB: what the network should make of it."""
    dark: Picture
    """(2h, 2w, 3) uint8 RGB: the dark picture at full size, for the detail branch."""


def read_samples(
    lol: Path, photos: Path, seed: int, hold_out: bool = True
) -> tuple[tuple[list[Sample], ...], list[Sample]]:
    """LOL, night and day samples for training, and LOL's held-out ones; without `hold_out` those are in both."""
    train, held_out = lol_samples(lol)
    if not hold_out:
        train = train + held_out
    pictures = read_photos(photos)
    night = night_samples(pictures, 2 * len(pictures), seed)
    day = day_samples(pictures, len(pictures), seed + 1)
    return (train, night, day), held_out


def lol_samples(folder: Path) -> tuple[list[Sample], list[Sample]]:
    """Training and held-out pairs of LOL's `our485`."""
    pairs = [pair for pair in read_lol(folder, "our485") if int(pair.name) not in OUTLIERS]
    held_out = [pair for pair in pairs if int(pair.name) in HELD_OUT]
    train = [pair for pair in pairs if int(pair.name) not in HELD_OUT]
    return [_from_lol(pair) for pair in train], [_from_lol(pair) for pair in held_out]


def _from_lol(pair: Pair) -> Sample:
    return Sample(small=halve(pair.low), large=pair.high, dark=pair.low)


def night_samples(photos: Sequence[Picture], count: int, seed: int) -> list[Sample]:
    """Photos as a field camera would send them at night: darkened, noisy, halved, damaged by H.264."""
    random = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        photo = photos[index % len(photos)]
        night = Night(
            exposure=float(np.exp(random.uniform(np.log(0.004), np.log(0.15)))),
            photons=float(np.exp(random.uniform(np.log(800), np.log(40_000)))),
            read_noise=float(np.exp(random.uniform(np.log(1e-4), np.log(2e-3)))),
            cast=(float(random.uniform(0.8, 1.25)), 1.0, float(random.uniform(0.8, 1.25))),
        )
        noiseless = replace(night, photons=1e9, read_noise=0.0)
        small = compress([darken(halve(photo), night, random) for _ in range(3)], crf=int(random.integers(18, 36)))
        samples.append(Sample(small=small, large=photo, dark=darken(photo, noiseless, random)))
    return samples


def day_samples(photos: Sequence[Picture], count: int, seed: int) -> list[Sample]:
    """Photos by day, which should only be doubled: the network must leave daylight alone."""
    random = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        photo = photos[index % len(photos)]
        small = compress([halve(photo)], crf=int(random.integers(16, 32)))
        samples.append(Sample(small=small, large=photo, dark=photo))
    return samples


def compress(pictures: Sequence[Picture], crf: int) -> Picture:
    """The last of some equal-sized pictures after libx264 at this rate factor and back."""
    height, width = pictures[0].shape[:2]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": str(crf), "preset": "veryfast", "tune": "zerolatency"}
        for picture in pictures:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer, "r") as back:
        *_, last = back.decode(video=0)
        return last.to_ndarray(format="rgb24").astype(np.uint8, copy=False)


def read_photos(folder: Path) -> list[Picture]:
    """Every picture of a folder that is large enough, lying, its sides cut to multiples of twice `ALIGN`."""
    photos = []
    for path in sorted(folder.iterdir()):
        photo = read_picture(path)
        if photo.shape[0] > photo.shape[1]:
            photo = np.rot90(photo)
        height, width = (side - side % (2 * ALIGN) for side in photo.shape[:2])
        if height >= 2 * PHOTO_CROP[0] and width >= 2 * PHOTO_CROP[1]:
            photos.append(np.ascontiguousarray(photo[:height, :width]))
    return photos


def batch(samples: Sequence[Sample], size: tuple[int, int], count: int, random: np.random.Generator) -> list[Tensor]:
    """`count` random crops with flips, as [small, large, dark], float32 (N, 3, h or 2h, w or 2w) in [0, 1].

    `size` is (height, width) of the small crops. Half of the batches are turned by a quarter, as whole batches,
    since all pictures of a batch need one shape.
    """
    height, width = size
    chosen: list[list[Picture]] = [[], [], []]
    for index in random.integers(len(samples), size=count):
        sample = samples[index]
        h, w = min(height, sample.small.shape[0]), min(width, sample.small.shape[1])
        top = int(random.integers(sample.small.shape[0] - h + 1))
        left = int(random.integers(sample.small.shape[1] - w + 1))
        flips = [slice(None, None, -1 if flip else 1) for flip in random.random(2) < 0.5]
        for crops, picture, scale in zip(chosen, (sample.small, sample.large, sample.dark), (1, 2, 2), strict=True):
            crop = picture[scale * top : scale * (top + h), scale * left : scale * (left + w)]
            crops.append(crop[flips[0], flips[1]])
    turn = random.random() < 0.25
    tensors = []
    for crops in chosen:
        stack = np.stack(crops)
        stack = stack.transpose(0, 3, 2, 1) if turn else stack.transpose(0, 3, 1, 2)
        tensors.append(torch.from_numpy(np.ascontiguousarray(stack)).float() / 255)
    return tensors


def subsample_chroma(picture: Tensor) -> Tensor:
    """RGB (N, 3, H, W) in [0, 1] as it comes back from 8-bit 4:2:0 (BT.601, full range), H and W even."""
    red, green, blue = picture.unbind(1)
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    uv = torch.stack(((blue - y) / 1.772, (red - y) / 1.402), dim=1)
    uv = torch.nn.functional.avg_pool2d(uv, 2)
    uv = torch.nn.functional.interpolate(torch.round(255 * uv) / 255, scale_factor=2.0)
    y = torch.round(255 * y) / 255
    u, v = uv.unbind(1)
    return torch.stack((y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u), dim=1).clamp(0, 1)
