"""Photos by day made into night and day pairs, as a field camera would send them; and all pairs that training mixes."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from engines.colour import Colour, to_planes, to_rgb
from engines.data.coded import Codec, at_bit_rate
from engines.data.darken import DECODE, Night, encode, gather, record
from engines.data.lamps import Light, between, lamps
from engines.data.lol import Picture, double, halve, read_picture
from engines.data.pairs import ALIGN, PHOTO_CROP, Sample, lol_samples

GREY = 0.15
"""Share of the pairs that an infrared camera sends: without colour."""
LIT = 0.4
"""Share of the night pairs with lamps."""
UNDAMAGED = 0.3
"""Share of the day pairs without noise and damage, which nothing but their doubling is asked of."""
HEVC = 0.25
"""Share of the links that send H.265; the others send H.264."""

BIT_RATES = (100_000, 800_000)
"""Of a link, bit/s, if its pictures had `CIF` pixels; smaller pictures have less in proportion."""
CIF = 352 * 288
RATE = Fraction(25)
CLIP = (5, 8)
"""Fewest and most pictures that a link sends; the last one is kept, and carries the damage of the others along."""
PAN, SHAKE = 2.0, 1.0
"""Pixels of the small picture from one to the next: the steady part at most, and the deviation of the rest."""

DAY_MEAN = 80
"""Mean code value, of 255, that a day has at least: what is darker could be a night as well."""
INFRARED = Colour(full_range=True, grey=True)


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


def night_samples(photos: Sequence[Picture], count: int, seed: int) -> list[Sample]:
    """Photos as field cameras would send them at night; sample n depends on its photo, `seed` and n alone."""
    return [night_sample(photos[n % len(photos)], np.random.default_rng((seed, n))) for n in range(count)]


def day_samples(photos: Sequence[Picture], count: int, seed: int) -> list[Sample]:
    """Photos as field cameras would send them by day; sample n depends on its photo, `seed` and n alone."""
    return [day_sample(photos[n % len(photos)], np.random.default_rng((seed, n))) for n in range(count)]


def night_sample(photo: Picture, random: np.random.Generator) -> Sample:
    """A photo halved, darkened, noisy and damaged; some have lamps, some no colour.

    The target is the photo, and its lamps are in it as bright as the night camera sees them, no brighter: the dark
    beside them is to become as visible as everything else.
    """
    night = Night(
        exposure=between((0.004, 0.15), random),
        photons=between((800, 40_000), random),
        read_noise=between((1e-4, 2e-3), random),
        cast=(float(random.uniform(0.8, 1.25)), 1.0, float(random.uniform(0.8, 1.25))),
    )
    scene, light, large = gather(photo, night), gather(halve(photo), night), photo
    if random.random() < LIT:
        shining = lamps(photo.shape[0], photo.shape[1], random)
        scene, light, large = scene + shining, light + _halve_light(shining), encode(DECODE.take(photo) + shining)
    return _some_grey(Sample(small=send(light, night, random), large=large, dark=encode(scene)), random)


def day_sample(photo: Picture, random: np.random.Generator) -> Sample:
    """A photo halved, exposed as some weather would, noisy and damaged; some are neither, some have no colour.

    The target is the bicubic double of the clean small picture, and not the sharp photo: daylight is to be left alone,
    and a network that sharpened it would change it. It is what `engines.evaluation.daylight` compares with, where the
    input is clean; noise and damage are not part of the target.
    """
    small = weather(halve(photo), random)
    large = double(small)
    if random.random() >= UNDAMAGED:
        camera = Night(exposure=1.0, photons=between((4_000, 100_000), random), read_noise=5e-4)
        small = send(gather(small, camera), camera, random)
    return _some_grey(Sample(small=small, large=large, dark=large), random)


def weather(picture: Picture, random: np.random.Generator) -> Picture:
    """A picture by day under other light: overcast, glaring, against the sun; its mean is `DAY_MEAN` or above."""
    curve = np.linspace(0, 1, 256) ** between((0.8, 1.25), random)
    gain = max(between((0.75, 1.3), random), DAY_MEAN / 255 / max(curve[picture].mean(), 1e-3))
    codes: Picture = np.rint(255 * np.minimum(gain * curve, 1)).astype(np.uint8)
    return codes[picture]


def send(light: Light, camera: Night, random: np.random.Generator) -> Picture:
    """What arrives of the light (H, W, 3), even sides: the last picture of a short clip after a thin link.

    The camera pans and shakes by whole pixels, and its noise is new in every picture, so that the last one, (H, W, 3)
    uint8 and in place, is predicted from others and carries their damage.
    """
    height, width = light.shape[:2]
    moves = random.uniform(-PAN, PAN, 2) + random.normal(0, SHAKE, (random.integers(CLIP[0], CLIP[1] + 1), 2))
    places = np.rint(moves.cumsum(0) - moves.sum(0)).astype(int)
    margin = int(np.abs(places).max())
    wide = np.pad(light, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    clip = (record(wide[y : y + height, x : x + width], camera, random) for y, x in margin + places)
    codec: Codec = "hevc" if random.random() < HEVC else "h264"
    *_, last = at_bit_rate(clip, round(between(BIT_RATES, random) * height * width / CIF), RATE, codec)
    return last.rgb()


def _halve_light(light: Light) -> Light:
    """(H, W, 3) to (H/2, W/2, 3): each pixel gathers what four did."""
    height, width = light.shape[:2]
    squares: Light = light.reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3))
    return squares


def _some_grey(sample: Sample, random: np.random.Generator) -> Sample:
    """The sample, or by a chance of `GREY` what an infrared camera would make of it."""
    if random.random() >= GREY:
        return sample
    return Sample(small=grey(sample.small), large=grey(sample.large), dark=grey(sample.dark))


def grey(picture: Picture) -> Picture:
    """(H, W, 3) uint8 without colour."""
    return to_rgb(*to_planes(picture, INFRARED), INFRARED)


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
