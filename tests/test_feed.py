from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import pytest

from engines.errors import EngineMismatch
from stream import feed as module
from stream.errors import SourceLost
from stream.feed import Feed
from stream.settings import FeedSettings


@pytest.fixture
def feed(caplog: pytest.LogCaptureFixture) -> Feed:
    caplog.set_level(logging.INFO)
    return Feed("pier", FeedSettings(url=str(Path("clip.ts"))))


def test_a_state_is_told_when_it_or_its_reason_changes(feed: Feed, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(100):
        feed.set_state("connecting", SourceLost("no packet for 5 s"))
    feed.set_state("connecting", SourceLost("address already in use"))
    for _ in range(100):
        feed.set_state("live")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "feed pier: connecting: no packet for 5 s"),
        ("WARNING", "feed pier: connecting: address already in use"),
        ("INFO", "feed pier: live"),
    ]
    assert (feed.state, feed.reason) == ("live", None)


@pytest.mark.parametrize(("mode", "live"), [("live", True), ("replay", False)])
def test_a_feed_stands_in_front_of_the_engine_as_its_settings_say(mode: Literal["live", "replay"], live: bool) -> None:
    lane = Feed("pier", FeedSettings(url="clip.ts", mode=mode, age_budget=0.25)).lane
    assert (lane.live, lane.age_budget_ns) == (live, 250_000_000)


def test_lost_pictures_are_told_once_in_a_while(
    feed: Feed, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(100):
        feed.note_trouble(EngineMismatch(f"picture {number} is too large"))
    assert [record.getMessage() for record in caplog.records] == [
        "feed pier: pictures are lost: picture 0 is too large"
    ]
    monkeypatch.setattr(module, "LOG_INTERVAL_SECONDS", 0)
    feed.note_trouble(EngineMismatch("picture 100 is too large"))
    assert len(caplog.records) == 2


def test_what_was_told_last_is_the_reason_until_a_picture_is_published(feed: Feed) -> None:
    feed.set_state("live")
    feed.note_trouble(EngineMismatch("picture 1 is too large"))
    feed.note_trouble(EngineMismatch("picture 2 is too large"))
    feed.figures()
    assert (feed.state, feed.reason) == ("live", "picture 2 is too large")
    feed.meter.publish(age_ms=40)
    feed.figures()
    assert feed.reason is None


def test_the_reason_of_a_feed_that_ended_in_trouble_stays_and_of_one_that_is_opened_again_it_does_not(
    feed: Feed,
) -> None:
    feed.set_state("live")
    feed.note_trouble(EngineMismatch("picture 1 is too large"))
    feed.set_state("ended")
    assert feed.reason == "picture 1 is too large"
    feed.set_state("live")
    assert feed.reason is None


@pytest.mark.parametrize(("read_timeout", "lately"), [(1.0, 10.0), (5.0, 10.0), (60.0, 120.0)])
def test_a_live_feed_gives_pictures_as_long_as_one_was_published_within_twice_the_longest_silence_of_its_source(
    read_timeout: float, lately: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    feed = Feed("pier", FeedSettings(url="clip.ts", read_timeout=read_timeout))
    feed.set_state("live")
    assert (feed.gives_pictures, feed.reason) == (False, None), "it has just begun"
    now += lately
    assert (feed.gives_pictures, feed.reason) == (False, f"no picture has been published for {lately:g} s")
    feed.meter.publish(age_ms=40)
    feed.figures()
    assert (feed.gives_pictures, feed.reason) == (True, None)
    now += lately - 1
    feed.figures()
    assert (feed.gives_pictures, feed.reason) == (True, None)
    now += 1
    assert (feed.gives_pictures, feed.reason) == (False, f"no picture has been published for {lately:g} s")
    feed.meter.publish(age_ms=40)
    feed.figures()
    feed.set_state("connecting", SourceLost("gone"))
    assert (feed.gives_pictures, feed.reason) == (False, "gone")


def test_an_engine_that_is_too_slow_is_told_once_and_so_is_its_recovery(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    feed = Feed("pier", FeedSettings(url="clip.ts"))
    for overload, late in [(75, 0), (70, 6), (500, 0), (75, 0), (0, 75)]:  # of 1500 pictures in a minute
        feed.meter.receive(1500)
        feed.meter.drop("overload", overload)
        feed.meter.drop("late", late)
        for _ in range(60):
            now += 1
            feed.watch_load(feed.figures())
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "feed pier: this machine cannot keep up: 76 of 1500 pictures were dropped within 60 s",
        ),
        ("INFO", "feed pier: this machine keeps up again: 75 of 1500 pictures were dropped within 60 s"),
    ]


@pytest.mark.parametrize(("dropped", "told"), [(10, 0), (11, 1)])
def test_a_few_pictures_that_are_dropped_as_where_a_slow_camera_is_opened_tell_nothing_of_the_machine(
    dropped: int, told: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    feed = Feed("pier", FeedSettings(url="clip.ts"))
    feed.meter.receive(30)  # one each two seconds
    feed.meter.drop("late", dropped)
    now += 60
    feed.watch_load(feed.figures())
    assert len(caplog.records) == told


def test_a_camera_that_goes_does_not_make_the_machine_fast_enough(
    feed: Feed, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = module.time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    for received, overload in [(1500, 500), (0, 0), (1500, 500), (1500, 0)]:  # in a minute
        feed.meter.receive(received)
        feed.meter.drop("overload", overload)
        now += 60
        feed.watch_load(feed.figures())
    assert caplog.messages == [
        "feed pier: this machine cannot keep up: 500 of 1500 pictures were dropped within 60 s",
        "feed pier: this machine keeps up again: 0 of 1500 pictures were dropped within 60 s",
    ]


def test_a_source_may_go_while_somebody_asks_how_long_it_has_been_there(
    feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed.set_state("live")

    def gone_meanwhile() -> float:
        feed.set_state("connecting", SourceLost("gone"))
        return 0.0

    monkeypatch.setattr(module.time, "monotonic", gone_meanwhile)
    feed.seconds_live()
    assert feed.state == "connecting"
    assert feed.seconds_live() == 0


def mistake() -> KeyError:
    """An error that was raised, with credentials in its words."""
    address = "rtsp://relay:secret@10.0.0.7"
    try:
        raise KeyError(address)
    except KeyError as error:
        return error


def test_an_unexpected_error_shows_where_it_happened_in_the_log_alone(
    feed: Feed, caplog: pytest.LogCaptureFixture
) -> None:
    feed.set_state("failed", mistake())
    assert feed.reason == "unexpected KeyError"
    feed.note_trouble(mistake())
    for record in caplog.records:
        first, *place = record.getMessage().splitlines()
        assert first.endswith("unexpected KeyError")
        assert "in mistake" in "".join(place)
    feed.set_state("failed", SourceLost("gone"))
    assert caplog.messages[2] == "feed pier: failed: gone"


def test_the_words_of_an_unexpected_error_are_told_nowhere_since_they_may_hold_a_password(
    feed: Feed, caplog: pytest.LogCaptureFixture
) -> None:
    feed.set_state("failed", mistake())
    feed.note_trouble(mistake())
    assert len(caplog.records) == 2
    assert "secret" not in caplog.text
    assert "secret" not in str(feed.reason)
