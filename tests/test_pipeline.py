from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import groupby, pairwise
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest
from av.packet import Packet
from av.stream import Stream

from engines.door import Door, Memory, Slot
from engines.errors import EngineError
from stream import outlet, pipeline
from stream.errors import SourceLost
from stream.frame import Frame, SourcePacket
from stream.metrics import FeedFigures
from stream.publish import Publisher
from stream.relay import Relay
from stream.settings import EncoderSettings, FeedSettings, RelaySettings, Settings
from stream.sources import backoff
from stream.sources.recording import RecordedSegment
from stream.sources.segment import Segment
from stream.subscribe import Subscriber
from stream.view import PictureDecoder
from stream.wire.messages import Header, Kind, Message, decode_feeds, decode_status
from tests.cameras import LiveCamera
from tests.clips import PATCHES, UdpSender, free_port, klv_packet, make_clip, read_number, read_patches
from tests.doubling import DoublingEngine
from tests.waiting import DEADLINE, wait_until

MISTAKE = "a mistake in the program"


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


def replayed(engine: Door, feed: FeedSettings) -> tuple[FeedFigures, list[Message]]:
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


def shapes(messages: list[Message], codec: str) -> list[tuple[bool, Fraction | None]]:
    """Of each picture whether it is a key frame, and how wide a pixel is to be shown."""
    context = av.CodecContext.create(codec, "r")
    shown = []
    for message in pictures(messages):
        context.decode(av.Packet(message.payload))  # type: ignore[arg-type]
        shown.append((message.header.key, context.sample_aspect_ratio))  # type: ignore[attr-defined]
    return shown


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("suffix", [".ts", ".mp4"])
def test_pixels_that_are_not_square_are_shown_as_the_camera_means_them(
    suffix: str, codec: Literal["h264", "hevc"], tmp_path: Path
) -> None:
    clip = make_clip(tmp_path / f"clip{suffix}", pictures=10, aspect=Fraction(16, 11))
    _, messages = replayed(DoublingEngine(), recording(clip, encoder=EncoderSettings(codec=codec)))
    assert {shape for _, shape in shapes(messages, codec)} == {Fraction(16, 11)}


def test_another_shape_of_pixels_begins_with_a_key_frame(tmp_path: Path) -> None:
    parts = [make_clip(tmp_path / f"{n}.ts", pictures=10, aspect=Fraction(4, n)) for n in (3, 4)]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    _, messages = replayed(DoublingEngine(), recording(joined))
    shown = shapes(messages, "h264")
    assert [shape for _, shape in shown] == [Fraction(4, 3)] * 10 + [Fraction(1)] * 10
    assert shown[10][0]


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


def test_the_camera_s_own_pictures_say_their_size_from_their_first_key_frame_on(tmp_path: Path) -> None:
    parts = [make_clip(tmp_path / f"{width}.ts", pictures=10, size=(width, 120)) for width in (160, 320)]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    _, messages = replayed(DoublingEngine(), recording(joined))
    units = [message.header for message in messages if message.kind == "source"]
    assert [(unit.width, unit.key) for unit in units[9:12]] == [(160, False), (320, True), (320, False)]


def test_the_camera_s_own_pictures_say_their_new_size_also_after_damage(tmp_path: Path) -> None:
    """After which decoding begins anew."""
    small = make_clip(tmp_path / "small.h264", pictures=10, key_interval=5, options={"x264-params": "cabac=0"})
    large = make_clip(tmp_path / "large.h264", pictures=5, size=(320, 240))
    with av.open(small) as container:
        units = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    units[3] = units[3][:300] + units[3][400:]
    clip = tmp_path / "clip.h264"
    clip.write_bytes(b"".join(units) + large.read_bytes())
    _, messages = replayed(DoublingEngine(), recording(clip))
    assert [message.header.state for message in pictures(messages)][3:6] == ["concealed", "tainted", "clean"]
    sizes = [(message.header.width, message.header.height) for message in messages if message.kind == "source"]
    assert sizes == [(160, 120)] * 10 + [(320, 240)] * 5


def test_klv_travels_untouched(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=20, klv=True)
    _, messages = replayed(DoublingEngine(), recording(clip))
    data = [message for message in messages if message.kind == "data"]
    assert [message.payload for message in data] == [klv_packet(number) for number in range(20)]
    assert {(message.header.codec, message.header.key) for message in data} == {("klv", False)}


