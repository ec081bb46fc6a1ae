"""What is cut from the training pictures, and what is done to it at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engines.data.lol import halve
from engines.data.pairs import (
    SHIFT,
    Draw,
    Sample,
    batch,
    draw,
    even_out,
    in_phases,
    light_up,
    lol_samples,
    shared_region,
    small_sizes,
    subsample_chroma,
)
from engines.training.graphs import Deck
from engines.training.steps import twins as cut_twins
from tests.training import scene


def light(size: tuple[int, int], count: int, **changes: float) -> Draw:
    return draw([size], size, count, np.random.default_rng(1), **changes)  # type: ignore[arg-type]


def noise_of(chosen: Draw) -> torch.Generator:
    return torch.Generator().manual_seed(chosen.seed)


def test_exposure_changes_by_the_gain_at_most_and_picture_by_picture() -> None:
    grey = [torch.full((64, 2, 2, 3), 51, dtype=torch.uint8)] * 3
    exposing = light((2, 2), 64, gain=1.5)
    exposed, *others = light_up(grey, exposing.light, exposing, noise_of(exposing))
    assert 0.2 / 1.5 <= exposed.min() < 0.16
    assert 0.25 < exposed.max() <= 0.2 * 1.5
    plain = light((2, 2), 64)
    assert all(
        torch.equal(picture, others[0]) for picture in (*others, *light_up(grey, plain.light, plain, noise_of(plain)))
    )


@pytest.mark.parametrize(("share", "means"), [(0.0, [50, 200]), (0.5, [71, 141]), (1.0, [100, 100])])
def test_bright_pictures_are_drawn_to_their_common_brightness_by_the_share(share: float, means: list[int]) -> None:
    dim, bright = (Sample(*[np.full((4, 6, 3), level, np.uint8)] * 3) for level in (50, 200))
    evened = even_out([dim, bright], share)
    assert [pair.large.max() for pair in evened] == means
    assert [pair.large.min() for pair in evened] == means
    assert [(pair.small.max(), pair.dark.max()) for pair in evened] == [(50, 50), (200, 200)], "the dark ones stay"


def test_bright_pictures_are_drawn_to_those_that_stand_nearby_alone() -> None:
    pairs = [Sample(*[np.full((4, 6, 3), level, np.uint8)] * 3) for level in (25, 50, 100, 200)]
    assert [pair.large.max() for pair in even_out(pairs, 1.0, reach=1)] == [35, 50, 100, 141]


def test_a_night_that_stays_dark_in_part_is_evened_out_by_its_day() -> None:
    levels = [np.full((4, 6, 3), level, np.uint8) for level in (10, 100)]
    lost, seen = (Sample(level, level, level, mean=100.0) for level in levels)
    assert [pair.large.max() for pair in even_out([lost, seen], 1.0)] == [10, 100]


def test_what_is_made_brighter_ends_at_white_and_black_stays_black() -> None:
    black, dim = np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), 40, np.uint8)
    dim[0] = 250
    evened = even_out([Sample(black, picture, black) for picture in (black, dim, dim + 5)], 1.0)
    assert evened[0].large.max() == 0
    grown = even_out([Sample(black, picture, black) for picture in (dim, np.full_like(dim, 255))], 0.5)
    assert (grown[0].large[0] == 255).all()
    assert even_out([], 0.5) == []


def test_mixup_blends_neighbours_by_the_same_share_in_all_three_pictures() -> None:
    levels = torch.arange(0, 200, 50, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 2, 2, 3)
    mixing = light((2, 2), 4, mixup=1.0)
    small, large, dark = light_up([levels] * 3, mixing.light, mixing, noise_of(mixing))
    shares = mixing.light[:, 1]
    own, neighbour = levels[:, 0, 0, 0] / 255, levels[:, 0, 0, 0].roll(1) / 255
    assert torch.allclose(small[:, 0, 0, 0], own + shares * (neighbour - own))
    assert torch.equal(small, large)
    assert torch.equal(small, dark)
    assert not light((2, 2), 4).mixed


@pytest.mark.parametrize("twins", [0.0, 1.0])
def test_crops_of_a_pair_show_the_same_place(twins: float) -> None:
    large = scene(128, 192)
    whole = Sample(small=np.asarray(Image.fromarray(large).reduce(2)), large=large, dark=large)
    chosen = draw(small_sizes([whole]), (32, 48), 4, np.random.default_rng(2), twins=twins)
    small, big, dark = batch([whole], chosen)
    assert sorted(small.shape[-2:]) == ([24, 40] if twins else [32, 48])
    assert torch.nn.functional.avg_pool2d(big, 2).sub(small).abs().max() < 0.01
    assert torch.equal(big, dark)


@pytest.mark.parametrize("turn", [0.0, 1.0])
@pytest.mark.parametrize("twins", [0.0, 1.0])
def test_a_device_cuts_the_batch_that_the_cpu_cuts(turn: float, twins: float) -> None:
    wide = Sample(small=scene(48, 64), large=scene(96, 128), dark=scene(96, 128) // 8)
    high = Sample(small=scene(64, 48)[:, ::-1], large=scene(128, 96), dark=scene(128, 96) // 8)
    random = np.random.default_rng(4)
    chosen = draw(
        small_sizes([wide, high]), (32, 40), 6, random, turn=turn, gain=1.3, mixup=1.0, noise=4.0, twins=twins
    )
    assert chosen.mixed != chosen.twins
    deck = Deck([wide, high], torch.device("cpu"))
    cut = deck.batch(chosen.places, chosen.light, chosen, noise_of(chosen))
    for theirs, ours in zip(cut, batch([wide, high], chosen), strict=True):
        assert torch.equal(theirs, ours)


def gradient(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8: no two places, 4 pixels or more apart, look alike."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack((rows % 251, columns % 251, (rows // 16 * 16 + columns // 16) % 251), axis=2).astype(np.uint8)


@pytest.mark.parametrize("turn", [0.0, 1.0])
def test_twins_agree_where_they_overlap_and_nowhere_else(turn: float) -> None:
    large = gradient(144, 208)
    pair = Sample(small=large[::2, ::2], large=large, dark=large)
    shifts = set()
    for seed in range(8):
        chosen = draw([(72, 104)], (48, 64), 6, np.random.default_rng(seed), turn=turn, twins=1.0)
        first, second = chosen.places.chunk(2)
        shifts |= set((second - first)[:, 1:3].flatten().tolist())
        _, big, _ = batch([pair], chosen)
        one, other = cut_twins(big, shared_region(chosen.places, chosen))
        assert sorted(one.shape[2:]) == [2 * (40 - SHIFT), 2 * (56 - SHIFT)]
        assert torch.equal(one, other)
        for a, b, places in zip(*big.chunk(2), first == second, strict=True):
            assert torch.equal(a, b) == places.all()
    assert shifts == set(range(SHIFT + 1))


def test_twins_stay_inside_pictures_that_are_no_larger_than_the_crop() -> None:
    small = gradient(40, 56)
    pair = Sample(small=small, large=small.repeat(2, 0).repeat(2, 1), dark=small.repeat(2, 0).repeat(2, 1))
    for seed in range(20):
        chosen = draw([(40, 56)], (1000, 1000), 4, np.random.default_rng(seed), turn=0.0, twins=1.0)
        assert batch([pair], chosen)[0].shape == (4, 3, 32, 48)


def test_noise_has_the_deviation_that_was_drawn_and_twins_have_their_own() -> None:
    grey = Sample(*(np.full((side, side, 3), 128, np.uint8) for side in (160, 320, 320)))
    chosen = draw([(160, 160)], (160, 160), 16, np.random.default_rng(3), noise=5.0, twins=1.0, gain=1.2)
    small, large, dark = batch([grey], chosen)
    gains, _, deviations = chosen.light.unbind(1)
    assert torch.equal(deviations[:8], deviations[8:])
    assert torch.equal(gains[:8], gains[8:])
    assert 0 < deviations.min() < 1 / 255 < 4 / 255 < deviations.max() <= 5 / 255
    assert torch.allclose(small.std((1, 2, 3)), deviations, rtol=0.02)
    assert torch.allclose(small.mean((1, 2, 3)), gains * 128 / 255, atol=1e-3)
    one, other = small.chunk(2)
    assert torch.allclose((one - other).std((1, 2, 3)), 2**0.5 * deviations[:8], rtol=0.02)
    assert (large == large[0, 0, 0, 0]).all()
    assert torch.equal(large, dark)


def test_twins_can_be_noisier_than_all_others() -> None:
    random = np.random.default_rng(1)
    drawn = [draw([(32, 48)], (24, 24), 4, random, noise=1.0, twins=0.5, twin_noise=40.0) for _ in range(40)]
    noises = {twins: torch.cat([d.light[:, 2] for d in drawn if d.twins == twins]).max() * 255 for twins in (0, 1)}
    assert 0.5 < noises[0] <= 1
    assert 20 < noises[1] <= 40


def test_the_same_seed_gives_the_same_noise_and_the_same_twins() -> None:
    def cut(seed: int) -> list[torch.Tensor]:
        chosen = draw([(32, 48)], (24, 24), 4, np.random.default_rng(seed), noise=3.0, twins=0.5)
        return batch([Sample(small=scene(32, 48), large=scene(), dark=scene())], chosen)

    assert all(torch.equal(one, other) for one, other in zip(cut(1), cut(1), strict=True))
    assert not torch.equal(cut(1)[0], cut(2)[0])


def test_twins_are_as_frequent_as_asked() -> None:
    random = np.random.default_rng(1)
    drawn = [draw([(32, 48)], (24, 24), 4, random, twins=0.25).twins for _ in range(400)]
    assert 70 < sum(drawn) < 130


def test_chroma_of_training_pictures_is_that_of_a_video() -> None:
    grey = torch.full((1, 3, 4, 4), 0.5)
    assert subsample_chroma(grey).sub(grey).abs().max() < 0.01
    stripes = torch.zeros(1, 3, 4, 4)
    stripes[:, 0, :, ::2] = 1
    spread = subsample_chroma(stripes)
    assert spread[0, 0, 0, 0] < 0.9
    assert spread[0, 0, 0, 1] > 0.1


def test_pictures_of_several_sizes_give_one_batch_that_fits_the_smallest() -> None:
    large = scene(96, 128)
    wide, high = Sample(large[:60, :84], large[:60], large[:60]), Sample(large[:72, :71], large[:72], large[:72])
    sizes = [wide.small.shape[:2], high.small.shape[:2]]
    chosen = draw(sizes, (10_000, 10_000), 16, np.random.default_rng(3))
    assert set(chosen.places[:, 0].tolist()) == {0, 1}
    assert chosen.size == (60, 70)
    ends = chosen.places[:, 1:3] + torch.tensor(chosen.size)
    assert (ends <= torch.tensor(sizes)[chosen.places[:, 0]]).all()


def test_a_pair_in_phases_is_halved_at_four_places_and_shows_the_same_in_all_its_pictures() -> None:
    dark = np.zeros((24, 32, 3), np.uint8)
    dark[1::2, 1::2] = 200  # only where the first row and column are gone are four equal pixels not halved to one
    bright = scene(24, 32)
    pair = Sample(small=halve(dark), large=bright, dark=dark)
    as_it_is, right, down, both = in_phases([pair])
    assert as_it_is is pair
    assert [some.small.shape for some in (right, down, both)] == [(12, 14, 3), (10, 16, 3), (10, 14, 3)]
    for some, (top, left) in ((right, (0, 1)), (down, (1, 0)), (both, (1, 1))):
        height, width = some.large.shape[:2]
        assert (height, width) == (2 * some.small.shape[0], 2 * some.small.shape[1])
        assert np.array_equal(some.large, bright[top : top + height, left : left + width])
        assert np.array_equal(some.dark, dark[top : top + height, left : left + width])
        assert np.array_equal(some.small, halve(some.dark))


def test_pictures_as_large_as_the_limit_are_left_out_where_there_are_smaller_ones() -> None:
    random = np.random.default_rng(1)
    assert set(draw([(40, 60), (80, 120)], (32, 48), 16, random, below=(80, 120)).places[:, 0].tolist()) == {0}
    assert set(draw([(80, 60), (40, 120)], (32, 48), 16, random, below=(80, 120)).places[:, 0].tolist()) == {0, 1}
    assert set(draw([(80, 120)], (32, 48), 4, random, below=(80, 120)).places[:, 0].tolist()) == {0}
    twice = draw([(40, 60), (80, 120)], (32, 48), 16, random, below=(80, 120), twins=1.0)
    assert set(twice.places[:, 0].tolist()) == {0}


def test_pairs_with_odd_sides_show_the_same_place_from_end_to_end(tmp_path: Path) -> None:
    slope = np.repeat(3 * np.arange(75, dtype=np.uint8)[None, :, None], 50, axis=0).repeat(3, axis=2)
    for side in ("low", "high"):
        (tmp_path / "our485" / side).mkdir(parents=True)
        for number in (1, 660):
            Image.fromarray(slope).save(tmp_path / "our485" / side / f"{number}.png")
    for (sample,) in lol_samples(tmp_path):
        assert sample.small.shape == (24, 36, 3), "even sides, whose chroma can be halved"
        assert sample.large.shape == sample.dark.shape == (48, 72, 3)
        between = sample.large.reshape(24, 2, 36, 2, 3).mean((1, 3))
        assert np.abs(sample.small - between)[:, 2:-2].max() <= 1
