"""What `nightbridge train` shows: parts of the loss, held-out score, step time; and its TensorBoard log."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from unittest import mock

import pytest
from rich.console import Console

from tools import train_progress
from tools.train_progress import TrainProgress, open_log


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """The time in seconds, as its return value."""
    ticking = mock.Mock(return_value=100.0)
    monkeypatch.setattr(train_progress.time, "monotonic", ticking)
    return ticking


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def shown(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_line_tells_loss_parts_score_and_speed(clock: mock.Mock) -> None:
    told = console()
    with TrainProgress(told, batch=4) as progress:
        progress.report(1, 0.1, {"huber": 0.5})
        progress.report_score(1, 20.5)
        progress.report(2, 0.2, {"huber": 0.5})
        clock.return_value += 62
        progress.report(33, 0.5, {"huber": 0.25, "colour": 0.125})
    assert "step 1: raw PSNR 20.500 dB on held-out scenes" in shown(told)
    assert "50 %, step 33: huber 0.2500 colour 0.1250; 2000.0 ms, 2.0 pictures/s, 20.50 dB held out" in shown(told)
    assert (progress.step_ms, progress.pictures_per_second) == (2000, 2)


def test_the_time_of_scoring_is_none_of_a_step_s(clock: mock.Mock) -> None:
    progress = TrainProgress(console(), batch=1)
    progress.report(1, 0.1, {})
    clock.return_value += 1
    progress.report(11, 0.2, {})
    clock.return_value += 500
    progress.report_score(11, 20.0)
    progress.report(12, 0.3, {})
    assert progress.step_ms == 100


def test_every_figure_goes_into_the_log() -> None:
    points: list[tuple[str, float, int]] = []
    progress = TrainProgress(console(), batch=1, log=lambda *point: points.append(point))
    for step in range(1, 101):
        progress.report(step, step / 100, {"huber": 0.5})
    progress.report_score(100, 21.0)
    assert ("loss/huber", 0.5, 50) in points
    assert ("held_out_psnr_db", 21.0, 100) in points
    assert {name for name, _, _ in points} == {"loss/huber", "step_ms", "pictures_per_second", "held_out_psnr_db"}


def test_without_tensorboard_that_is_said_and_nothing_is_logged(tmp_path: Path) -> None:
    told = console()
    with mock.patch.dict(sys.modules, {"torch.utils.tensorboard": None}):
        assert open_log(tmp_path / "log", told) is None
    assert "`tensorboard` is not installed" in shown(told)
    assert not (tmp_path / "log").exists()


def test_a_tensorboard_log_is_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    opened = open_log(tmp_path, console())
    assert opened is not None
    log, close = opened
    log("loss/huber", 0.5, 50)
    close()
    (file,) = tmp_path.glob("events.*")
    assert b"loss/huber" in file.read_bytes()
