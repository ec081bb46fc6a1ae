"""Cameras are added, removed and changed while the relay runs, and the others do not notice."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from engines.door import Slot
from stream.publish import Publisher
from stream.relay import Relay
from stream.settings import EngineSettings, FeedSettings, RelaySettings, Settings
from stream.wire.messages import decode_status
from tests.clips import UdpSender, free_port, make_clip, read_number
from tests.doubling import DoublingEngine
from tests.relaying import decoded, holds, luma, pictures, watched
from tests.waiting import wait_until

RELAY = RelaySettings(endpoint="tcp://127.0.0.1:*", high_water_mark=10_000)


def settings(**feeds: FeedSettings) -> Settings:
    return Settings(relay=RELAY, feeds=feeds)


def udp(port: int, **changes: object) -> FeedSettings:
    return FeedSettings(url=f"udp://127.0.0.1:{port}", **changes)  # type: ignore[arg-type]


def published(relay: Relay, name: str) -> int:
    return relay.feeds[name].figures().published


def test_feeds_come_and_go_and_an_untouched_one_loses_no_frame(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=200, key_interval=200)
    other = make_clip(tmp_path / "other.ts", pictures=50)
    kept, coming = free_port(), free_port()
    still = udp(kept, mode="replay", read_timeout=30.0)  # drops nothing, however busy the machine is
    before = settings(kept=still)
    threads = threading.active_count()
    with DoublingEngine() as engine, Publisher(RELAY, "run") as publisher, watched(publisher, "kept") as messages:
        with (
            Relay(before, engine, publisher) as relay,
            UdpSender(clip, kept, bit_rate=500_000) as camera,
            UdpSender(other, coming, repeat=True),
        ):
            feed = relay.feeds["kept"]
            wait_until(lambda: published(relay, "kept") > 5, "pictures")
            for turn in range(4):
                changes = relay.apply(settings(kept=still, coming=udp(coming, age_budget=1.0 + turn)))
                assert (changes.added, changes.changed) == ((["coming"], []) if turn == 0 else ([], ["coming"]))
                wait_until(lambda: published(relay, "coming") > 2, "pictures of the new feed")
            left = relay.feeds["coming"]
            assert relay.apply(before).removed == ["coming"]
            assert (left.state, left.figures().under_way) == ("ended", 0)
            assert relay.feeds == {"kept": feed}
            assert not camera.wait(0)
            assert camera.wait(30)
            wait_until(lambda: published(relay, "kept") >= 198, "the last pictures")
        figures = feed.figures()
        assert holds(figures)
        assert (figures.dropped, figures.lost, figures.reconnects) == ({}, {}, {})
    numbers = [read_number(luma(frame)) for frame in decoded(messages)]
    assert numbers == list(range(len(numbers)))
    assert [message.header.seq for message in pictures(messages)] == list(range(len(numbers)))
    assert threading.active_count() <= threads


def test_a_feed_that_was_changed_goes_on_in_the_numbers_of_its_topic(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=10)
    tape = FeedSettings(url=str(clip), mode="replay")
    with DoublingEngine() as engine, Publisher(RELAY, "run") as publisher:
        with watched(publisher, "tape") as messages, Relay(settings(tape=tape), engine, publisher) as relay:
            assert relay.wait(30)
            assert relay.apply(settings(tape=tape.model_copy(update={"age_budget": 9.0}))).changed == ["tape"]
            assert relay.wait(30)
        headers = [message.header for message in pictures(messages)]
    assert [decode_status(message.payload).state for message in messages if message.kind == "status"] == ["ended"]
    assert [header.seq for header in headers] == list(range(20))
    assert headers[10].key


def test_feeds_that_have_failed_are_opened_again_where_that_is_asked_for_and_no_other_is(tmp_path: Path) -> None:
    missing = tmp_path / "missing.mp4"
    tape = FeedSettings(url=str(missing), mode="replay")
    wanted = settings(cam=udp(free_port()), tape=tape)
    with DoublingEngine() as engine, Publisher(RELAY, "run") as wire, Relay(wanted, engine, wire) as relay:
        cam, failed = relay.feeds["cam"], relay.feeds["tape"]
        wait_until(lambda: failed.state == "failed", "the failure")
        make_clip(missing, pictures=10)
        assert str(relay.apply(wanted)) == "no feed changed"
        assert relay.feeds["tape"] is failed
        assert str(relay.apply(wanted, reopen_failed=True)) == "opened again tape"
        assert relay.feeds["cam"] is cam
        wait_until(lambda: relay.feeds["tape"].state == "ended", "the end of the recording")
        assert published(relay, "tape") == 10
        changed = settings(cam=cam.settings, tape=tape.model_copy(update={"url": str(tmp_path / "other.mp4")}))
        relay.apply(changed)
        wait_until(lambda: relay.feeds["tape"].state == "failed", "the failure of another")
        changes = relay.apply(wanted, reopen_failed=True)
        assert (changes.changed, changes.reopened) == (["tape"], []), "once is enough"


def test_what_only_a_new_start_can_change_is_named_and_left_alone(tmp_path: Path) -> None:
    with DoublingEngine() as engine, Publisher(RELAY, "run") as wire, Relay(settings(), engine, wire) as relay:
        changed = RELAY.model_copy(update={"high_water_mark": 7})
        after = Settings(relay=changed, engine=EngineSettings(batch=3), feeds={"cam": udp(free_port())})
        for _ in range(2):
            assert relay.apply(after).need_restart == ["[relay]", "[engine]"]
        assert list(relay.feeds) == ["cam"]
        assert relay.need_restart == ["[relay]", "[engine]"]
        relay.apply(settings())
        assert relay.need_restart == []


class Allowing(DoublingEngine):
    """Notes what it is to hold: pictures at once, and sizes."""

    def __init__(self, pace: threading.Semaphore) -> None:
        super().__init__(pace)
        self.allowed: list[tuple[int, int]] = []

    def set_limits(self, slots: int, sizes: int) -> None:
        self.allowed.append((slots, sizes))
        super().set_limits(slots, sizes)


def test_a_feed_that_hangs_at_its_end_is_given_up_and_the_others_go_on(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=30)
    tape = FeedSettings(url=str(clip), mode="replay")
    pace = threading.Semaphore(0)
    relay_settings = RELAY.model_copy(update={"stop_timeout": 0.2})
    wanted = Settings(relay=relay_settings, feeds={"one": tape})
    with Allowing(pace) as engine, Publisher(RELAY, "run") as publisher:
        with Relay(wanted, engine, publisher) as relay:
            one = relay.feeds["one"]
            wait_until(lambda: one.figures().in_engine == 2, "pictures in the engine")
            relay.remove("one")
            assert relay.feeds == {}
            relay.add("two", tape)
            assert engine.allowed[-1] == (4, 3), "the one that hangs still has pictures in it"
            pace.release(1000)
            assert relay.wait(30)
            wait_until(lambda: one.figures().under_way == 0, "the end of what hung")
            assert relay.feeds["two"].figures().published == 30
            assert relay.failure is None
        assert holds(one.figures())


def test_a_feed_that_hung_loses_its_place_in_the_engine_as_soon_as_it_has_ended(tmp_path: Path) -> None:
    tape = FeedSettings(url=str(make_clip(tmp_path / "clip.mp4", pictures=30)), mode="replay")
    pace = threading.Semaphore(0)
    feeds = {"one": tape, "dead": udp(free_port())}
    wanted = Settings(relay=RELAY.model_copy(update={"stop_timeout": 0.2}), feeds=feeds)
    with (
        Allowing(pace) as engine,
        Publisher(RELAY, "run") as publisher,
        Relay(wanted, engine, publisher) as relay,
    ):
        one = relay.feeds["one"]
        wait_until(lambda: one.figures().in_engine == 2, "pictures in the engine")
        relay.remove("one")
        relay.publish_status()
        assert engine.allowed[-1] == (4, 3), "it still has pictures in the engine"
        pace.release(1000)
        wait_until(lambda: one.state == "ended", "the end of what hung")

        def left() -> tuple[int, int]:
            relay.publish_status()
            return engine.allowed[-1]

        wait_until(lambda: left() == (2, 2), "the end of its place")
        count = len(engine.allowed)
        relay.publish_status()
        assert len(engine.allowed) == count, "where nothing has changed nothing is told"


class Busy(DoublingEngine):
    """Takes its time to begin a batch, until it is told to go on; knows the sizes that it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.sizes: set[tuple[int, int]] = set()

    def _make(self, width: int, height: int) -> Slot:
        self.sizes.add((width, height))
        return super()._make(width, height)

    def _start(self, slots: Sequence[Slot]) -> None:
        assert self.go_on.wait(30)
        super()._start(slots)