def test_the_camera_s_own_pictures_say_when_to_decode_them_where_that_is_not_when_to_show_them(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=20, b_frames=2)
    with av.open(str(clip)) as container:
        times = [(packet.pts, packet.dts) for packet in container.demux(video=0) if packet.size]
    assert sum(dts != pts for pts, dts in times) > 5
    _, messages = replayed(DoublingEngine(), recording(clip))
    units = [message.header for message in messages if message.kind == "source"]
    assert [(unit.pts, unit.dts) for unit in units] == [(pts, None if dts == pts else dts) for pts, dts in times]


@pytest.mark.parametrize(
    ("changes", "missing"), [({"publish_source": False}, "source"), ({"publish_data": False}, "data")]
)
def test_what_came_untouched_is_published_where_the_settings_ask_for_it(
    changes: dict[str, bool], missing: str, tmp_path: Path
) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=10, klv=True)
    _, messages = replayed(DoublingEngine(), recording(clip, **changes))
    assert {message.kind for message in messages} == {"video", "source", "data"} - {missing}


@pytest.mark.parametrize("codec", ["hevc", "av1"])
def test_other_encoders_are_flushed_at_the_end(tmp_path: Path, codec: str) -> None:
    feed = recording(make_clip(tmp_path / "clip.mp4", pictures=12), encoder=EncoderSettings(codec=codec))  # type: ignore[arg-type]
    figures, messages = replayed(DoublingEngine(), feed)
    assert figures.published == 12
    assert {message.header.codec for message in pictures(messages)} == {codec}
    frames = decoded(messages, "hevc" if codec == "hevc" else "libdav1d")
    assert [read_number(luma(frame)) for frame in frames] == list(range(12))


def test_the_encoder_plans_with_the_rate_that_the_source_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = []
    real = outlet.Encoder
    monkeypatch.setattr(outlet, "Encoder", lambda *arguments: planned.append(arguments[5]) or real(*arguments))
    replayed(DoublingEngine(), recording(make_clip(tmp_path / "clip.mp4", pictures=5, rate=10)))
    assert planned == [Fraction(10)]


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


# Times


def assert_joined(messages: list[Message]) -> None:
    """Every picture has the times of the access unit that it came from."""
    units = {hashlib.sha256(unit.payload).digest(): unit.header for unit in messages if unit.kind == "source"}
    assert len(pictures(messages)) >= 20
    for message in pictures(messages):
        header, unit = message.header, units[message.header.source_sha256 or b""]
        assert header.time_base is not None
        assert (header.pts, header.time_base) == (unit.pts, unit.time_base)
        assert (header.capture_ns, header.capture_clock) == (unit.capture_ns, unit.capture_clock)
        assert header.received_ns == unit.received_ns


@pytest.mark.parametrize("mode", ["live", "replay"])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.ts", "clip.mkv"])
def test_a_picture_and_its_access_unit_have_the_same_times(tmp_path: Path, name: str, mode: str) -> None:
    pictures = 75 if mode == "live" else 24  # live some may be late on a busy machine
    clip = make_clip(tmp_path / name, pictures=pictures, b_frames=2, creation_time="2026-03-01T20:00:00Z")
    _, messages = replayed(DoublingEngine(), recording(clip).model_copy(update={"mode": mode}))
    assert_joined(messages)


def test_a_picture_over_udp_and_its_access_unit_have_the_same_times(tmp_path: Path) -> None:
    wanted = camera()
    clip = make_clip(tmp_path / "clip.ts", pictures=60)
    with (
        DoublingEngine() as engine,
        Publisher(wanted.relay, "run") as publisher,
        watched(publisher, "cam") as messages,
        Relay(wanted, engine, publisher) as relay,
        UdpSender(clip, port_of(wanted), bit_rate=as_filmed(clip, 60)) as sender,
    ):
        assert sender.wait(DEADLINE)
        wait_until(lambda: relay.feeds["cam"].meter.figures().published >= 30, "pictures")
    assert_joined(messages)
    assert {message.header.capture_clock for message in messages} == {"arrival"}


def test_a_picture_tells_its_access_units_stamp_also_after_its_own_was_shifted(tmp_path: Path) -> None:
    for name, side in (("a.ts", 160), ("b.ts", 176)):
        make_clip(tmp_path / name, pictures=20, b_frames=2, size=(side, 120))
    _, messages = replayed(DoublingEngine(), recording(tmp_path))
    units = {hashlib.sha256(unit.payload).digest(): unit.header for unit in messages if unit.kind == "source"}
    headers = [message.header for message in pictures(messages)]
    assert len(units) == len(headers) == 40
    for header in headers:
        unit = units[header.source_sha256 or b""]
        assert header.source_pts is not None
        assert (header.source_pts, header.time_base) == (unit.pts, unit.time_base)
    assert [header.pts == header.source_pts for header in headers] == [True] * 20 + [False] * 20
    assert {message.header.source_pts for message in messages if message.kind != "video"} == {None}


