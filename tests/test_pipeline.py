from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from engines.door import Engine
from stream.metrics import FeedFigures
from stream.pipeline import Relay
from stream.publish import Publisher
from stream.settings import EncoderSettings, FeedSettings, RelaySettings, Settings
from stream.subscribe import Subscriber
from stream.wire import Message, decode_status
from tests.clips import PATCHES, UdpSender, free_port, klv_packet, make_clip, read_number, read_patches
from tests.doubling import DoublingEngine
from tests.waiting import wait_until

DEADLINE = 30.0


def settings(**feeds: FeedSettings) -> Settings:
    return Settings(relay=RelaySettings(endpoint="tcp://127.0.0.1:*", high_water_mark=10_000), feeds=feeds)


def recording(path: Path, **changes: object) -> FeedSettings:
    return FeedSettings(url=str(path), mode="replay", **changes)  # type: ignore[arg-type]


@contextmanager
def watched(publisher: Publisher, feed: str) -> Iterator[list[Message]]:
    """Everything that a viewer receives of a feed while the block lasts, and a little longer."""
    messages: list[Message] = []
    kinds = ("video", "source", "data", "status")
    with Subscriber(publisher.endpoint, feed, kinds, max_age=3600) as viewer:  # type: ignore[arg-type]
        wait_until(lambda: publisher.take_join(feed), "the viewer's coming")
        reader = threading.Thread(target=lambda: messages.extend(viewer))
        reader.start()
        yield messages
        seen = -1
        while seen != len(messages):
            seen = len(messages)
            reader.join(0.3)
        viewer.close()
        reader.join()


def replayed(engine: Engine, feed: FeedSettings) -> tuple[FeedFigures, list[Message]]:
    """What became of a recording, and what a viewer received of it."""
    wanted = settings(tape=feed)
    with engine, Publisher(wanted.relay, "run") as publisher, watched(publisher, "tape") as messages:
        with Relay(wanted, engine, publisher) as relay:
            assert relay.wait(DEADLINE)
        assert relay.failure is None
    return relay.feeds["tape"].meter.figures(), messages


def pictures(messages: list[Message]) -> list[Message]:
    return [message for message in messages if message.kind == "video"]


def decoded(messages: list[Message], codec: str = "h264") -> list[av.VideoFrame]:
    context = av.CodecContext.create(codec, "r")
    frames: list[av.VideoFrame] = []
    for message in pictures(messages):
        frames += context.decode(av.Packet(message.payload))  # type: ignore[arg-type]
    return frames + context.decode(None)  # type: ignore[operator]


def luma(frame: av.VideoFrame) -> np.ndarray:
    return frame.to_ndarray()[: frame.height]


def holds(figures: FeedFigures) -> bool:
    return figures.received == figures.published + sum(figures.dropped.values()) + sum(figures.lost.values())


def test_a_replay_publishes_every_picture_in_order_doubled_and_with_its_colours(tmp_path: Path) -> None:
    figures, messages = replayed(DoublingEngine(), recording(make_clip(tmp_path / "clip.mp4", pictures=60)))
    assert (figures.received, figures.published, figures.under_way) == (60, 60, 0)
    frames = decoded(messages)
    assert [read_number(luma(frame)) for frame in frames] == list(range(60))
    assert {(frame.width, frame.height) for frame in frames} == {(320, 240)}
    plane = frames[30].to_ndarray()
    u, v = plane[240:300].reshape(120, 160), plane[300:].reshape(120, 160)
    assert np.abs(read_patches(plane[:240], u, v) - PATCHES).max() < 4


def test_the_header_says_what_is_known_of_a_picture(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=30, creation_time="2026-03-01T20:00:00Z")
    _, messages = replayed(DoublingEngine(), recording(clip))
    headers = [message.header for message in pictures(messages)]
    first, last = headers[0], headers[-1]
    assert first.key
    assert (first.codec, first.width, first.height, first.mode, first.state) == ("h264", 320, 240, "enhanced", "clean")
    assert first.model == "0" * 64
    assert first.capture_clock == "recording"
    assert last.capture_ns is not None
    assert first.capture_ns is not None
    assert last.capture_ns - first.capture_ns == pytest.approx(29 * 40e6, abs=1e6)
    assert last.pts is not None
    assert first.pts is not None
    assert first.time_base is not None
    assert (last.pts - first.pts) * first.time_base == Fraction(29, 25)
    assert [header.seq for header in headers] == list(range(30))


def test_an_enhanced_picture_names_the_access_unit_that_it_came_from(tmp_path: Path) -> None:
    _, messages = replayed(DoublingEngine(), recording(make_clip(tmp_path / "clip.mp4", pictures=20)))
    units = [message for message in messages if message.kind == "source"]
    assert len(units) == 20
    assert [hashlib.sha256(unit.payload).digest() for unit in units] == [
        message.header.source_sha256 for message in pictures(messages)
    ]
    assert (units[0].header.codec, units[0].header.width, units[0].header.key) == ("h264", 160, True)


