from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from stream.frame import SourcePacket
from stream.publish import Publisher
from stream.relay import Relay
from stream.sources.recording import RecordedSegment
from stream.view import PictureDecoder
from stream.wire.messages import Message
from tests.clips import UdpSender, make_clip, read_number
from tests.doubling import DoublingEngine
from tests.relaying import as_filmed, camera, holds, luma, pictures, port_of, recording, replayed, watched
from tests.waiting import DEADLINE, wait_until


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
