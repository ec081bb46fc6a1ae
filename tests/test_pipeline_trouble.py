from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from stream import pipeline
from stream.errors import SourceLost
from stream.frame import Frame
from stream.publish import Publisher
from stream.relay import Relay
from stream.settings import FeedSettings, Settings
from stream.sources import backoff
from stream.sources.segment import Segment
from stream.subscribe import Subscriber
from stream.wire.messages import Header, Kind, decode_feeds, decode_status
from tests.clips import UdpSender, free_port, make_clip
from tests.doubling import DoublingEngine
from tests.relaying import as_filmed, camera, decoded, holds, pictures, port_of, recording, settings, watched
from tests.waiting import DEADLINE, wait_until

MISTAKE = "a mistake in the program"


def test_a_feed_that_cannot_be_opened_leaves_the_others_alone(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=20)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 100)
    away = recording(tmp_path / "nowhere.mp4")
    wanted = settings(good=recording(clip), broken=recording(broken).model_copy(update={"mode": "live"}), away=away)
    with DoublingEngine() as engine, Publisher(wanted.relay, "run") as publisher:
        with (
            watched(publisher, "broken") as messages,
            Subscriber(publisher.endpoint, "*", ("feeds",), max_age=3600) as lists,
            Relay(wanted, engine, publisher) as relay,
        ):
            assert publisher.wait_for_viewer("*", DEADLINE)
            assert relay.wait(DEADLINE)
            relay.publish_status()
            listed = lists.receive(DEADLINE)
        assert relay.feeds["good"].meter.figures().published == 20
        assert {name: feed.state for name, feed in relay.feeds.items()} == {
            "good": "ended",
            "broken": "failed",
            "away": "failed",
        }
    status = decode_status(messages[-1].payload)
    assert listed is not None
    assert decode_feeds(listed.payload)["broken"] == status
    assert decode_feeds(listed.payload).keys() == {"good", "broken", "away"}
    assert status.state == "failed"
    assert "broken.mp4" in (status.reason or "")


def test_a_damaged_feed_still_adds_up(tmp_path: Path) -> None:
    port = free_port()
    wanted = settings(cam=FeedSettings(url=f"udp://127.0.0.1:{port}"))
    clip = make_clip(tmp_path / "clip.ts", pictures=75, bit_rate=1_000_000)
    with DoublingEngine() as engine, Publisher(wanted.relay, "run") as publisher:
        with (
            watched(publisher, "cam") as messages,
            Relay(wanted, engine, publisher) as relay,
            UdpSender(clip, port, bit_rate=as_filmed(clip, 75), lost=range(20, 30)) as sender,
        ):
            assert sender.wait(DEADLINE)
            wait_until(lambda: relay.feeds["cam"].meter.figures().published > 40, "pictures")
        figures = relay.feeds["cam"].meter.figures()
    assert holds(figures)
    assert figures.under_way == 0
    assert {message.header.state for message in pictures(messages)} >= {"clean"}
    assert len({message.header.state for message in pictures(messages)}) > 1


class UnluckyPublisher(Publisher):
    """Fails on one kind of message of the feed `unlucky`."""

    def __init__(self, wanted: Settings, kind: Kind, failures: int = 1_000_000) -> None:
        super().__init__(wanted.relay, "run")
        self._kind, self._left = kind, failures

    def publish(self, feed: str, kind: Kind, header: Header, payload: bytes) -> int:
        if (feed, kind) == ("unlucky", self._kind) and self._left:
            self._left -= 1
            raise ZeroDivisionError(MISTAKE)
        return super().publish(feed, kind, header, payload)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "SHORTEST", 0.02)
    monkeypatch.setattr(backoff, "LONGEST", 0.02)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "SHORTEST", 60.0)
    monkeypatch.setattr(backoff, "LONGEST", 60.0)


def test_a_mistake_on_one_feeds_way_in_ends_that_feed_alone_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=20)
    wanted = settings(good=recording(clip), unlucky=recording(clip))
    with DoublingEngine() as engine, UnluckyPublisher(wanted, "source") as publisher:
        with Relay(wanted, engine, publisher) as relay:
            assert relay.wait(DEADLINE)
        assert relay.failure is None
    good, unlucky = relay.feeds["good"], relay.feeds["unlucky"]
    assert (good.state, good.meter.figures().published) == ("ended", 20)
    assert (unlucky.state, unlucky.reason) == ("failed", "unexpected ZeroDivisionError")
    assert unlucky.meter.figures().under_way == 0
    (told,) = (record.getMessage() for record in caplog.records if record.levelname == "ERROR")
    assert "publish_untouched" in told
    assert MISTAKE not in told


@pytest.mark.usefixtures("quick")
def test_a_mistake_on_a_live_feeds_way_in_opens_it_again(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=5)
    wanted = settings(unlucky=FeedSettings(url=str(clip)))
    publisher = UnluckyPublisher(wanted, "source", failures=3)
    with DoublingEngine() as engine, publisher, Relay(wanted, engine, publisher) as relay:
        assert relay.wait(DEADLINE)
    assert (relay.feeds["unlucky"].state, relay.feeds["unlucky"].reason) == ("ended", None)
    assert relay.feeds["unlucky"].meter.figures().published == 3 + 5  # enhanced although they could not be sent on


