"""Training pairs: small dark pictures and the bright ones of twice the size that they should become.

Random choices are made on the CPU (`draw`), so that all devices cut the same batch from the same seed. Only noise is
made on the device, from a seed that is drawn here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engines.data.lol import HELD_OUT, OUTLIERS, Pair, Picture, halve, read_lol, trimmed

ALIGN = 16
"""Crops are multiples of this, so that they need no padding."""

PHOTO_CROP = (144, 224)
"""Height and width of small crops that fit into every photo."""

NEARBY = 4
"""Pairs of LOL before and after one that count as the same place. Pairs are ordered by number, with the scenes for
holding out, if they are trained on, at the end."""

MIXUP = 1.2
"""Both parameters of the beta distribution from which a neighbour's share is drawn."""

SHIFT = 7
"""Largest shift of the second of two twins, down and to the right, in pixels of the small picture."""

SCALES = (1, 2, 2)
"""Sizes of a sample's three pictures relative to the small one."""


@dataclass(frozen=True)
class Sample:
    """One training pair."""

    small: Picture
    """(h, w, 3) uint8 RGB: what the camera sent."""
    large: Picture
    """(2h, 2w, 3) uint8 RGB: what the network should make of it."""
    dark: Picture
    """(2h, 2w, 3) uint8 RGB: the dark picture at full size, for the detail branch."""
    mean: float | None = None
    """Mean code value of the scene by day, if `large` leaves a part of it dark; None stands for that of `large`."""


@dataclass(frozen=True)
class Draw:
    """The random choices of one batch of N pictures."""

    places: Tensor
    """(N, 5) int64: sample number, first row and column of the small crop, whether rows and columns are flipped."""
    light: Tensor
    """(N, 3) float32: factor on the small picture, share of the neighbour to blend in, and standard deviation of the
    noise to add to the small picture, where white is 1."""
    size: tuple[int, int]
    """Height and width of the small crops, before the turn."""
    turned: bool
    mixed: bool
    """Whether any neighbour is blended in."""
    noisy: bool
    """Whether any noise is added."""
    seed: int
    """Seed of the noise."""
    twins: bool = False
    """Whether picture n + N/2 is picture n again: slightly moved, same flips and exposure, with its own noise."""


def lol_samples(folder: Path) -> tuple[list[Sample], list[Sample]]:
    """Training and held-out pairs of LOL's `our485`."""
    pairs = [pair for pair in read_lol(folder, "our485") if int(pair.name) not in OUTLIERS]
    held_out = [pair for pair in pairs if int(pair.name) in HELD_OUT]
    train = [pair for pair in pairs if int(pair.name) not in HELD_OUT]
    return [_from_lol(pair) for pair in train], [_from_lol(pair) for pair in held_out]


def eval15_samples(folder: Path) -> list[Sample]:
    """The pairs of LOL's `eval15`, which nothing is trained on."""
    return [_from_lol(pair) for pair in read_lol(folder, "eval15")]


def _from_lol(pair: Pair) -> Sample:
    low, high = trimmed(pair.low, 4), trimmed(pair.high, 4)  # the small picture's sides are even, as 4:2:0 needs
    return Sample(small=halve(low), large=high, dark=low)


def even_out(samples: Sequence[Sample], share: float, reach: int | None = None) -> list[Sample]:
    """The same pairs, their bright pictures moved by `share` to one mean brightness (0: not at all, 1: all the way).

    The brightness of the bright picture can hardly be inferred from the dark one, so a network memorises it scene by
    scene, and guesses wildly at scenes that it has not seen. Pictures are scaled as by a longer or shorter exposure, up
    to white. The common brightness is the geometric mean of all pictures' means, or with `reach` that of the pictures
    up to so many places before and after: LOL's neighbours mostly show the same place.
    """
    if not samples or not share:
        return list(samples)
    means = np.log([max(sample.mean or sample.large.mean(), 1.0) for sample in samples])
    reach = len(samples) if reach is None else reach
    common = [means[max(0, place - reach) : place + reach + 1].mean() for place in range(len(samples))]
    return [
        replace(sample, large=np.rint(np.minimum(sample.large * gain, 255)).astype(np.uint8))
        for sample, gain in zip(samples, np.exp(share * (common - means)), strict=True)
    ]


