from __future__ import annotations

import numpy as np
import pytest

from engines.door import Slot
from engines.evaluation.steady import flicker, moving_scene, noisy_nights, still_scene, warping_error
from tests.doubling import DoublingEngine
from tests.test_flow import scene


class Pumping(DoublingEngine):
    """Makes every second picture brighter by 6 code values."""

    count = 0

    def _finish(self, slot: Slot) -> None:
        super()._finish(slot)
        self.count += 1
        slot.y_out[:] = slot.y_out + np.uint8(6 * (self.count % 2))


def test_flicker_agrees_with_its_definition_on_the_whole_video_at_once() -> None:
    video = np.random.default_rng(5).integers(0, 256, (7, 12, 10, 3), dtype=np.uint8)
    found = flicker(iter(video))
    assert found.frame_mean_deviation == pytest.approx(np.std(video.mean(axis=(1, 2, 3))), abs=1e-9)
    assert found.pixel_deviation == pytest.approx(np.sqrt(np.var(video, axis=0).mean()), abs=1e-9)
    assert found.mabd == pytest.approx(np.abs(np.diff(video.mean(axis=3), axis=0)).mean(), abs=1e-9)


def test_one_picture_cannot_flicker() -> None:
    with pytest.raises(ValueError, match="1 pictures; flicker needs 2 or more"):
        flicker([np.zeros((4, 4, 3), np.uint8)])


def test_the_dark_scene_has_the_noise_that_is_said() -> None:
    white = np.full((80, 120, 3), 255, np.uint8)
    given = list(noisy_nights([white] * 30, seed=1))
    assert given[0].shape == (40, 60, 3)
    assert given[0].mean() == pytest.approx(255 * 0.02 ** (1 / 2.2), abs=0.6)
    assert flicker(given).pixel_deviation == pytest.approx(2, abs=0.1)
    np.testing.assert_array_equal(given, list(noisy_nights([white] * 30, seed=1)))


def test_pumping_is_seen_on_a_still_scene() -> None:
    white = np.full((40, 60, 3), 255, np.uint8)
    with DoublingEngine() as calm, Pumping() as pumping:
        quiet, loud = still_scene(calm, white, 20), still_scene(pumping, white, 20)
    assert quiet["frame_mean_deviation"] < 0.2
    assert loud["frame_mean_deviation"] == pytest.approx(3, abs=0.2)
    assert loud["mabd"] > quiet["mabd"] + 2
    assert loud["input_pixel_deviation"] == quiet["input_pixel_deviation"] == pytest.approx(2, abs=0.15)


class Frozen(DoublingEngine):
    """Shows its first picture for ever."""

    first: np.ndarray | None = None

    def _finish(self, slot: Slot) -> None:
        super()._finish(slot)
        self.first = slot.y_out.copy() if self.first is None else self.first
        slot.y_out[:] = self.first


def test_motion_is_no_warping_error_and_pumping_is() -> None:
    clean = [scene(0.8 * number, 1.3 * number) for number in range(6)]
    pumped = [picture + np.uint8(6 * (number % 2)) for number, picture in enumerate(clean)]
    calm, loud = warping_error(clean, clean), warping_error(pumped, clean)
    assert calm["warping_error"] == calm["clean_warping_error"] == loud["clean_warping_error"] < 2
    assert loud["warping_error"] == pytest.approx(6, abs=1)
    assert loud["compared_share"] > 0.8


def test_nothing_is_compared_across_a_cut() -> None:
    before, after = scene(0, 0), 255 - scene(50, 90)
    assert warping_error([before, after], [before, after])["compared_share"] < 0.3


def test_a_moving_scene_is_compared_with_the_flow_of_the_clean_one() -> None:
    clean = [scene(0, 2 * number)[:96, :136] for number in range(5)]
    with DoublingEngine() as calm, Pumping() as pumping, Frozen() as frozen:
        quiet, loud, stuck = (moving_scene(engine, clean) for engine in (calm, pumping, frozen))
    assert quiet["warping_error"] < 4 < 5 < loud["warping_error"]
    assert stuck["warping_error"] > 1.15 * quiet["warping_error"]  # by its own flow, a frozen picture were perfect
    assert stuck["mabd"] < 1 < quiet["mabd"]
    assert quiet["clean_warping_error"] == loud["clean_warping_error"] < 2
    assert quiet["clean_mabd"] == loud["clean_mabd"] > 5