def test_how_long_a_source_lived_decides_how_soon_it_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lived: list[float] = []
    monkeypatch.setattr(backoff.Backoff, "pause", lambda _, seconds: lived.append(seconds) or 0.0)
    wanted = settings(unlucky=FeedSettings(url=str(make_clip(tmp_path / "clip.mp4", pictures=5))))
    publisher = UnluckyPublisher(wanted, "source", failures=2)
    with DoublingEngine() as engine, publisher, Relay(wanted, engine, publisher) as relay:
        assert relay.wait(DEADLINE)
    assert len(lived) == 2
    assert min(lived) > 0


@pytest.mark.usefixtures("patient")
def test_a_lost_source_is_left_alone_for_a_while_in_which_it_can_be_stopped() -> None:
    tries = []

    def lose(feed: FeedSettings, stop: threading.Event) -> Iterator[Segment]:
        tries.append(feed)
        raise SourceLost("it is gone")
        yield

    wanted = settings()
    with (
        DoublingEngine() as engine,
        Publisher(wanted.relay, "run") as publisher,
        Relay(wanted, engine, publisher) as relay,
    ):
        cam = relay.add("cam", camera().feeds["cam"], lose)
        wait_until(lambda: cam.reason, "the loss")
    assert (len(tries), cam.state) == (1, "ended")


@pytest.mark.usefixtures("patient")
def test_a_camera_whose_pictures_are_too_large_is_tried_again(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=5, size=(640, 480))

    def film(feed: FeedSettings, stop: threading.Event) -> Iterator[Segment]:
        with av.open(str(clip)) as container:
            yield Segment("cam", container, stop, recorded=False)

    wanted = settings()
    with (
        DoublingEngine() as engine,
        Publisher(wanted.relay, "run") as publisher,
        Relay(wanted, engine, publisher) as relay,
    ):
        cam = relay.add("cam", camera(memory=10_000_000).feeds["cam"], film)
        wait_until(lambda: cam.reason or cam.state == "ended", "the refusal")
        assert "640x480" in str(cam.reason)
        assert (cam.state, cam.figures().reconnects) == ("connecting", {"codec": 1})


def test_a_mistake_on_one_feeds_way_out_costs_that_feed_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=20)
    wanted = settings(good=recording(clip), unlucky=recording(clip))
    with DoublingEngine() as engine, UnluckyPublisher(wanted, "video") as publisher:
        with Relay(wanted, engine, publisher) as relay:
            assert relay.wait(DEADLINE)
        assert relay.failure is None
    assert relay.feeds["good"].meter.figures().published == 20
    assert relay.feeds["unlucky"].meter.figures().lost == {"encoder": 20}
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1


def test_a_mistake_in_the_stage_that_all_share_ends_the_relay_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enhance(*arguments: object) -> None:
        raise ZeroDivisionError(MISTAKE)

    monkeypatch.setattr(pipeline, "enhance", enhance)
    clip = make_clip(tmp_path / "clip.mp4", pictures=20)
    wanted = settings(one=recording(clip), two=recording(clip), cam=camera().feeds["cam"])
    with DoublingEngine() as engine, Publisher(wanted.relay, "run") as publisher:
        with Relay(wanted, engine, publisher) as relay:
            assert relay.wait(DEADLINE)
        assert isinstance(relay.failure, ZeroDivisionError)
    for feed in relay.feeds.values():
        assert feed.meter.figures().under_way == 0


def test_a_picture_that_cannot_be_read_costs_its_own_feed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    planes = Frame.planes

    def unlucky(frame: Frame) -> tuple[np.ndarray, ...]:
        if frame.width == 320:
            raise ZeroDivisionError(MISTAKE)
        return planes(frame)

    monkeypatch.setattr(Frame, "planes", unlucky)
    odd = recording(make_clip(tmp_path / "odd.mp4", pictures=20, size=(320, 240)))
    wanted = settings(odd=odd, good=recording(make_clip(tmp_path / "clip.mp4", pictures=20)))
    with DoublingEngine() as engine, Publisher(wanted.relay, "run") as publisher:
        with Relay(wanted, engine, publisher) as relay:
            assert relay.wait(DEADLINE)
        assert relay.failure is None
    assert relay.feeds["odd"].meter.figures().lost == {"undecodable": 20}
    assert relay.feeds["good"].meter.figures().published == 20
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1


@pytest.mark.usefixtures("quick")
def test_a_lost_camera_is_found_again_told_once_and_still_adds_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    wanted = camera(read_timeout=1.0, open_timeout=2.0)
    clip = make_clip(tmp_path / "clip.ts", pictures=500)
    with DoublingEngine() as engine, Publisher(wanted.relay, "run") as publisher:
        with watched(publisher, "cam") as messages, Relay(wanted, engine, publisher) as relay:
            feed, threads = relay.feeds["cam"], threading.active_count()
            for turn in range(1, 4):
                with UdpSender(clip, port_of(wanted), bit_rate=as_filmed(clip, 500)):
                    wait_until(lambda turn=turn: feed.meter.figures().published >= 20 * turn, "pictures")
                wait_until(lambda: feed.state == "connecting", "the loss")
                assert feed.reason
                wait_until(lambda: threading.active_count() <= threads, "the end of what read it")
        assert feed.meter.figures().under_way == 0
        assert holds(feed.meter.figures())
    told = Counter(record.getMessage() for record in caplog.records if "cam" in record.getMessage())
    assert told["feed cam: live"] == 3
    assert max(told.values()) == 3
    assert [message.header.seq for message in pictures(messages)] == list(range(len(pictures(messages))))
    assert len(decoded(messages)) == len(pictures(messages))
