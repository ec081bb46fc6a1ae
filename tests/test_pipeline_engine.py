from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from engines.door import Memory, Slot
from engines.errors import EngineError
from stream.publish import Publisher
from stream.relay import Relay
from tests.clips import make_clip, read_number
from tests.doubling import DoublingEngine
from tests.relaying import decoded, luma, pictures, recording, replayed, settings
from tests.waiting import DEADLINE, wait_until


def test_a_picture_that_the_engine_fails_on_is_lost_and_the_next_ones_come(tmp_path: Path) -> None:
    figures, messages = replayed(DoublingEngine(failures=3), recording(make_clip(tmp_path / "clip.mp4", pictures=20)))
    assert figures.lost == {"engine": 3}
    assert figures.published == 17
    assert [read_number(luma(frame)) for frame in decoded(messages)] == list(range(3, 20))


class Unready(DoublingEngine):
    """Cannot begin its first three batches."""

    tries = 0

    def _start(self, slots: Sequence[Slot]) -> None:
        self.tries += 1
        if self.tries <= 3:
            raise EngineError("not yet")
        super()._start(slots)


def test_a_batch_that_the_engine_cannot_begin_is_lost_and_the_next_ones_come(tmp_path: Path) -> None:
    figures, messages = replayed(Unready(), recording(make_clip(tmp_path / "clip.mp4", pictures=20)))
    assert (figures.lost, figures.published) == ({"engine": 3}, 17)
    assert [read_number(luma(frame)) for frame in decoded(messages)] == list(range(3, 20))


class Compiling(DoublingEngine):
    """Is made ready for pictures that are 320 wide when it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def _make(self, width: int, height: int) -> Slot:
        assert width != 320 or self.go_on.wait(DEADLINE)
        return super()._make(width, height)


def test_while_the_engine_is_made_ready_for_one_feed_the_others_go_on(tmp_path: Path) -> None:
    small = recording(make_clip(tmp_path / "small.mp4", pictures=100))
    large = recording(make_clip(tmp_path / "large.mp4", pictures=10, size=(320, 240)))
    wanted = settings(large=large, small=small)
    engine = Compiling()
    with engine, Publisher(wanted.relay, "run") as publisher, Relay(wanted, engine, publisher) as relay:
        wait_until(lambda: relay.feeds["small"].state == "ended", "the end of the small one")
        assert relay.feeds["large"].figures().published == 0
        engine.go_on.set()
        assert relay.wait(DEADLINE)
        assert [feed.figures().published for feed in relay.feeds.values()] == [10, 100]


def test_a_size_that_the_engine_does_not_take_is_counted_told_once_and_no_trouble_for_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    large = make_clip(tmp_path / "large.mp4", pictures=40, size=(320, 240))
    small = make_clip(tmp_path / "small.mp4", pictures=40)
    wanted = settings(large=recording(large), small=recording(small))
    engine = DoublingEngine()
    engine.info = replace(engine.info, largest=(200, 200))
    with engine, Publisher(wanted.relay, "run") as publisher, Relay(wanted, engine, publisher) as relay:
        assert relay.wait(DEADLINE)
    assert relay.feeds["large"].meter.figures().lost == {"engine": 40}
    assert relay.feeds["small"].meter.figures().published == 40
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "feed large: pictures are lost: a picture of 320x240; this engine takes 16x16 to 200x200"
    ]


class ReadyLater(DoublingEngine):
    """Has no memory for its first pictures for a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.tries = 0

    def _make(self, width: int, height: int) -> Slot:
        self.tries += 1
        if self.tries == 1:
            raise MemoryError("not now")
        return super()._make(width, height)


def test_a_size_that_the_engine_failed_on_is_tried_again_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.intake.RETRY_SECONDS", 0.0)
    engine = ReadyLater()
    figures, messages = replayed(engine, recording(make_clip(tmp_path / "clip.mp4", pictures=20)))
    assert (figures.published, figures.lost, len(pictures(messages))) == (20, {}, 20)
    monkeypatch.setattr("stream.intake.RETRY_SECONDS", 3600.0)
    figures, _ = replayed(ReadyLater(), recording(tmp_path / "clip.mp4"))
    assert (figures.published, figures.lost) == (0, {"engine": 20})


class Noting(DoublingEngine):
    """Notes which memory each picture was given, and the share of it that is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.lent: list[tuple[Memory | None, float]] = []

    def _start(self, slots: Sequence[Slot]) -> None:
        super()._start(slots)
        self.lent += [(slot.memory, slot.keep) for slot in slots]


def test_every_feed_has_a_memory_of_its_own_for_all_its_pictures(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=20)
    with Noting() as engine:
        wanted = settings(one=recording(clip), two=recording(clip))
        with Publisher(wanted.relay, "run") as publisher, Relay(wanted, engine, publisher) as relay:
            assert relay.wait(DEADLINE)
    by_memory = Counter(memory for memory, _ in engine.lent)
    assert None not in by_memory
    assert sorted(by_memory.values()) == [20, 20]
    assert sorted(round(keep, 3) for _, keep in engine.lent)[2:] == [0.905] * 38  # 25 pictures a second
