"""Makes night and day pairs, as a field camera would send them, from scenes by day; reads all pairs for training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from engines.colour import Colour, to_planes, to_rgb
from engines.data.clips import clip_rate, read_clip
from engines.data.coded import Codec, at_bit_rate
from engines.data.darken import DECODE, GAMMA, Night, encode, gather, record, visible
from engines.data.kinds import PICTURES, VIDEOS
from engines.data.lamps import Light, lamps, log_uniform
from engines.data.lol import HELD_OUT, Picture, double, halve, read_picture
from engines.data.overlay import Overlay, write
from engines.data.pairs import ALIGN, PHOTO_CROP, Sample, lol_samples

EXPOSURE = (0.004, 0.15)
"""A night's light, as a share of a day's."""
GREY = 0.15
"""Share of the pairs from an infrared camera, without colour."""
LIT = 0.4
"""Share of the night pairs with lamps."""
CRUSHED = 0.4
"""Share of the nights whose camera crushes the darkest parts to black, beyond recovery."""
CRUSHED_BELOW = (2.0, 20.0)
"""How many of the lowest code values such a camera crushes."""
PEDESTAL, PEDESTAL_COLOUR = 4.0, 2.5
"""Code values: the highest that it sends as black, and the largest deviation of red, green and blue from that."""
SMOOTHED = 0.4
"""Largest deviation of its shot noise, and of its read noise, as a share of the least light that it keeps."""
LEFT, SOFTENED = 0.12, 3.0
"""Target where a camera crushed the picture, as a share of the day's code values, and deviation of the border's blur in
pixels."""
OVERLAID = 0.3
"""Share of the pairs whose camera burns text into its pictures."""
SHADED = 0.4
"""Share of the days with a wide shadow."""
SHADE, SHADE_BORDER = (0.08, 0.6), (0.02, 0.3)
"""Share of the light left in the shadow, and the width of its border as a share of the picture's height."""
UNDAMAGED = 0.3
"""Share of the day pairs without noise and damage, which need only be doubled."""
HEVC = 0.25
"""Share of the links that send H.265; the others send H.264."""

BIT_RATES = (100_000, 800_000)
"""Bit rates of a link in bit/s for pictures of `CIF` pixels; proportional to the number of pixels."""
CIF = 352 * 288
RATE = Fraction(25)
CLIP = (5, 8)
"""Fewest and most pictures that a link sends; the last one is kept, with the accumulated damage of the others."""
PAN, SHAKE = 2.0, 1.0
"""Motion between pictures in pixels of the small picture: the largest steady part, and the deviation of the rest."""

AS_IT_IS = 0.3
"""Share of the pairs that show their scene at its original size."""
ENLARGED = (1.0, 5.0)
"""Factor on height and width of the others: a camera's pictures are larger and softer than photos that were scaled
down, and a network that never saw such pictures takes a wall or a road by day for something in the dark."""
LEAST = (2 * PHOTO_CROP[0], 2 * PHOTO_CROP[1])
"""Least height and width of a scene."""
VIEW = (384, 608)
"""Largest height and width of the part of a scene that a pair shows."""
WIDE_VIEW = (768, 1216)
"""The same for wide pairs, whose scene is enlarged until it fills this: a wall or a road wider than the network's
receptive field, and the daylight elsewhere that shows that it is not night."""
LARGEST_PHOTO = 1024
"""Pixels of a photo's longer side; larger photos are scaled down to it when read."""

PART_SECONDS, PARTS = 4.0, 20
"""Least time between two parts of a video, and the most parts taken from one."""
PART = (384, 576)
"""Largest height and width of a part, cut from a random place of larger videos."""

DAY_MEAN = 80
"""Least mean code value, of 255, of a day: anything darker could be night as well."""
INFRARED = Colour(full_range=True, grey=True)

Scene = NDArray[np.uint8]
"""(T, H, W, 3) uint8 RGB: one photo, or `CLIP[1]` consecutive pictures of a video."""


