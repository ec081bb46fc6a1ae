from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from engines.data.lol import halve
from engines.door import Slot
from engines.evaluation.daylight import daylight, read_bright, summary
from engines.evaluation.evaluate import enhance_picture
from tests.doubling import DoublingEngine
from tests.test_flow import scene


class Dimming(DoublingEngine):
    """Halves the brightness too."""

    def _finish(self, slot: Slot) -> None:
        super()._finish(slot)
        slot.y_out[:] = slot.y_out // 2
        slot.uv_out[:] = 128


def test_the_output_is_compared_with_the_bicubic_double_of_the_input() -> None:
    picture = scene(0, 0)
    small = halve(picture)
    doubled = np.asarray(Image.fromarray(small).resize((140, 100), Image.Resampling.BICUBIC))
    with DoublingEngine() as engine:
        (score,) = daylight(engine, [("a.png", picture)])
        made = enhance_picture(engine, small)
    assert score.name == "a.png"
    assert score.psnr_db == pytest.approx(peak_signal_noise_ratio(doubled, made), abs=1e-3)
    assert score.mean_ratio == pytest.approx(made.mean() / doubled.mean())


def test_an_engine_that_dims_the_day_is_seen() -> None:
    grey = np.full((64, 96, 3), 200, np.uint8)
    with Dimming() as engine:
        figures = summary(list(daylight(engine, [("a", grey), ("b", grey)])))
    assert figures["mean_ratio_lowest"] == pytest.approx(0.5, abs=0.01)
    assert figures["psnr_db_lowest"] < 15
    assert [row["name"] for row in figures["pictures"]] == ["a", "b"]


def test_damage_is_done_before_the_engine_and_not_held_against_it() -> None:
    grain = np.random.default_rng(2).integers(60, 256, (62, 94, 3), dtype=np.uint8)
    with DoublingEngine() as engine:
        (clean,), (damaged,) = (daylight(engine, [("a", grain)], crf) for crf in (None, 45))
    assert damaged.psnr_db > clean.psnr_db + 3  # what is left after much damage is smooth
    assert damaged.mean_ratio == pytest.approx(1, abs=0.02)


def test_only_bright_pictures_count(tmp_path: Path) -> None:
    for name, value in (("dark.png", 40), ("day.png", 120)):
        Image.fromarray(np.full((20, 20, 3), value, np.uint8)).save(tmp_path / name)
    assert [name for name, _ in read_bright(sorted(tmp_path.iterdir()))] == ["day.png"]
