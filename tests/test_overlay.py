from __future__ import annotations

import numpy as np
import pytest

from engines.data import overlay
from engines.data.overlay import Overlay, write
from engines.door import Slot
from engines.evaluation.text import text_scenes
from tests.doubling import DoublingEngine


def test_text_covers_a_small_part_of_a_picture_and_leaves_the_rest() -> None:
    grey = np.full((144, 176, 3), 40, np.uint8)
    for seed in range(20):
        text = write(144, 176, np.random.default_rng(seed))
        written = text.over(grey)
        covered = text.share[..., 0] > 0
        assert 0.001 < covered.mean() < 0.4
        assert (written[~covered] == 40).all()
        assert (written[covered] != 40).any()


def test_text_is_the_same_for_the_same_seed_alone() -> None:
    one, again, other = (write(96, 128, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.share, again.share)
    assert np.array_equal(one.ink, again.ink)
    assert not np.array_equal(one.share, other.share)


def test_white_text_is_white_and_what_it_covers_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "WHITE", 1.0)
    text = write(240, 320, np.random.default_rng(3))
    written = text.over(np.zeros((240, 320, 3), np.uint8))
    assert written.max() == 255
    assert np.array_equal(written, written[..., :1].repeat(3, axis=2))


def test_doubled_text_is_where_it_was_and_as_bright() -> None:
    share, ink = np.zeros((8, 10, 1), np.float32), np.zeros((8, 10, 3), np.float32)
    share[2:6, 3:7], ink[2:6, 3:7] = 1, (255, 255, 0)
    doubled = Overlay(share, ink).doubled().over(np.full((16, 20, 3), 90, np.uint8))
    assert doubled.shape == (16, 20, 3)
    assert np.abs(doubled[6:10, 8:12].astype(int) - (255, 255, 0)).max() <= 2
    assert (doubled[:2] == 90).all()


class Exposing(DoublingEngine):
    """Makes pictures with a white place darker."""

    def _finish(self, slot: Slot) -> None:
        super()._finish(slot)
        if slot.y.max() > 100:
            slot.y_out[:] //= 2


def test_an_engine_that_darkens_what_is_around_a_text_is_told_from_one_that_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(overlay, "WHITE", 1.0)
    scenes = [np.full((160, 240, 3), 200, np.uint8)] * 3
    with DoublingEngine() as steady, Exposing() as exposing:
        kept, halved = text_scenes(steady, scenes), text_scenes(exposing, scenes)
    assert kept["mean_ratio"] == pytest.approx(1, abs=0.02)
    assert halved["mean_ratio"] == pytest.approx(0.5, abs=0.05)
    assert halved["mean_ratio_lowest"] <= halved["mean_ratio"]
