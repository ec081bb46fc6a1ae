from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from engines.data.clips import clip_rate, read_clip
from engines.errors import EngineMismatch
from engines.evaluation.clips import score_clip, summary
from tests.doubling import DoublingEngine
from tests.test_flow import scene

DARK = 0.02 ** (1 / 2.2)
"""Code values by night over code values by day, without the noise."""


def make_clip(path: Path, pictures: list[np.ndarray], rate: int = 20) -> Path:
    with av.open(path, "w") as out:
        stream = out.add_stream("libx264", rate=rate, options={"crf": "5"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return path


def against(value: float, truth: float) -> float:
    """PSNR of one grey against another, in dB."""
    return float(20 * np.log10(255 / abs(value - truth)))


def test_a_grey_clip_has_the_scores_that_a_pocket_calculator_gives(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "grey.mp4", [np.full((96, 128, 3), 200, np.uint8)] * 12)
    with DoublingEngine() as engine:
        score = score_clip(engine, clip)
    assert (score.name, score.frames) == ("grey.mp4", 12)
    night = 200 * DARK
    assert score.psnr_db == pytest.approx(against(night, 200), abs=0.1)
    assert score.gamma_psnr_db == pytest.approx(against(255 * (night / 255) ** 0.4, 200), abs=0.2)
    assert score.gain_db == score.psnr_db - score.gamma_psnr_db
    assert score.mean_ratio == pytest.approx(DARK, abs=0.01)
    assert score.gamma_psnr_gt_mean_db > 35
    assert summary([score, score])["gain_db"] == pytest.approx(score.gain_db)


def test_frames_are_limited_and_the_link_is_thin(tmp_path: Path) -> None:
    grain = np.random.default_rng(3).integers(0, 256, (30, 192, 256, 3), dtype=np.uint8)
    clip = make_clip(tmp_path / "grain.mp4", list(grain))
    with DoublingEngine() as engine:
        score = score_clip(engine, clip, bit_rate=60_000, frames=20)
    assert score.frames == 20
    assert score.bit_rate < 1.5 * 60_000


def test_the_same_seed_gives_the_same_scores(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "waves.mp4", [scene(0, number)[:100, :140] for number in range(6)])
    with DoublingEngine() as engine:
        assert score_clip(engine, clip, seed=3) == score_clip(engine, clip, seed=3) != score_clip(engine, clip, seed=4)


def test_halves_of_the_pictures_have_even_sides(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "odd.mp4", [scene(0, 0)[:98, :138]] * 2, rate=15)
    assert [picture.shape for picture in read_clip(clip)] == [(96, 136, 3)] * 2
    assert clip_rate(clip) == Fraction(15)


@pytest.mark.parametrize("side", [2, 16])
def test_a_clip_that_is_too_small_is_told_by_its_name(tmp_path: Path, side: int) -> None:
    clip = make_clip(tmp_path / "tiny.mp4", [np.full((side, side, 3), 200, np.uint8)] * 2)
    with DoublingEngine() as engine, pytest.raises(EngineMismatch, match=r"^tiny\.mp4: "):
        score_clip(engine, clip)


@pytest.mark.parametrize("read", [lambda path: list(read_clip(path)), clip_rate])
def test_a_file_that_is_no_video_is_told_by_name(tmp_path: Path, read: object) -> None:
    (tmp_path / "notes.mp4").write_bytes(b"no video")
    with pytest.raises(OSError, match=r"notes\.mp4: no video that can be decoded"):
        read(tmp_path / "notes.mp4")