def read_samples(
    lol: Path, photos: Path | None, seed: int, hold_out: bool = True, wide: bool = False
) -> tuple[tuple[list[Sample], ...], list[Sample]]:
    """LOL, night and day samples for training, and LOL's held-out ones; without `hold_out` those are in both.

    Without `photos` there are no nights or days; `wide` adds wide ones to both, one for every two scenes. Raises
    `OSError`, which names the file, if something cannot be read, or if there are no scenes to hold out.
    """
    train, held_out = lol_samples(lol)
    if not hold_out:
        train = train + held_out
    elif not held_out:
        missing = f"our485 has none of the held-out scenes {HELD_OUT[0]} to {HELD_OUT[-1]}"
        raise FileNotFoundError(f"{lol}: {missing}; a recipe with `hold_out = false` needs none")
    scenes = read_scenes(photos) if photos else []
    night = night_samples(scenes, 2 * len(scenes), seed)
    day = day_samples(scenes, len(scenes), seed + 1)
    if wide:
        night += night_samples(scenes[::2], len(scenes[::2]), seed + 2, wide)
        day += day_samples(scenes[1::2], len(scenes[1::2]), seed + 3, wide)
    return (train, night, day), held_out


def night_samples(scenes: Sequence[Scene], count: int, seed: int, wide: bool = False) -> list[Sample]:
    """Scenes as field cameras would send them at night; sample n depends only on its scene, `seed` and n."""
    return [night_sample(scenes[n % len(scenes)], np.random.default_rng((seed, n)), wide) for n in range(count)]


def day_samples(scenes: Sequence[Scene], count: int, seed: int, wide: bool = False) -> list[Sample]:
    """Scenes as field cameras would send them by day; sample n depends only on its scene, `seed` and n."""
    return [day_sample(scenes[n % len(scenes)], np.random.default_rng((seed, n)), wide) for n in range(count)]


def night_sample(scene: Scene, random: np.random.Generator, wide: bool = False) -> Sample:
    """A scene halved, darkened, noisy and damaged; some have lamps, some no colour.

    The target is the scene's last picture, with lamps as bright as the night camera sees them and no brighter: the dark
    beside them is to become as visible as everything else. What a camera crushed to black stays dark: what was there is
    unknown, and a bright grey would pretend otherwise.
    """
    night = Night(
        exposure=log_uniform(EXPOSURE, random),
        photons=log_uniform((800, 40_000), random),
        read_noise=log_uniform((1e-4, 2e-3), random),
        cast=(float(random.uniform(0.8, 1.25)), 1.0, float(random.uniform(0.8, 1.25))),
    )
    if random.random() < CRUSHED:
        night = crush(night, random)
    scene = view(scene, random, wide)
    large: Picture = scene[-1]
    full, lights = gather(large, night), [gather(halve(picture), night) for picture in scene]
    if random.random() < LIT:
        shining = lamps(large.shape[0], large.shape[1], random)
        halved = _halve_light(shining)
        full, lights, large = full + shining, [light + halved for light in lights], encode(DECODE.take(large) + shining)
    text = _some_text(large, random)
    small, dark, mean = send(lights, night, random, text), encode(full, night), float(large.mean())
    if night.crushed:
        large = _without_the_lost(large, visible(full, night))
    if text is not None:
        large, dark = (text.doubled().over(picture) for picture in (large, dark))
    return _some_grey(Sample(small, large, dark, mean), random)


def crush(night: Night, random: np.random.Generator) -> Night:
    """The same night with a camera that crushes its darkest code values. It smooths first: otherwise noise would lift
    dark parts above the limit, and the picture would still show them."""
    crushed = log_uniform(CRUSHED_BELOW, random)
    black = random.uniform(0, PEDESTAL) + random.uniform(-PEDESTAL_COLOUR, PEDESTAL_COLOUR, 3)
    red, green, blue = np.maximum(black, 0).tolist()
    least = float((crushed / 255) ** GAMMA)  # light that is kept
    return replace(
        night,
        crushed=crushed,
        pedestal=(red, green, blue),
        photons=max(night.photons, 1 / (SMOOTHED**2 * least)),
        read_noise=min(night.read_noise, SMOOTHED * least),
    )


def _without_the_lost(large: Picture, kept: NDArray[np.float32]) -> Picture:
    """The picture (H, W, 3), darkened where the camera kept nothing: `kept` (H, W) is 0 there, 1 where it saw well."""
    mask = Image.fromarray(np.rint(255 * kept).astype(np.uint8)).filter(ImageFilter.GaussianBlur(SOFTENED))
    share = LEFT + (1 - LEFT) / 255 * np.asarray(mask, np.float32)
    return np.rint(large * share[..., None]).astype(np.uint8)