@pytest.mark.parametrize("wild", [(1 << 62) + 1, -(1 << 63) + 1])
def test_a_wild_stamp_costs_a_viewer_no_message(wild: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = RecordedSegment.packets

    def packets(self: RecordedSegment) -> Iterator[SourcePacket]:
        for number, source in enumerate(real(self)):
            if number in (10, 11):  # one of each stream
                source.packet.pts, source.packet.dts = wild, wild + 1
            yield source

    monkeypatch.setattr(RecordedSegment, "packets", packets)
    clip = make_clip(tmp_path / "clip.ts", pictures=20, klv=True)
    figures, messages = replayed(DoublingEngine(), recording(clip))
    assert figures.published == 20
    for kind in ("video", "source", "data"):
        headers = [message.header for message in messages if message.kind == kind]
        stamps = [header.source_pts if kind == "video" else header.pts for header in headers]
        assert len(headers) == 20
        assert sum(stamp is None for stamp in stamps) == 1
        assert {header.dts for header in headers} == {None}


def test_a_source_that_is_opened_in_the_middle_is_not_shown_over_what_came_before(tmp_path: Path) -> None:
    folder = tmp_path / "mission"
    folder.mkdir()
    make_clip(folder / "1.ts", pictures=20, key_interval=10)
    whole = make_clip(tmp_path / "whole.ts", pictures=40, key_interval=20, options={"x264-params": "scenecut=0"})
    with av.open(str(whole)) as container, av.open(str(folder / "2.ts"), "w") as cut:
        stream = cut.add_stream_from_template(container.streams.video[0])
        for packet in [packet for packet in container.demux(video=0) if packet.size][5:]:
            packet.stream = stream
            cut.mux(packet)
    figures, messages = replayed(DoublingEngine(), recording(folder))
    assert (figures.published, figures.lost) == (40, {"undecodable": 15})
    decoder = PictureDecoder()
    shown = [frame for message in messages if message.kind == "source" for frame in decoder.decode(message)]
    assert [read_number(luma(frame)) for frame in shown] == list(range(40))


@pytest.mark.parametrize("wild", [-1, (1 << 62) + 1])
def test_a_wild_capture_time_costs_a_viewer_no_message(
    wild: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RecordedSegment, "captured", lambda *_: (wild, "recording"))
    clip = make_clip(tmp_path / "clip.ts", pictures=20, klv=True)
    figures, messages = replayed(DoublingEngine(), recording(clip))
    assert figures.published == 20
    for kind in ("video", "source", "data"):
        assert [message.header.capture_ns for message in messages if message.kind == kind] == [None] * 20


def test_a_recording_that_plays_live_ages_from_its_own_pace(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=25)
    figures, messages = replayed(DoublingEngine(), recording(clip).model_copy(update={"mode": "live"}))
    first, last = pictures(messages)[0].header, pictures(messages)[-1].header
    assert (last.received_ns or 0) - (first.received_ns or 0) >= 0.9e9
    assert holds(figures)


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


# Trouble


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


def camera(**changes: object) -> Settings:
    feed = FeedSettings(url=f"udp://127.0.0.1:{free_port()}", **changes)  # type: ignore[arg-type]
    return settings(cam=feed)


def as_filmed(clip: Path, pictures: int) -> int:
    """The bit rate at which a clip takes as long to send as it took to film: faster, it would be an overload."""
    return clip.stat().st_size * 8 * 25 // pictures


def port_of(wanted: Settings) -> int:
    return int(wanted.feeds["cam"].url.rpartition(":")[2])


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


def test_pictures_whose_lines_go_backwards_in_memory_are_shown_upright(tmp_path: Path) -> None:
    path = tmp_path / "raw.nut"
    slope = np.repeat(np.arange(60, 204, 3, dtype=np.uint8)[:, None], 64, axis=1)
    with av.open(path, "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray"
        stream.codec_context.extradata = b"BottomUp\0"
        for number in range(10):
            picture = av.VideoFrame.from_ndarray(slope[::-1].copy(), format="gray")
            picture.pts, picture.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(picture))
    figures, messages = replayed(DoublingEngine(), recording(path))
    assert (figures.published, figures.lost) == (10, {})
    shown = luma(decoded(messages)[0])[:, 64].astype(int)
    assert shown[:10].mean() < shown[-10:].mean() - 60


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


def test_access_units_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mkv", pictures=30, key_interval=10)
    with av.open(str(clip)) as container:
        wrong = bytes([packet for packet in container.demux(video=0) if packet.size][13])
    clip.write_bytes(clip.read_bytes().replace(wrong, b"\xff\xff" + wrong[2:]))
    figures, _ = replayed(DoublingEngine(), recording(clip))
    assert (figures.received, figures.published, figures.lost) == (30, 29, {"undecodable": 1})


def test_a_size_that_is_not_known_yet_does_not_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = camera(open_timeout=2.0)
    clip = make_clip(tmp_path / "clip.ts", pictures=200, key_interval=1000)
    start = clip.stat().st_size // 1316 // 5
    headers: list[Header] = []
    with DoublingEngine() as engine, Publisher(wanted.relay, "run") as publisher:
        monkeypatch.setattr(publisher, "publish", lambda *message: headers.append(message[2]))
        with Relay(wanted, engine, publisher), UdpSender(clip, port_of(wanted), start=start, bit_rate=1_000_000):
            wait_until(lambda: headers, "an access unit")
    assert {(header.width, header.height) for header in headers} == {(None, None)}


# Ends


def stopped_within(wanted: Settings, seconds: float) -> Settings:
    """With this `stop_timeout`."""
    return wanted.model_copy(update={"relay": wanted.relay.model_copy(update={"stop_timeout": seconds})})


def test_a_relay_without_feeds_ends_by_itself() -> None:
    wanted = settings()
    with DoublingEngine() as engine, Publisher(wanted.relay, "run") as publisher, Relay(wanted, engine, publisher) as r:
        assert r.wait(DEADLINE)
        r.publish_status()
    assert r.failure is None


def test_a_recording_that_has_ended_leaves_nothing_open_while_others_go_on(tmp_path: Path) -> None:
    wanted = settings(tape=recording(make_clip(tmp_path / "clip.mp4", pictures=10)), cam=camera().feeds["cam"])

    def stages() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "nightbridge-send_out"]

    with DoublingEngine() as engine, Publisher(wanted.relay, "run") as publisher, Relay(wanted, engine, publisher) as r:
        wait_until(lambda: r.feeds["tape"].state == "ended", "the end of the recording")
        assert r.feeds["tape"].meter.figures().published == 10
        wait_until(lambda: len(stages()) == 1, "the end of its encoder")


