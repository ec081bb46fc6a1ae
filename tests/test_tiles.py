"""Large pictures in tiles: the same picture, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from engines import tiles
from engines.colour import to_planes, to_rgb
from engines.data.lol import Picture
from engines.door import Door, Memory, Numbers, Slot
from engines.errors import EngineMismatch
from engines.evaluation.evaluate import PICTURE_COLOUR, enhance_picture
from engines.fallback import FallbackEngine
from engines.network.memory import SAME
from engines.runtime import EngineOptions, open_engine
from engines.tiles import GRID, NEAR, OVERLAP, cover, enhance_tiles, is_large, memory_towards, own_weights, typical
from tests.doubling import DoublingEngine
from tests.tensorrt_bench import bench, filled
from tools.enhance import enhance_image

WIDTH, HEIGHT = 501, 379


def street(width: int = WIDTH, height: int = HEIGHT) -> Picture:
    """(H, W, 3) uint8: dark on the left, lit on the right, with noise and stripes."""
    rows, columns = np.mgrid[0:height, 0:width]
    level = 4 + 60 * columns / width + 8 * (rows // 16 % 2)
    noise = np.random.default_rng(1).normal(0, 2, (height, width, 3))
    return np.clip(level[..., None] * (1.0, 0.9, 0.7) + noise, 0, 255).astype(np.uint8)


def whole_of(parts: Iterator[tuple[int, int, Picture]], width: int = WIDTH, height: int = HEIGHT) -> Picture:
    """Put together, where each pixel must come once."""
    made, count = np.zeros((2 * height, 2 * width, 3), np.uint8), np.zeros((2 * height, 2 * width), int)
    for row, column, part in parts:
        place = slice(row, row + part.shape[0]), slice(column, column + part.shape[1])
        made[place] = part
        count[place] += 1
    assert (count == 1).all()
    return made


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    cache = tmp_path_factory.mktemp("cache")
    with open_engine("openvino", "field", EngineOptions(precision="fp32", threads=1, cache=cache)) as engine:
        yield engine


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "LONGEST", 352)


class Remembering(DoublingEngine):
    """Notes the size of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []

    def _open(self) -> None:
        self._memory_size = 4

    def _make(self, width: int, height: int) -> Slot:
        self.sizes.append((width, height))
        return super()._make(width, height)


@pytest.mark.parametrize("length", [16, 97, 1024, 1039, 1040, 1041, 2000, 4032, 6048, 8064, 12345])
def test_tiles_cover_a_side_on_its_grid_and_see_around_every_pixel_that_is_taken_from_them(length: int) -> None:
    spans = cover(length)
    assert [span.first for span in spans] == [0, *(span.end for span in spans[:-1])]
    assert (spans[0].start, spans[-1].stop, spans[-1].end) == (0, length, length)
    assert all(span.start % GRID == 0 for span in spans)
    (size,) = {span.stop - span.start for span in spans}
    assert size <= 1024 + GRID - 1
    assert size % GRID == length % GRID, "the last row and column are continued as those of the whole"
    for one, next_one in pairwise(spans):
        assert one.stop - next_one.start >= 288
        assert min(one.stop - one.end, next_one.first - next_one.start) >= 144


def test_as_few_tiles_are_taken_as_there_can_be() -> None:
    assert [len(cover(length)) for length in (1024, 1041, 1760, 1777, 4032)] == [1, 2, 2, 3, 6]


