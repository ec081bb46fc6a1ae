from __future__ import annotations

import numpy as np
import pytest

from engines.evaluation.flow import find_flow, warp

HEIGHT, WIDTH = 100, 140
INSIDE = (slice(16, 80), slice(16, 112))


def scene(down: float, right: float) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8: waves in all directions, moved by so many pixels."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    y, x = rows - down, columns - right
    wave = 128 + 40 * np.sin(x / 5 + y / 11) + 35 * np.sin(y / 6 - x / 17) + 30 * np.cos(x / 8) * np.sin(y / 9)
    return np.rint(np.stack((wave, 0.8 * wave, 0.9 * wave), axis=2)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (4, -6), (-7, 3), (1.5, 0.5), (-0.7, 2.2)])
def test_a_motion_is_found_to_a_fraction_of_a_pixel(down: float, right: float) -> None:
    flow = find_flow(scene(0, 0), scene(down, right))
    assert flow.shape == (2, HEIGHT, WIDTH)
    np.testing.assert_allclose(flow[0][INSIDE], down, atol=0.15)
    np.testing.assert_allclose(flow[1][INSIDE], right, atol=0.15)


def test_the_next_picture_warped_is_the_one_before() -> None:
    before, after = scene(0, 0), scene(2.6, -3.2)
    warped, inside = warp(after, find_flow(before, after))
    assert np.abs(warped - before)[INSIDE].mean() < 1
    assert np.abs(after.astype(float) - before)[INSIDE].mean() > 10
    assert inside[INSIDE].all()


def test_what_has_left_the_picture_is_told() -> None:
    flow = np.zeros((2, HEIGHT, WIDTH), np.float32)
    flow[1] = 10
    warped, inside = warp(scene(0, 0), flow)
    assert inside[:, : WIDTH - 10].all()
    assert not inside[:, WIDTH - 10 :].any()
    np.testing.assert_array_equal(warped[:, : WIDTH - 10], scene(0, 0)[:, 10:])