def test_feeds_that_are_removed_while_the_engine_is_busy_leave_it_whole(tmp_path: Path) -> None:
    tape = FeedSettings(url=str(make_clip(tmp_path / "clip.mp4", pictures=30)), mode="replay")
    wanted = Settings(relay=RELAY.model_copy(update={"stop_timeout": 0.1}), feeds={"first": tape})
    with Busy() as engine, Publisher(RELAY, "run") as publisher, Relay(wanted, engine, publisher) as relay:
        first = relay.feeds["first"]
        wait_until(lambda: first.figures().in_engine, "a picture in the engine")
        relay.remove("first")
        relay.add("second", tape)
        relay.remove("second")
        engine.go_on.set()
        wait_until(lambda: first.figures().under_way == 0, "the end of what hung")
        third = relay.add("third", tape)
        wait_until(lambda: third.state == "ended", "the end of the recording")
        assert third.figures().published == 30


@pytest.mark.parametrize(("asked", "possible"), [(2, 8), (8, 2)])
def test_batches_are_as_large_as_the_settings_and_the_engine_allow(asked: int, possible: int, tmp_path: Path) -> None:
    tape = FeedSettings(url=str(make_clip(tmp_path / "clip.mp4", pictures=10)), mode="replay")
    wanted = Settings(relay=RELAY, engine=EngineSettings(batch=asked), feeds=dict.fromkeys("abcd", tape))
    engine = Busy()
    engine.info = replace(engine.info, largest_batch=possible)
    with engine, Publisher(RELAY, "run") as publisher, Relay(wanted, engine, publisher) as relay:
        wait_until(lambda: all(feed.figures().waiting == 2 for feed in relay.feeds.values()), "full lanes")
        engine.go_on.set()
        assert relay.wait(30)
    assert max(engine.batches) == 2
    assert sum(engine.batches) == 40


