"""The temporal filter, in the graph of weights that only double: what comes out is what went in, but for the filter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from engines.colour import Colour
from engines.door import Memory, no_past
from engines.padding import past_shapes
from engines.picture import PictureGraph
from tests.identity import SMALL, identity_network

HEIGHT, WIDTH = 64, 80
KEEP = 0.905
"""At 25 pictures a second; then 0.756 of the last picture is kept."""


@pytest.fixture(scope="module")
def graph() -> PictureGraph:
    return PictureGraph(identity_network()).eval()


def plane(level: float, sides: tuple[int, ...] = (HEIGHT, WIDTH)) -> np.ndarray:
    return np.full(sides, level, np.float64)


def shown(graph: PictureGraph, *pictures: np.ndarray, keep: float = KEEP, chroma: Sequence[float] = ()) -> np.ndarray:
    """Luma (pictures, H, W) of pictures that are shown one after another, without every second pixel; or U, where
    `chroma` is its level in each."""
    memory = torch.zeros(1, SMALL.memory_size)
    past = [torch.from_numpy(part) for part in no_past(past_shapes(SMALL, WIDTH, HEIGHT)).values()]
    made = []
    for number, picture in enumerate(pictures):
        y = torch.from_numpy(picture.round().clip(0, 255).astype(np.uint8))[None, None]
        uv = torch.full((1, 2, HEIGHT // 2, WIDTH // 2), chroma[number] if chroma else 128, dtype=torch.uint8)
        colour = torch.from_numpy(Colour(full_range=True).coefficients())[None]
        with torch.inference_mode():
            y_out, uv_out, memory, *past = graph(y, uv, colour, memory, torch.full((1, 1), keep), *past)
        made.append((uv_out[0, 0] if chroma else y_out[0, 0, ::2, ::2]).numpy().astype(float))
    return np.stack(made)


def test_noise_of_a_still_scene_is_averaged_over_time(graph: PictureGraph) -> None:
    random = np.random.default_rng(3)
    noisy = [plane(90) + random.normal(0, 3, (HEIGHT, WIDTH)) for _ in range(40)]
    before, after = (np.std(made[10:], axis=0).mean() for made in (np.stack(noisy), shown(graph, *noisy)))
    assert after < 0.5 * before
    assert abs(shown(graph, *noisy)[10:].mean() - 90) < 0.1, "no brighter or darker"


def test_the_first_picture_of_a_feed_is_as_it_is_even_where_it_is_black(graph: PictureGraph) -> None:
    for level in (0, 4, 90, 255):
        assert (shown(graph, plane(level)) == level).all()


def test_a_memory_that_was_cleared_holds_no_picture() -> None:
    memory, shapes = Memory(4), past_shapes(SMALL, WIDTH, HEIGHT)
    for clear in (False, True):
        read, written = memory.swap_past(shapes)
        assert float(read["past_y"].max()) == (-1000 if not clear else 7)
        written["past_y"][:] = 7
    memory.clear()
    assert float(memory.swap_past(shapes)[0]["past_y"].max()) == -1000


def test_nothing_is_kept_after_a_pause(graph: PictureGraph) -> None:
    np.testing.assert_array_equal(shown(graph, plane(90), plane(92), keep=0)[1], plane(92))


def test_a_small_step_of_light_is_approached_and_reached(graph: PictureGraph) -> None:
    """By 2 levels, of which 0.756 are kept back at first, and 0.756 of that then."""
    made = shown(graph, plane(90), *[plane(92)] * 20)[:, HEIGHT // 2, WIDTH // 2]
    assert made[1] == 90
    assert made[2:4].tolist() == [91, 91]
    assert (made[8:] == 92).all()


def test_what_appears_moves_or_leaves_is_followed_at_once(graph: PictureGraph) -> None:
    """A person, some 8 by 16 pixels, 40 levels brighter than the night."""
    pictures = [plane(60) for _ in range(4)]
    for picture, left in zip(pictures[1:3], (20, 34), strict=True):
        picture[20:36, left : left + 8] = 100
    made = shown(graph, *pictures)
    assert (made[1, 20:36, 20:28] == 100).all()
    assert (made[2, 20:36, 34:42] == 100).all()
    assert (made[2, 20:36, 20:28] == 60).all(), "no trail"
    assert (made[3] == 60).all(), "no ghost"


def test_a_faint_but_large_change_is_followed_where_noise_of_the_same_strength_is_not(graph: PictureGraph) -> None:
    changed = plane(60)
    changed[16:48, 16:64] += 7
    assert (shown(graph, plane(60), changed)[1, 22:42, 22:58] == 67).all()
    grain = plane(60)
    grain[::2, ::2] += 7
    grain[1::2, 1::2] -= 7
    rest = shown(graph, plane(60), grain)[1, 12:-12, 12:-12] - 60  # at the border it is not even
    assert 0 < np.abs(rest).max() <= 2


def test_a_strong_change_of_a_few_pixels_is_followed(graph: PictureGraph) -> None:
    """A distant lamp."""
    lamp = plane(60)
    lamp[30:32, 30:32] = 90
    made = shown(graph, plane(60), lamp, plane(60))
    assert (made[1, 30:32, 30:32] == 90).all()
    assert (made[2] == 60).all()


def test_colour_is_steadied_and_followed_like_brightness(graph: PictureGraph) -> None:
    still, moved = (shown(graph, plane(90), plane(90), chroma=levels)[1, 30, 30] for levels in ((120, 124), (120, 150)))
    assert still == 121
    assert moved == 150


def test_pictures_of_a_batch_are_steadied_each_by_its_own_past(graph: PictureGraph) -> None:
    shapes = past_shapes(SMALL, WIDTH, HEIGHT)
    past = [torch.stack([torch.full(shape, level).half() for level in (88.0, -1000.0)]) for shape in shapes.values()]
    y = torch.full((2, 1, HEIGHT, WIDTH), 90, dtype=torch.uint8)
    uv = torch.full((2, 2, HEIGHT // 2, WIDTH // 2), 90, dtype=torch.uint8)
    colour = torch.from_numpy(Colour(full_range=True).coefficients())[None].expand(2, -1, -1, -1)
    with torch.inference_mode():
        y_out, _, _, *left = graph(y, uv, colour, torch.zeros(2, SMALL.memory_size), torch.full((2, 1), KEEP), *past)
    assert [int(y_out[index].max()) for index in range(2)] == [88, 90]
    assert [part.dtype for part in left] == [torch.float16] * 2
    assert float(left[0][0].float().mean()) == pytest.approx(90 - 0.756 * 2, abs=0.04)
