from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import groupby, pairwise
from pathlib import Path

import av
from av.packet import Packet
from av.stream import Stream

from stream.metrics import FeedFigures
from stream.publish import Publisher
from stream.relay import Relay
from stream.settings import FeedSettings
from stream.sources.segment import Segment
from stream.wire.messages import Message
from tests.cameras import LiveCamera
from tests.clips import UdpSender, free_port, make_clip
from tests.doubling import DoublingEngine
from tests.relaying import camera, holds, pictures, port_of, recording, settings, watched
from tests.waiting import DEADLINE, wait_until


def test_a_live_feed_that_is_too_fast_for_the_engine_drops_and_counts(tmp_path: Path) -> None:
    pace = threading.Semaphore(0)
    wanted = settings(cam=FeedSettings(url=f"udp://127.0.0.1:{free_port()}"))
    port = int(wanted.feeds["cam"].url.rpartition(":")[2])
    clip = make_clip(tmp_path / "clip.ts", pictures=50)
    with DoublingEngine(pace) as engine, Publisher(wanted.relay, "run") as publisher:
        with Relay(wanted, engine, publisher) as relay, UdpSender(clip, port) as sender:
            meter = relay.feeds["cam"].meter
            assert sender.wait(DEADLINE)
            wait_until(lambda: meter.figures().dropped.get("overload", 0) >= 30, "drops")
            pace.release(1000)
            wait_until(lambda: meter.figures().published >= 3, "pictures")
        figures = meter.figures()
    assert figures.dropped["overload"] >= 30
    assert figures.under_way == 0
    assert holds(figures)


def test_feeds_that_want_more_than_the_engine_can_wait_in_front_of_it(tmp_path: Path) -> None:
    tape = FeedSettings(url=str(make_clip(tmp_path / "clip.mp4", pictures=200)), mode="live")
    wanted = settings(**{f"cam{number}": tape for number in range(6)})
    pace = threading.Semaphore(0)
    engine = DoublingEngine(pace)
    engine.info = replace(engine.info, batch=1, depth=3)
    with engine, Publisher(wanted.relay, "run") as publisher, Relay(wanted, engine, publisher) as relay:
        feeds = relay.feeds.values()
        wait_until(lambda: all(feed.meter.figures().dropped.get("overload", 0) for feed in feeds), "full lanes")
        assert engine.batches == [1, 1, 1]
        pace.release()
        wait_until(lambda: len(engine.batches) >= 4, "one more for the one that came out, two if its encoder is busy")
        assert len(engine.batches) <= 5
        pace.release(10_000)


def test_a_live_feed_of_few_pictures_is_not_late_by_those_that_must_come_before_one_can_be_had(tmp_path: Path) -> None:
    """Over MPEG-TS two, and others that are shown later: longer than its age budget."""
    wanted = camera(age_budget=0.4)
    clip = make_clip(tmp_path / "clip.ts", pictures=100, rate=5, b_frames=2, key_interval=10)
    with DoublingEngine() as engine, Publisher(wanted.relay, "run") as publisher:
        with (
            watched(publisher, "cam") as messages,
            Relay(wanted, engine, publisher) as relay,
            LiveCamera(clip, port_of(wanted)),
        ):
            wait_until(lambda: longest_run(messages, Fraction(1, 5)) >= 12, "12 pictures in a row, none of them late")
        age = relay.feeds["cam"].meter.figures().age_ms(50)
    assert age is not None
    assert age > 400


def longest_run(messages: list[Message], interval: Fraction) -> int:
    """How many pictures came in a row, each `interval` seconds after the one before it."""
    times = [(message.header.pts or 0) * (message.header.time_base or 0) for message in pictures(messages)]
    runs = groupby(after - before for before, after in pairwise(times))
    return max((len([*run]) + 1 for between, run in runs if between == interval), default=0)


def test_feeds_of_one_size_share_batches(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=40)
    wanted = settings(**{f"cam{number}": recording(clip) for number in range(4)})
    with DoublingEngine() as engine, Publisher(wanted.relay, "run") as publisher:
        with Relay(wanted, engine, publisher) as relay:
            assert relay.wait(DEADLINE)
        assert [feed.meter.figures().published for feed in relay.feeds.values()] == [40] * 4
    assert max(engine.batches) > 1
    assert sum(engine.batches) == 160


def relayed_camera(kind: type[Segment], clip: Path) -> tuple[FeedFigures, list[Message]]:
    """What became of a clip that comes as a camera's segment of this kind, and what a viewer received of it."""

    def film(feed: FeedSettings, stop: threading.Event) -> Iterator[Segment]:
        with av.open(str(clip)) as container:
            yield kind("cam", container, stop, recorded=False)

    wanted = settings()
    with (
        DoublingEngine() as engine,
        Publisher(wanted.relay, "run") as publisher,
        watched(publisher, "cam") as messages,
        Relay(wanted, engine, publisher) as relay,
    ):
        cam = relay.add("cam", camera(mode="replay").feeds["cam"], film)
        assert relay.wait(DEADLINE)
    return cam.figures(), messages


class Filming(Segment):
    """Has read all its packets long ago."""

    def demuxed(self) -> Iterator[tuple[Packet[Stream], int]]:
        return ((packet, 7) for packet, _ in super().demuxed())


def test_a_camera_sets_its_own_pace(tmp_path: Path) -> None:
    _, messages = relayed_camera(Filming, make_clip(tmp_path / "clip.ts", pictures=10))
    assert [message.header.received_ns for message in messages if message.kind == "source"] == [7] * 10


class Hurried(Segment):
    """Has dropped seven access units."""

    behind = 7


def test_access_units_that_nobody_could_take_in_time_are_counted(tmp_path: Path) -> None:
    figures, _ = relayed_camera(Hurried, make_clip(tmp_path / "clip.ts", pictures=10))
    assert (figures.received, figures.published, figures.dropped) == (17, 10, {"behind": 7})