def test_a_picture_that_is_too_large_for_its_feed_takes_no_memory_of_the_engine(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=5, size=(640, 480))
    with Busy() as engine, Publisher(RELAY, "run") as publisher:
        engine.go_on.set()
        wanted = settings(tape=FeedSettings(url=str(clip), mode="replay", memory=10_000_000))
        with Relay(wanted, engine, publisher) as relay:
            assert relay.wait(30)
            assert relay.feeds["tape"].state == "failed"
            assert "640x480" in str(relay.feeds["tape"].reason)
    assert engine.sizes == set()


@pytest.mark.parametrize("mode", ["live", "replay"])
def test_a_recording_that_is_too_large_is_told_and_the_next_one_of_its_folder_follows(
    mode: Literal["live", "replay"], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mission = tmp_path / "mission"
    mission.mkdir()
    for name, size in (("1.ts", (160, 120)), ("2.ts", (640, 480)), ("3.ts", (160, 120))):
        make_clip(mission / name, pictures=10, size=size)
    tape = FeedSettings(url=str(mission), mode=mode, memory=10_000_000, age_budget=60.0)
    with (
        DoublingEngine() as engine,
        Publisher(RELAY, "run") as publisher,
        Relay(settings(tape=tape), engine, publisher) as relay,
    ):
        assert relay.wait(30)
        figures = relay.feeds["tape"].figures()
        assert (relay.feeds["tape"].state, figures.reconnects) == ("ended", {})
        assert figures.published + sum(figures.dropped.values()) == 20
    [told] = [record.getMessage() for record in caplog.records if "640x480" in record.getMessage()]
    assert "2.ts: " in told