def in_phases(samples: Sequence[Sample]) -> list[Sample]:
    """Each pair four times: as it is, and without its first row, its first column, or both.

    Halving then mixes other pixels, so that what was memorised of one small picture does not fit the others.
    """
    return [_from(sample, down, right) for sample in samples for down in (0, 1) for right in (0, 1)]


def _from(sample: Sample, down: int, right: int) -> Sample:
    if not down and not right:
        return sample
    large, dark = (trimmed(picture[down:, right:], 4) for picture in (sample.large, sample.dark))
    return replace(sample, small=halve(dark), large=large, dark=dark)


def small_sizes(samples: Sequence[Sample]) -> list[tuple[int, int]]:
    """Height and width of every small picture."""
    return [sample.small.shape[:2] for sample in samples]


def draw(
    sizes: Sequence[tuple[int, int]],
    size: tuple[int, int],
    count: int,
    random: np.random.Generator,
    *,
    turn: float = 0.25,
    gain: float = 1.0,
    mixup: float = 0.0,
    noise: float = 0.0,
    twins: float = 0.0,
    twin_noise: float | None = None,
    below: tuple[int, int] | None = None,
) -> Draw:
    """Draw `count` crops of `size` with random flips from pictures of these `sizes`.

    They come from pictures that are large enough; if there are none, they have the largest size that fits into all
    pictures drawn. `turn` is the share of batches that are transposed, as a whole, since all pictures of a batch need
    one shape; `gain` the largest factor of exposure, either way; `mixup` the share of batches with blended neighbours;
    `noise` the largest deviation of noise, in code values of 255. `twins` is the share of batches that show every place
    twice, in crops that are smaller by the shift and not blended; `count` must be even for them, and `twin_noise`
    replaces their `noise`. Pictures as large as `below` are left out if there are smaller ones.
    """
    if twins > 0 and random.random() < twins:
        noise = noise if twin_noise is None else twin_noise
        return _twice(draw(sizes, size, count // 2, random, turn=turn, gain=gain, noise=noise, below=below), random)
    numbers: Sequence[int] = range(len(sizes))
    if below is not None:
        numbers = [n for n in numbers if sizes[n][0] < below[0] or sizes[n][1] < below[1]] or numbers
    large = [n for n in numbers if sizes[n][0] >= size[0] and sizes[n][1] >= size[1]] or numbers
    indices = [large[place] for place in random.integers(len(large), size=count)]
    height, width = (np.minimum(size, np.min([sizes[index] for index in indices], axis=0)) // 2 * 2).tolist()
    places = []
    for index in indices:
        top, left = random.integers(sizes[index][0] - height + 1), random.integers(sizes[index][1] - width + 1)
        places.append((index, top, left, *(random.random(2) < 0.5)))
    turned = bool(random.random() < turn)
    gains = np.exp(random.uniform(-np.log(gain), np.log(gain), count))
    mixed = mixup > 0 and bool(random.random() < mixup)
    blends = random.beta(MIXUP, MIXUP, count) if mixed else np.zeros(count)
    noisy = noise > 0
    deviations = random.uniform(0, noise / 255, count) if noisy else np.zeros(count)
    light = torch.from_numpy(np.stack((gains, blends, deviations), axis=1)).float()
    return Draw(
        places=torch.from_numpy(np.array(places, np.int64)),
        light=light,
        size=(height, width),
        turned=turned,
        mixed=mixed,
        noisy=noisy,
        seed=int(random.integers(2**63)) if noisy else 0,
    )


def _twice(chosen: Draw, random: np.random.Generator) -> Draw:
    """Every picture of the draw twice, the second one shifted, in crops that are smaller by the shift."""
    shift = torch.from_numpy(random.integers(SHIFT + 1, size=(len(chosen.places), 2)))
    height, width = (side - SHIFT - SHIFT % 2 for side in chosen.size)  # still even
    return replace(
        chosen,
        places=torch.cat((chosen.places, chosen.places + functional.pad(shift, (1, 2)))),
        light=chosen.light.repeat(2, 1),
        size=(height, width),
        twins=True,
    )


def spans(first: Tensor, back: Tensor, length: int) -> Tensor:
    """(N, length) indices of rows or columns from `first` (N,) on, reversed where `back` (N,) is not 0."""
    forth = torch.arange(length, device=first.device)
    return first[:, None] + torch.where(back[:, None] != 0, forth.flip(0), forth)


def rows_and_columns(places: Tensor, size: tuple[int, int], scale: int) -> tuple[Tensor, Tensor]:
    """The rows (N, scale h) and columns (N, scale w) of the crops in pictures of this scale."""
    _, top, left, back_rows, back_columns = places.unbind(1)
    return (
        spans(scale * top, back_rows, scale * size[0]),
        spans(scale * left, back_columns, scale * size[1]),
    )


def shared_region(places: Tensor, chosen: Draw) -> tuple[Tensor, Tensor]:
    """Rows (N, h) and columns (N, w) of the region that both twins' large pictures show; `places` may be on a device.

    h and w are the same for every shift: those of the picture less `SHIFT` small pixels.
    """
    first, second = places.chunk(2)
    shift, back = (second - first)[:, 1:3], first[:, 3:5]
    starts = 2 * torch.cat((shift * (1 - back), shift * back))  # a flipped picture moves the other way
    rows, columns = (
        spans(start, torch.zeros_like(start), 2 * (side - SHIFT))
        for start, side in zip(starts.unbind(1), chosen.size, strict=True)
    )
    return (columns, rows) if chosen.turned else (rows, columns)


def batch(samples: Sequence[Sample], chosen: Draw) -> list[Tensor]:
    """Cut [small, large, dark] of a draw: float32 (N, 3, h or 2h, w or 2w) in [0, 1], on the CPU."""
    stacks = []
    for name, scale in zip(("small", "large", "dark"), SCALES, strict=True):
        rows, columns = (span.numpy() for span in rows_and_columns(chosen.places, chosen.size, scale))
        crops = [
            getattr(samples[index], name)[rows[n][:, None], columns[n]]
            for n, index in enumerate(chosen.places[:, 0].tolist())
        ]
        stacks.append(torch.from_numpy(np.stack(crops)))
    return light_up(stacks, chosen.light, chosen, torch.Generator().manual_seed(chosen.seed))


def light_up(stacks: Sequence[Tensor], light: Tensor, chosen: Draw, generator: torch.Generator) -> list[Tensor]:
    """Crops [small, large, dark] or [small, large], uint8 (N, h, w, 3), as the network takes them, in [0, 1].

    Transposes, exposes, adds noise and blends. `light` is that of `chosen`; it and `generator`, which makes the noise,
    are on the device of the crops.
    """
    order = (0, 3, 2, 1) if chosen.turned else (0, 3, 1, 2)
    small, *others = (stack.permute(order).contiguous().float() / 255 for stack in stacks)
    gains, blends, deviations = (column.view(-1, 1, 1, 1) for column in light.unbind(1))
    small = small * gains
    if chosen.noisy:
        small = small + deviations * torch.randn(small.shape, generator=generator, device=small.device)
    pictures = [small.clamp(0, 1), *others]
    if not chosen.mixed:
        return pictures
    return [picture.lerp(picture.roll(1, 0), blends) for picture in pictures]


def subsample_chroma(picture: Tensor) -> Tensor:
    """RGB (N, 3, H, W) in [0, 1] as it comes back from 8-bit 4:2:0 (BT.601, full range), H and W even."""
    red, green, blue = picture.unbind(1)
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    uv = torch.stack(((blue - y) / 1.772, (red - y) / 1.402), dim=1)
    uv = functional.avg_pool2d(uv, 2)
    uv = functional.interpolate(torch.round(255 * uv) / 255, scale_factor=2.0)
    y = torch.round(255 * y) / 255
    u, v = uv.unbind(1)
    return torch.stack((y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u), dim=1).clamp(0, 1)
