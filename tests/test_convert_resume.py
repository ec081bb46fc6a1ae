from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from engines.door import Slot
from engines.errors import EngineError
from stream.files import part_writer
from stream.files.convert import IN_FLIGHT, Conversion, convert, numbered_frames
from stream.sources.recording import open_recording
from tests.clips import make_clip, read_number, turned
from tests.converting import PHONE, shown_as, stopped_after
from tests.doubling import DoublingEngine
from tests.replaying import numbers

OPEN_GROUPS = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0"}


@pytest.mark.parametrize(
    ("name", "options"),
    {
        "open.ts": {"b_frames": 2, "options": OPEN_GROUPS},
        "open.mkv": {"b_frames": 2, "options": OPEN_GROUPS},
        "timeless.h264": {"b_frames": 2},
        "mpeg4.avi": {"codec": "mpeg4", "b_frames": 2},
        "hevc.mp4": {"codec": "libx265"},
        "interlaced.ts": {"interlaced": True},
        "pictures.mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_stopped_twice_it_becomes_the_same_video_as_at_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(part_writer, "PART_PICTURES", 20)
    source = make_clip(tmp_path / name, pictures=80, size=(96, 80), key_interval=10, **options)
    whole, resumed = tmp_path / "whole.mkv", tmp_path / "resumed.mkv"
    with DoublingEngine() as engine:
        convert(engine, source, whole, lambda _: None)
    before = [stopped_after(pictures, source, resumed).pictures for pictures in (27, 50)]
    with DoublingEngine() as engine:
        conversion = convert(engine, source, resumed, lambda _: None, keep_parts=True)
        assert len(engine.batches) == 80 - before[1]
    assert conversion == Conversion(pictures=80, lost=0, resumed=before[1], complete=True)
    assert 27 <= before[0] < 50 <= before[1] < 80
    shown = []
    for path in (whole, resumed):
        with av.open(path) as out:
            shown.append([(f.pts, read_number(f.to_ndarray()[:160].astype(np.uint8))) for f in out.decode(video=0)])
    assert shown[0] == shown[1]
    assert [number for _, number in shown[0]] == list(range(80))
    assert not (tmp_path / ".part-resumed.mkv").exists()


@pytest.mark.parametrize("picture", [11, 12, 59, 60])
def test_stopped_at_a_picture_that_is_decoded_after_a_key_frame_and_shown_before_it_all_others_come(
    picture: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = make_clip(tmp_path / "open.mkv", pictures=80, size=(96, 80), b_frames=2, options=OPEN_GROUPS)
    before = stopped_after(picture - IN_FLIGHT + 1, source, tmp_path / "out.mkv").pictures
    with open_recording(source, threading.Event()) as segment:
        unit = [frame.received_ns for frame in numbered_frames(segment, threading.Event())][before - 1]
        assert any(key < unit < key + 3 for key in segment.keys)
    with DoublingEngine() as engine:
        assert convert(engine, source, tmp_path / "out.mkv", lambda _: None).resumed == before
    assert numbers(tmp_path / "out.mkv") == list(range(80))
    assert not caplog.messages


def test_parts_of_another_recording_are_told_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(part_writer, "PART_PICTURES", 10)
    source = make_clip(tmp_path / "a.mp4", pictures=40, size=(96, 80))
    stopped_after(20, source, tmp_path / "out.mp4")
    make_clip(source, pictures=30, size=(96, 80))
    with DoublingEngine() as engine:
        assert convert(engine, source, tmp_path / "out.mp4", lambda _: None, keep_parts=True).pictures == 30
    assert "starting over" in caplog.text


def test_a_rotation_outlives_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_writer, "PART_PICTURES", 10)
    clip = make_clip(tmp_path / "clip.mp4", pictures=40, size=(96, 80))
    source = turned(clip, tmp_path / "phone.mp4", PHONE)
    assert stopped_after(20, source, tmp_path / "out.mp4").pictures
    with DoublingEngine() as engine:
        assert convert(engine, source, tmp_path / "out.mp4", lambda _: None, keep_parts=True).resumed
    assert shown_as(tmp_path / "out.mp4")[0] == shown_as(source)[0] == -90


def test_from_start_forgets_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_writer, "PART_PICTURES", 10)
    source = make_clip(tmp_path / "a.mp4", pictures=40, size=(96, 80))
    stopped_after(20, source, tmp_path / "out.mp4")
    with DoublingEngine() as engine:
        conversion = convert(engine, source, tmp_path / "out.mp4", lambda _: None, from_start=True)
        assert (len(engine.batches), conversion.resumed) == (40, 0)


def test_an_engine_that_fails_leaves_what_was_done_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_writer, "PART_PICTURES", 10)
    source = make_clip(tmp_path / "a.mp4", pictures=40, size=(96, 80))

    class Failing(DoublingEngine):
        def _finish(self, slot: Slot) -> None:
            if sum(self.batches) > 25:
                raise EngineError("a failure on purpose")
            super()._finish(slot)

    with Failing() as engine, pytest.raises(EngineError, match="on purpose"):
        convert(engine, source, tmp_path / "out.mp4", lambda _: None, keep_parts=True)
    with DoublingEngine() as engine:
        conversion = convert(engine, source, tmp_path / "out.mp4", lambda _: None, keep_parts=True)
    assert conversion == Conversion(pictures=40, lost=0, resumed=20, complete=True)
