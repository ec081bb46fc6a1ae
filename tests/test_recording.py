from __future__ import annotations

import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from stream.errors import SourceUnsupported
from stream.sources.fields import rewritten
from stream.sources.parameter_sets import START_CODE, kind
from stream.sources.recording import RecordedSegment, find_recordings, open_recording, recorder_clock
from tests.clips import make_clip, read_number

BEGAN_NS = 1795361400_000_000_000
"""2026-11-22T15:30:00Z."""
OPEN_GROUPS = {"x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0"}


def read(path: Path, first: int = 0) -> tuple[RecordedSegment, list[av.Packet]]:
    with open_recording(path, threading.Event()) as segment:
        segment.first = first
        return segment, [source.packet for source in segment.packets() if source.kind == "video"]


def decoded(packets: list[av.Packet], codec: str = "h264") -> list[int]:
    """The numbers of their pictures, which are 80 lines high."""
    decoder = av.CodecContext.create(codec, "r")
    assert isinstance(decoder, av.VideoCodecContext)
    frames = [frame for packet in packets for frame in decoder.decode(packet)] + decoder.decode(None)
    return [read_number(frame.to_ndarray()[:80].astype(np.uint8)) for frame in frames]


@pytest.mark.parametrize(("codec", "library"), [("h264", "libx264"), ("hevc", "libx265")])
def test_the_middle_of_a_recording_can_be_decoded_alone(tmp_path: Path, codec: str, library: str) -> None:
    clip = make_clip(tmp_path / "a.mp4", pictures=40, size=(96, 80), codec=library, key_interval=10)
    whole, packets = read(clip)
    assert (whole.units, whole.keys) == (40, [0, 10, 20, 30])
    rest, behind = read(clip, 20)
    assert (rest.units, rest.keys) == (40, [20, 30])
    assert [packet.pts for packet in behind] == [packet.pts for packet in packets[20:]]
    assert decoded(behind, codec) == list(range(20, 40))


def test_parameter_sets_that_are_in_front_of_the_first_key_frame_alone_are_given_in_the_middle_too(
    tmp_path: Path,
) -> None:
    clip = make_clip(tmp_path / "a.mkv", pictures=40, size=(96, 80), b_frames=2, options=OPEN_GROUPS)
    whole, _ = read(clip)
    _, behind = read(clip, whole.keys[2])
    assert decoded(behind)[-10:] == list(range(30, 40))


@pytest.mark.parametrize(("codec", "library"), [("h264", "libx264"), ("hevc", "libx265"), ("mpeg4", "mpeg4")])
def test_every_key_frame_can_be_decoded_alone_however_its_parameter_sets_are_stored(
    tmp_path: Path, codec: str, library: str
) -> None:
    clip = make_clip(tmp_path / "a.mkv", pictures=40, size=(96, 80), codec=library, key_interval=10)
    whole, packets = read(clip)
    assert whole.keys == [0, 10, 20, 30]
    for key in whole.keys:
        assert decoded(packets[key : key + 1], codec) == [key]


@pytest.mark.parametrize(
    ("codec", "library", "told_once"),
    [("h264", "libx264", {8}), ("hevc", "libx265", {32}), ("hevc", "libx265", {33, 34})],
)
def test_every_key_frame_can_be_decoded_alone_although_some_kinds_of_parameter_sets_come_once(
    tmp_path: Path, codec: str, library: str, told_once: set[int]
) -> None:
    clip = make_clip(tmp_path / "a.ts", pictures=30, size=(96, 80), codec=library, key_interval=10)
    whole, packets = read(without_repeating(clip, tmp_path / "b.ts", codec, told_once))
    assert whole.keys == [0, 10, 20]
    for key in whole.keys:
        assert decoded(packets[key : key + 1], codec) == [key]