def test_klv_travels_untouched(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=20, klv=True)
    _, messages = replayed(DoublingEngine(), recording(clip))
    data = [message for message in messages if message.kind == "data"]
    assert [message.payload for message in data] == [klv_packet(number) for number in range(20)]
    assert {message.header.codec for message in data} == {"klv"}


@pytest.mark.parametrize("codec", ["hevc", "av1"])
def test_other_encoders_are_flushed_at_the_end(tmp_path: Path, codec: str) -> None:
    feed = recording(make_clip(tmp_path / "clip.mp4", pictures=12), encoder=EncoderSettings(codec=codec))  # type: ignore[arg-type]
    figures, messages = replayed(DoublingEngine(), feed)
    assert figures.published == 12
    assert {message.header.codec for message in pictures(messages)} == {codec}
    frames = decoded(messages, "hevc" if codec == "hevc" else "libdav1d")
    assert [read_number(luma(frame)) for frame in frames] == list(range(12))


def test_a_folder_plays_file_after_file_and_a_new_size_begins_with_a_key_frame(tmp_path: Path) -> None:
    make_clip(tmp_path / "a.mp4", pictures=10)
    make_clip(tmp_path / "b.mp4", pictures=10, size=(176, 144))
    figures, messages = replayed(DoublingEngine(), recording(tmp_path))
    assert figures.published == 20
    headers = [message.header for message in pictures(messages)]
    assert [(header.width, header.height) for header in headers] == [(320, 240)] * 10 + [(352, 288)] * 10
    assert headers[10].key


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


def test_a_stop_publishes_what_is_decoded_and_leaves_no_thread(tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    wanted = settings(cam=FeedSettings(url=f"udp://127.0.0.1:{free_port()}"))
    port = int(wanted.feeds["cam"].url.rpartition(":")[2])
    clip = make_clip(tmp_path / "clip.ts", pictures=50)
    with DoublingEngine() as engine, Publisher(wanted.relay, "run") as publisher:
        with UdpSender(clip, port, repeat=True), Relay(wanted, engine, publisher) as relay:
            meter = relay.feeds["cam"].meter
            wait_until(lambda: meter.figures().published > 20, "pictures")
        figures = meter.figures()
        assert figures.under_way == 0
        assert holds(figures)
    assert {thread for thread in threading.enumerate() if thread.name.startswith("nightbridge")} <= threads


def test_a_feed_that_cannot_be_opened_leaves_the_others_alone(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=20)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 100)
    wanted = settings(good=recording(clip), broken=recording(broken), away=recording(tmp_path / "nowhere.mp4"))
    with DoublingEngine() as engine, Publisher(wanted.relay, "run") as publisher:
        with watched(publisher, "broken") as messages, Relay(wanted, engine, publisher) as relay:
            assert relay.wait(DEADLINE)
            relay.publish_status()
        assert relay.feeds["good"].meter.figures().published == 20
        assert {name: feed.state for name, feed in relay.feeds.items()} == {
            "good": "ended",
            "broken": "failed",
            "away": "failed",
        }
    status = decode_status(messages[-1].payload)
    assert status.state == "failed"
    assert "broken.mp4" in (status.reason or "")


def test_feeds_of_one_size_share_batches(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=40)
    wanted = settings(**{f"cam{number}": recording(clip) for number in range(4)})
    with DoublingEngine() as engine, Publisher(wanted.relay, "run") as publisher:
        with Relay(wanted, engine, publisher) as relay:
            assert relay.wait(DEADLINE)
        assert [feed.meter.figures().published for feed in relay.feeds.values()] == [40] * 4
    assert max(engine.batches) > 1
    assert sum(engine.batches) == 160


def test_a_picture_that_the_engine_fails_on_is_lost_and_the_next_ones_come(tmp_path: Path) -> None:
    figures, messages = replayed(DoublingEngine(failures=3), recording(make_clip(tmp_path / "clip.mp4", pictures=20)))
    assert figures.lost == {"engine": 3}
    assert figures.published == 17
    assert [read_number(luma(frame)) for frame in decoded(messages)] == list(range(3, 20))


def test_a_damaged_feed_still_adds_up(tmp_path: Path) -> None:
    port = free_port()
    wanted = settings(cam=FeedSettings(url=f"udp://127.0.0.1:{port}"))
    clip = make_clip(tmp_path / "clip.ts", pictures=75, bit_rate=1_000_000)
    with DoublingEngine() as engine, Publisher(wanted.relay, "run") as publisher:
        with (
            watched(publisher, "cam") as messages,
            Relay(wanted, engine, publisher) as relay,
            UdpSender(clip, port, lost=range(20, 30)) as sender,
        ):
            assert sender.wait(DEADLINE)
            wait_until(lambda: relay.feeds["cam"].meter.figures().published > 40, "pictures")
        figures = relay.feeds["cam"].meter.figures()
    assert holds(figures)
    assert figures.under_way == 0
    assert {message.header.state for message in pictures(messages)} >= {"clean"}
    assert len({message.header.state for message in pictures(messages)}) > 1
