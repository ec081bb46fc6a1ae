from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from engines.data.lol import halve
from engines.door import Slot
from engines.evaluation import evaluate
from engines.evaluation.daylight import day_score, read_bright, summary
from engines.evaluation.evaluate import enhance_picture
from tests.clips import make_clip
from tests.doubling import DoublingEngine
from tests.test_flow import scene


class Dimming(DoublingEngine):
    """Halves the brightness too."""

    def _finish(self, slot: Slot) -> None:
        super()._finish(slot)
        slot.y_out[:] = slot.y_out // 2
        slot.uv_out[:] = 128


def test_the_output_is_compared_with_the_bicubic_double_of_the_input_halved_and_as_it_is() -> None:
    picture = scene(0, 0)
    with DoublingEngine() as engine:
        score = day_score(engine, "a.png", picture)
        for given, size, psnr, ratio in (
            (halve(picture), (140, 100), score.psnr_db, score.mean_ratio),
            (picture, (280, 200), score.full_size_psnr_db, score.full_size_mean_ratio),
        ):
            doubled = np.asarray(Image.fromarray(given).resize(size, Image.Resampling.BICUBIC))
            made = enhance_picture(engine, given)
            assert psnr == pytest.approx(peak_signal_noise_ratio(doubled, made), abs=1e-3)
            assert ratio == pytest.approx(made.mean() / doubled.mean())
    assert score.name == "a.png"


def test_an_engine_that_dims_the_day_is_seen() -> None:
    grey = np.full((64, 96, 3), 200, np.uint8)
    with Dimming() as engine:
        figures = summary([day_score(engine, name, grey) for name in ("a", "b")])
    for size in ("", "full_size_"):
        assert figures[f"{size}mean_ratio_lowest"] == pytest.approx(0.5, abs=0.01)
        assert figures[f"{size}psnr_db_lowest"] < 15
    assert [row["name"] for row in figures["pictures"]] == ["a", "b"]


def test_damage_is_done_before_the_engine_and_not_held_against_it() -> None:
    grain = np.random.default_rng(2).integers(60, 256, (62, 94, 3), dtype=np.uint8)
    with DoublingEngine() as engine:
        clean, damaged = (day_score(engine, "a", grain, crf) for crf in (None, 45))
    assert damaged.psnr_db > clean.psnr_db + 3  # what is left after much damage is smooth
    assert damaged.full_size_psnr_db > clean.full_size_psnr_db + 3
    assert damaged.mean_ratio == pytest.approx(1, abs=0.02)


def test_only_bright_pictures_count(tmp_path: Path) -> None:
    for name, value in (("dark.png", 40), ("day.png", 120)):
        Image.fromarray(np.full((20, 20, 3), value, np.uint8)).save(tmp_path / name)
    assert [name for path in sorted(tmp_path.iterdir()) for name, _ in read_bright(path)] == ["day.png"]


def test_a_video_is_looked_at_every_two_seconds(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "day.mp4", pictures=110)
    names = [name for name, _ in read_bright(clip)]
    assert names == ["day.mp4 at 0 s", "day.mp4 at 2 s", "day.mp4 at 4 s"]


def test_a_picture_that_is_too_large_for_one_pass_is_put_together_from_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = np.tile(scene(0, 0)[:20], (1, 31, 1))
    doubled = wide.repeat(2, 0).repeat(2, 1)
    parts = [(0, 0, doubled[:, :4000]), (0, 4000, doubled[:24, 4000:]), (24, 4000, doubled[24:, 4000:])]
    monkeypatch.setattr(evaluate, "enhance_tiles", lambda *_: iter(parts))
    with DoublingEngine() as engine:
        assert wide.shape[1] > engine.info.largest[0]
        assert np.array_equal(evaluate.enhance_whole(engine, wide), doubled)