def day_sample(scene: Scene, random: np.random.Generator, wide: bool = False) -> Sample:
    """A scene halved, exposed as in some weather, noisy and damaged; some are neither, some have no colour.

    The target is the bicubic double of the clean small picture, not the sharp photo: daylight is to be left alone, and
    sharpening would change it. `engines.evaluation.daylight` compares with the same where the input is clean; noise and
    damage are not part of the target.
    """
    pictures = np.stack([halve(picture) for picture in view(scene, random, wide)])
    if random.random() < SHADED:
        pictures = shade(pictures, random)
    pictures = weather(pictures, random)
    small = pictures[-1]
    large = double(small)
    text = _some_text(large, random)
    if random.random() >= UNDAMAGED:
        camera = Night(exposure=1.0, photons=log_uniform((4_000, 100_000), random), read_noise=5e-4)
        small = send([gather(picture, camera) for picture in pictures], camera, random, text)
    elif text is not None:
        small = text.over(small)
    if text is not None:
        large = text.doubled().over(large)
    return _some_grey(Sample(small=small, large=large, dark=large), random)


def view(scene: Scene, random: np.random.Generator, wide: bool = False) -> Scene:
    """A random part of a scene, enlarged or not: (T, h, w, 3), `VIEW` at most, with sides that training can halve.

    A `wide` one is enlarged, and has the size `WIDE_VIEW` unless the scene is smaller than `LEAST`.
    """
    sides, limits = scene.shape[1:3], WIDE_VIEW if wide else VIEW
    if wide:
        fills = max(limit / side for limit, side in zip(limits, sides, strict=True))
        factor = log_uniform((fills, max(fills, ENLARGED[1])), random)
    else:
        factor = 1.0 if random.random() < AS_IT_IS else log_uniform(ENLARGED, random)
    height, width = (
        min(limit, int(factor * side)) // (2 * ALIGN) * 2 * ALIGN for limit, side in zip(limits, sides, strict=True)
    )
    top, left = random.uniform(0, sides[0] - height / factor), random.uniform(0, sides[1] - width / factor)
    if factor == 1.0:
        top, left = int(top), int(left)
        return scene[:, top : top + height, left : left + width]
    box = (left, top, left + width / factor, top + height / factor)
    return np.stack(
        [
            np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC, box))
            for picture in scene
        ]
    )


def shade(pictures: Scene, random: np.random.Generator) -> Scene:
    """(T, H, W, 3) with a wide shadow, as of a house or trees, on one side of all pictures: as dark as a night, but by
    day."""
    height, width = pictures.shape[1:3]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    angle, border = random.uniform(0, 2 * np.pi), log_uniform(SHADE_BORDER, random) * height
    from_border = (rows - random.uniform(0.2, 0.8) * height) * np.sin(angle)
    from_border += (columns - random.uniform(0.2, 0.8) * width) * np.cos(angle)
    left = log_uniform(SHADE, random)
    light = left + (1 - left) * np.clip(from_border / border + 0.5, 0, 1)
    return np.stack([encode(DECODE.take(picture) * light[..., None].astype(np.float32)) for picture in pictures])


def weather(picture: Picture, random: np.random.Generator) -> Picture:
    """Pictures by day under other light (overcast, glaring, against the sun), with a mean of at least `DAY_MEAN`."""
    curve = np.linspace(0, 1, 256) ** log_uniform((0.8, 1.25), random)
    gain = max(log_uniform((0.75, 1.3), random), DAY_MEAN / 255 / max(curve[picture].mean(), 1e-3))
    codes: Picture = np.rint(255 * np.minimum(gain * curve, 1)).astype(np.uint8)
    return codes[picture]


def send(lights: Sequence[Light], camera: Night, random: np.random.Generator, text: Overlay | None = None) -> Picture:
    """Send the light of a scene, (H, W, 3) arrays with even sides, over a thin link; returns the last picture, uint8.

    `text` is what the camera writes over every picture, at the same place.
    The camera's noise is new in every picture, and for a photo the camera pans and shakes. So the last picture, which
    is in place, is predicted from others and carries their damage.
    """
    height, width = lights[-1].shape[:2]
    moving = _panned(lights[-1], random) if len(lights) == 1 else iter(lights)
    clip = (record(light, camera, random) for light in moving)
    if text is not None:
        clip = (text.over(picture) for picture in clip)
    codec: Codec = "hevc" if random.random() < HEVC else "h264"
    *_, last = at_bit_rate(clip, round(log_uniform(BIT_RATES, random) * height * width / CIF), RATE, codec)
    return last.as_taken()