def test_tiles_that_are_held_make_the_whole_picture_without_a_seam(engine: Door, small_tiles: None) -> None:
    expected = enhance_picture(engine, street())
    wanted = own_weights(engine, street(), PICTURE_COLOUR)
    with mock.patch.object(tiles, "typical", return_value=wanted):
        made = whole_of(enhance_tiles(engine, street(), PICTURE_COLOUR))
    difference = np.abs(made.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_without_being_held_tiles_would_not_fit_each_other(engine: Door, small_tiles: None) -> None:
    with mock.patch.object(tiles, "memory_towards", return_value=(engine.new_memory(), 0.0)):
        made = whole_of(enhance_tiles(engine, street(), PICTURE_COLOUR))
    assert np.abs(made.astype(int) - enhance_picture(engine, street())).max() > 8


def test_what_tiles_have_in_common_is_near_to_what_the_whole_picture_has(engine: Door, small_tiles: None) -> None:
    made = whole_of(enhance_tiles(engine, street(), PICTURE_COLOUR))
    expected = enhance_picture(engine, street())
    assert made.mean() / expected.mean() == pytest.approx(1, abs=0.05)
    assert np.abs(made.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_picture_uses_weights_that_are_far_from_its_own_where_it_is_held(tmp_path: Path, precision: str) -> None:
    tile = street(96, 64)
    try:
        opened = open_engine("openvino", "field", EngineOptions(precision=precision, cache=tmp_path))
    except EngineMismatch as error:
        pytest.skip(str(error))
    with opened as engine:
        own = own_weights(engine, tile, PICTURE_COLOUR)
        wanted = np.clip(1 - own, 0.1, 0.9)
        assert np.abs(wanted - own).mean() > 0.2
        memory, keep = memory_towards(wanted, own)
        engine.enhance(*to_planes(tile, PICTURE_COLOUR), PICTURE_COLOUR, memory, keep)
        np.testing.assert_allclose(engine.read_memory(memory), wanted, atol=1e-4)


def test_a_memory_that_holds_is_near_enough_to_be_kept_whole() -> None:
    own, wanted = np.full((1, 8), 0.2, np.float32), np.full((1, 8), 0.9, np.float32)
    memory, keep = memory_towards(wanted, own)
    assert np.abs(memory.numbers() - own).mean() == pytest.approx(NEAR, rel=1e-3)
    assert NEAR < SAME
    assert keep == pytest.approx(70)
    assert memory_towards(own, own)[1] == 1.0


def test_weights_have_in_common_what_lies_between_them_also_where_they_are_sure() -> None:
    low, high = np.array([[0.1, 0.5, 0.0, 1.0]], np.float32), np.array([[0.9, 0.5, 0.0, 1.0]], np.float32)
    common = typical([low, high])
    assert common.dtype == np.float32
    np.testing.assert_allclose(common, [[0.5, 0.5, 0.0, 1.0]], atol=1e-5)


def test_a_picture_longer_than_any_engine_takes_is_doubled_pixel_by_pixel_in_tiles_of_one_size() -> None:
    picture = street(4500, 33)
    with Remembering() as engine:
        y, uv = to_planes(picture, PICTURE_COLOUR)
        doubled = y.repeat(2, 0).repeat(2, 1), uv.repeat(2, 1).repeat(2, 2)[:, :33]
        made = enhance_image(engine, picture)
        assert (made.mode, made.size) == ("RGB", (9000, 66))
        np.testing.assert_array_equal(np.asarray(made), to_rgb(*doubled, PICTURE_COLOUR))
        assert {height for _, height in engine.sizes} == {33}
        assert len(set(engine.sizes)) == 1
        assert engine.sizes[0][0] <= 1024 + GRID


@pytest.mark.parametrize(("width", "height"), [(5000, 10), (9, 5000)])
def test_a_long_picture_that_is_too_narrow_is_told_by_its_own_size(width: int, height: int) -> None:
    with DoublingEngine() as engine, pytest.raises(EngineMismatch, match=f"{width}x{height}; it must be 16x16 or"):
        enhance_image(engine, street(width, height))


@pytest.mark.parametrize(
    ("width", "height", "large"), [(1920, 1080, False), (2048, 1024, False), (2049, 1024, True), (4097, 16, True)]
)
def test_only_pictures_of_more_than_2_megapixels_or_too_long_a_side_are_large(
    width: int, height: int, large: bool
) -> None:
    picture = np.zeros((height, width, 3), np.uint8)
    assert is_large(DoublingEngine(), picture) is large
    assert is_large(DoublingEngine(), picture.transpose(1, 0, 2)) is large


def test_a_smaller_picture_passes_the_engine_once_and_whole(engine: Door) -> None:
    expected = enhance_picture(engine, street())
    with mock.patch.object(engine, "enhance", side_effect=engine.enhance) as once:
        np.testing.assert_array_equal(np.asarray(enhance_image(engine, street())), expected)
    assert once.call_count == 1


def test_pictures_of_many_sizes_take_the_memory_of_one() -> None:
    with Remembering() as engine:
        for width in (64, 80, 96, 112):
            enhance_image(engine, street(width, 48))
        assert [engine.is_ready(width, 48) for width in (64, 80, 96, 112)] == [False, False, False, True]


def test_a_gpus_memory_is_read_where_it_is_kept_and_taken_from_where_it_was_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stand-in counts on in the memory with every picture."""
    with bench(monkeypatch) as b:
        for memory, expected in ((b.engine.new_memory(), 0.0), (Memory.of(np.full((1, 4), 6, np.float32)), 6.0)):
            np.testing.assert_array_equal(b.engine.read_memory(memory), np.full((1, 4), expected))
            slot = filled(b.engine, 100)
            slot.memory, slot.keep = memory, 1.0
            b.engine.submit([slot])
            slot.wait()
            left: Numbers = b.engine.read_memory(memory)
            np.testing.assert_array_equal(left, np.full((1, 4), expected + 1))
            slot.release()
        assert b.driver.copied_pageable == 0


def test_a_memory_that_another_engine_used_since_is_not_told_as_the_gpu_left_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with bench(monkeypatch) as b:
        memory = b.engine.new_memory()
        slot = filled(b.engine, 100)
        slot.memory, slot.keep = memory, 1.0
        b.engine.submit([slot])
        slot.wait()
        _, left = memory.swap()
        left[:] = 7
        np.testing.assert_array_equal(b.engine.read_memory(memory), np.full((1, 4), 7))
        memory.clear()
        np.testing.assert_array_equal(b.engine.read_memory(memory), np.zeros((1, 4)))


def test_engines_that_share_a_memory_do_not_guess_what_it_holds() -> None:
    with FallbackEngine(DoublingEngine(), {}) as engine, pytest.raises(EngineMismatch, match="cannot be read"):
        engine.read_memory(engine.new_memory())


def test_neighbours_share_twice_what_the_network_sees() -> None:
    """Of `neid-live`: two convolutions a level on the way down, at the bottom, and up, and one at the end."""
    down, bottom, up, end = 2 * (2 + 4 + 8 + 16), 2 * 16, 2 * (8 + 4 + 2), 2
    assert down + bottom + up + end + GRID - 1 <= OVERLAP * GRID // 2