def without_repeating(clip: Path, path: Path, codec: str, kinds: set[int]) -> Path:
    """The clip at `path`, with parameter sets of these kinds in front of the first picture alone."""
    with av.open(clip) as source, av.open(path, "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            _, *parts = bytes(packet).split(START_CODE)
            unit = b"".join(START_CODE + part for part in parts if not number or kind(codec, part) not in kinds)
            if unit:
                rest = rewritten(packet, unit)
                rest.stream = copy
                target.mux(rest)
    return path


def test_a_name_that_says_when_it_began_is_the_clock_of_a_recording_that_says_nothing(tmp_path: Path) -> None:
    for name, capture_ns in {
        "pier-20261122T153000.250Z.ts": BEGAN_NS + 250_000_000,
        "pier-20261122T153000Z-2.ts": BEGAN_NS,
    }.items():
        with open_recording(make_clip(tmp_path / name, pictures=2), threading.Event()) as segment:
            first = next(segment.packets())
        assert (first.capture_clock, first.capture_ns) == ("recording", capture_ns)
    for name in ("pier-2026.ts", "pier-20261399T153000Z.ts"):
        with open_recording(make_clip(tmp_path / name, pictures=2), threading.Event()) as segment:
            assert next(segment.packets()).capture_clock == "arrival"


def test_a_recording_began_with_its_first_stamp_whatever_that_is(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.ts", pictures=20, key_interval=10)
    rest = tmp_path / "pier-20261122T153000Z.ts"
    with av.open(str(whole)) as source, av.open(str(rest), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for packet in [packet for packet in source.demux(video=0) if packet.size][10:]:
            packet.stream = copy
            target.mux(packet)
    with open_recording(rest, threading.Event()) as segment:
        assert [packet.capture_ns - BEGAN_NS for packet in segment.packets()] == [n * 40_000_000 for n in range(10)]


def test_an_access_unit_of_zeros_is_counted_and_the_others_are_read(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=60)
    with av.open(str(clip)) as container:
        units = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    number, (place, size) = next((n, unit) for n, unit in enumerate(units) if n > 5 and unit[1] % 4 == 0)
    data = bytearray(clip.read_bytes())
    data[place : place + size] = bytes(size)
    clip.write_bytes(data)
    segment, packets = read(clip)
    assert (segment.unreadable, len(packets)) == (1, 59)
    assert all(packet.size for packet in packets)
    assert packets[number].is_corrupt, "the one behind the hole"


def test_a_file_with_damaged_parameter_sets_is_told(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=5)
    data = bytearray(clip.read_bytes())
    place = data.find(b"avcC")
    data[place + 9 : place + 12] = b"\xff\xff\xff"
    clip.write_bytes(data)
    with (
        pytest.raises(SourceUnsupported, match=r"clip\.mp4: its h264 cannot be read") as wrong,
        open_recording(clip, threading.Event()),
    ):
        pass
    assert wrong.value.reason == "codec"


def test_a_stream_that_cannot_be_decoded_beside_the_video_is_named_and_ignored(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "plain.ts", pictures=10)
    both = tmp_path / "both.ts"
    with av.open(str(clip)) as reader, av.open(str(both), "w") as writer:
        video = writer.add_stream_from_template(reader.streams.video[0])
        text = writer.add_mux_stream("dvb_teletext")
        text.time_base = Fraction(1, 90_000)
        for packet in reader.demux(video=0):
            if packet.size:
                told = av.Packet(b"\x10\x02\x2c" + b"\xff" * 43)
                told.pts = told.dts = round(packet.pts * packet.time_base * 90_000)
                told.time_base, told.stream = Fraction(1, 90_000), text
                packet.stream = video
                writer.mux([packet, told])
    segment, packets = read(both)
    assert len(packets) == 10
    assert segment.info.ignored == ("subtitle",)


def test_a_wild_time_stamp_is_taken_as_recorded_with_the_one_before(tmp_path: Path) -> None:
    for start in (0, 2**41):  # milliseconds; the second one is a time of day, as some recorders stamp
        clock = recorder_clock(BEGAN_NS, start * 1_000_000)
        packet = av.Packet(b"unit")
        packet.time_base = Fraction(1, 1000)
        told = []
        for pts in (0, 40, 2**61, -(2**61), None, 120):
            packet.pts = None if pts is None else start + pts
            told.append(clock(packet) - BEGAN_NS)
        assert told == [0, 40_000_000, 40_000_000, 40_000_000, 40_000_000, 120_000_000]


def test_files_and_folders_are_found_in_order_and_none_twice(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("b.mp4", "a.ts", ".part.mp4", "notes.txt"):
        (folder / name).write_bytes(b"")
    (tmp_path / "z.mkv").write_bytes(b"")
    (tmp_path / "link.mp4").symlink_to(folder / "b.mp4")
    paths = [tmp_path / "z.mkv", folder, folder / "b.mp4", tmp_path / "link.mp4", folder / ".." / "z.mkv"]
    assert find_recordings(paths) == [tmp_path / "z.mkv", folder / "a.ts", folder / "b.mp4"]
    with pytest.raises(SourceUnsupported, match=r"y\.mkv: no such file or folder"):
        find_recordings([tmp_path / "y.mkv"])