def _panned(light: Light, random: np.random.Generator) -> Iterator[Light]:
    """A short clip of one picture moved by whole pixels, ending in its original place."""
    height, width = light.shape[:2]
    moves = random.uniform(-PAN, PAN, 2) + random.normal(0, SHAKE, (random.integers(CLIP[0], CLIP[1] + 1), 2))
    places = np.rint(moves.cumsum(0) - moves.sum(0)).astype(int)
    margin = int(np.abs(places).max())
    wide = np.pad(light, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    return (wide[y : y + height, x : x + width] for y, x in margin + places)


def _halve_light(light: Light) -> Light:
    """(H, W, 3) to (H/2, W/2, 3): each pixel is the mean of four."""
    height, width = light.shape[:2]
    squares: Light = light.reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3))
    return squares


def _some_text(large: Picture, random: np.random.Generator) -> Overlay | None:
    """Text for the small picture of this large one, (H, W, 3) with even sides, with a probability of `OVERLAID`."""
    height, width = large.shape[0] // 2, large.shape[1] // 2
    return write(height, width, random) if random.random() < OVERLAID else None


def _some_grey(sample: Sample, random: np.random.Generator) -> Sample:
    """The sample, or with a probability of `GREY` what an infrared camera would make of it."""
    if random.random() >= GREY:
        return sample
    small, large, dark = (grey(picture) for picture in (sample.small, sample.large, sample.dark))
    return replace(sample, small=small, large=large, dark=dark)


def grey(picture: Picture) -> Picture:
    """(H, W, 3) uint8 without colour."""
    return to_rgb(*to_planes(picture, INFRARED), INFRARED)


def read_scenes(folder: Path) -> list[Scene]:
    """Every photo, and parts of every video, in a folder; ignores hidden and other files.

    Upright photos are turned to landscape, and all sides cut to multiples of twice `ALIGN`; what is too small to train
    on is left out, and so are dark parts of videos. Raises `FileNotFoundError` if nothing is left, and `OSError`, which
    names the file, for a photo or video that cannot be read.
    """
    scenes: list[Scene] = []
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        if path.suffix.lower() in PICTURES:
            photo = _no_larger(read_picture(path))
            scenes += _fit((np.rot90(photo) if photo.shape[0] > photo.shape[1] else photo)[None])
        elif path.suffix.lower() in VIDEOS:
            scenes += _bright_parts(path)
    if not scenes:
        known, least = ", ".join(sorted(PICTURES | VIDEOS)), f"{LEAST[1]}x{LEAST[0]}"
        raise FileNotFoundError(f"{folder}: no photo and no bright video of at least {least} pixels ({known})")
    return scenes


def _no_larger(photo: Picture) -> Picture:
    """The photo, scaled down so that its longer side is at most `LARGEST_PHOTO`."""
    if max(photo.shape) <= LARGEST_PHOTO:
        return photo
    small = Image.fromarray(photo)
    small.thumbnail((LARGEST_PHOTO, LARGEST_PHOTO), Image.Resampling.BICUBIC)
    return np.asarray(small)


def _bright_parts(path: Path) -> Iterator[Scene]:
    """Short bright parts of a video, evenly spaced over its first `PARTS` times `PART_SECONDS`."""
    every, part = max(CLIP[1], round(PART_SECONDS * clip_rate(path))), []
    for number, picture in enumerate(islice(read_clip(path), PARTS * every)):
        if number % every < CLIP[1]:
            part.append(picture)
        if len(part) == CLIP[1]:
            if part[-1].mean() >= DAY_MEAN:
                seed = (*os.fsencode(path.name), number)  # other places for each video
                yield from _fit(_somewhere(np.stack(part), np.random.default_rng(seed)))
            part = []


def _somewhere(scene: Scene, random: np.random.Generator) -> Scene:
    """A random part of a scene, no larger than `PART`."""
    height, width = np.minimum(PART, scene.shape[1:3])
    top, left = random.integers(scene.shape[1] - height + 1), random.integers(scene.shape[2] - width + 1)
    return scene[:, top : top + height, left : left + width]


def _fit(scene: Scene) -> list[Scene]:
    """The scene with its sides cut so that training can halve and crop them; empty if it is too small."""
    height, width = (side - side % (2 * ALIGN) for side in scene.shape[1:3])
    if height < LEAST[0] or width < LEAST[1]:
        return []
    return [np.ascontiguousarray(scene[:, :height, :width])]
