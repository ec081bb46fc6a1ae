from __future__ import annotations

import threading
from pathlib import Path

import pytest
from msgspec.structs import replace

from stream.enhance import Gather
from stream.feed import Feed
from stream.intake import Intake
from stream.sources.recording import open_recording
from tests.clips import make_clip
from tests.doubling import DoublingEngine
from tests.reading import feed

SECOND = 1_000_000_000


def told_of(clip: Path, skipped: int, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is logged of a feed with a picture a second, which is joined at an access unit of the clip."""
    caplog.clear()
    pier = Feed("pier", feed(clip))
    with open_recording(clip, threading.Event()) as segment, DoublingEngine() as engine:
        intake = Intake(pier, segment, engine, Gather())
        for number, packet in enumerate(segment.packets()):
            if number >= skipped:
                intake.decode(replace(packet, received_ns=number * SECOND))
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


def test_a_feed_without_key_frames_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=90, key_interval=1000)
    assert told_of(clip, 0, caplog) == []
    assert told_of(clip, 1, caplog) == [
        "feed pier: pictures are lost: no key frame that can be decoded has come for 60 s"
    ]