@pytest.mark.parametrize("after", [0.0, 0.005, 0.05, 0.1, 0.2, 0.3, 0.4])
def test_a_stop_at_any_moment_ends_everything_and_adds_up(tmp_path: Path, after: float) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=50)
    wanted = settings(
        cam=camera().feeds["cam"],
        silent=camera().feeds["cam"],
        tape=recording(clip),
        paced=recording(clip).model_copy(update={"mode": "live"}),
    )
    wanted = stopped_within(wanted, 20.0)
    threads = set(threading.enumerate())
    with DoublingEngine() as engine, Publisher(wanted.relay, "run") as publisher:
        with UdpSender(clip, port_of(wanted), repeat=True), Relay(wanted, engine, publisher) as relay:
            relay.wait(after)
            began = time.monotonic()
        assert time.monotonic() - began < 20, "nothing was waited for in vain"
        assert relay.failure is None
        for feed in relay.feeds.values():
            assert (feed.state, feed.meter.figures().under_way) == ("ended", 0)
            assert holds(feed.meter.figures())
    assert {thread for thread in threading.enumerate() if thread.name.startswith("nightbridge")} <= threads


def test_a_stop_that_takes_too_long_drops_what_is_under_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pace = threading.Semaphore(0)
    wanted = stopped_within(settings(tape=recording(make_clip(tmp_path / "clip.mp4", pictures=50))), 4.0)

    with DoublingEngine(pace) as engine, Publisher(wanted.relay, "run") as publisher:
        with Relay(wanted, engine, publisher) as relay:
            wait_until(lambda: engine.batches == [1, 1], "two pictures in the engine")
            lane = relay.feeds["tape"].lane

            def let_one_go() -> None:
                wait_until(lambda: lane.closed, "the end of all patience")
                pace.release()  # the other one stays in the engine

            late = threading.Thread(target=let_one_go)
            late.start()
            began = time.monotonic()
        assert time.monotonic() - began < 9.2, "twice as long at most, and a little"
    late.join()
    assert "stopping tape took longer than 4 s" in caplog.text
    figures = relay.feeds["tape"].meter.figures()
    assert figures.published == 1
    assert figures.dropped == {"stopped": figures.received - 1}
    assert holds(figures)
