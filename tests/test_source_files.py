from __future__ import annotations

import os
import socket
import time
from hashlib import sha256
from pathlib import Path

import av
import numpy as np
import pytest

from stream.errors import SourceUnsupported
from stream.source import open_source
from tests.clips import REAL_CLIPS, make_clip
from tests.reading import feed, nothing_left, pictures_of, read_all

# Files and folders


def test_a_file_gives_every_access_unit_once_and_in_order(tmp_path: Path) -> None:
    with nothing_left():
        [packets] = read_all(make_clip(tmp_path / "clip.mkv", pictures=30))
    assert pictures_of(packets) == list(range(30))


def test_a_file_address_may_hold_spaces(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a mission.mkv", pictures=5)
    [packets] = read_all(clip.as_uri())
    assert len(packets) == 5


@pytest.mark.parametrize(("codec", "parameter_set"), [("libx264", 7), ("libx265", 32)])
def test_length_prefixed_access_units_come_as_annex_b_with_parameter_sets(
    tmp_path: Path, codec: str, parameter_set: int
) -> None:
    [packets] = read_all(make_clip(tmp_path / "clip.mp4", codec=codec, pictures=30, key_interval=10))
    keys = [bytes(packet.packet) for packet in packets if packet.packet.is_keyframe]
    assert len(keys) == 3
    assert all(bytes(packet.packet)[:4] == b"\0\0\0\1" for packet in packets)
    for key in keys:
        types = {unit[0] & 31 if codec == "libx264" else unit[0] >> 1 & 63 for unit in key.split(b"\0\0\1")[1:]}
        assert parameter_set in types


def test_access_units_of_a_transport_stream_are_untouched(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=20)
    with av.open(str(clip)) as container:
        sent = [sha256(packet).digest() for packet in container.demux(video=0) if packet.size]
    [packets] = read_all(clip)
    assert [sha256(packet.packet).digest() for packet in packets] == sent


def test_a_folder_is_one_segment_for_each_recording_in_the_order_of_their_names(tmp_path: Path) -> None:
    make_clip(tmp_path / "b.mkv", pictures=7)
    make_clip(tmp_path / "c.ts", pictures=9)
    make_clip(tmp_path / "a.MP4", pictures=5)
    (tmp_path / "notes.txt").write_text("no recording")
    (tmp_path / "d.mkv").mkdir()
    with nothing_left():
        assert [len(packets) for packets in read_all(tmp_path)] == [5, 7, 9]


def test_a_damaged_recording_in_a_folder_is_told_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_clip(tmp_path / "a.mkv", pictures=5)
    (tmp_path / "b.mp4").write_bytes(make_clip(tmp_path / "b.mp4").read_bytes()[:2000])
    make_clip(tmp_path / "c.mkv", pictures=6)
    assert [len(packets) for packets in read_all(tmp_path)] == [5, 6]
    assert "b.mp4: Invalid data found" in caplog.text


def test_what_cannot_be_relayed_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "noise.ts").write_bytes(os.urandom(50_000))
    (tmp_path / "empty").mkdir()
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        silence.rate = 8000
        container.mux(sound.encode(silence))
    for name, reason in {
        "missing.mp4": "no such file or folder",
        "noise.ts": "Invalid data found",
        "empty": "the folder holds no media files",
        "sound.mkv": "no video in it; it holds audio pcm_s16le",
        "long" * 100: "File name too long",  # as for a path that may not be looked at
    }.items():
        with nothing_left(), pytest.raises(SourceUnsupported) as refused:
            read_all(tmp_path / name)
        assert str(refused.value).startswith(f"{tmp_path / name}: {reason}")


def test_an_unknown_kind_of_address_names_the_known_ones_and_no_password() -> None:
    settings = feed("udp://127.0.0.1:5000").model_copy(update={"url": "gopher://me:se@cret@host/1"})
    with pytest.raises(SourceUnsupported, match=r"must be a path, or begin with one of file://, udp://") as refused:
        open_source(settings)
    assert "cret" not in str(refused.value)


def test_a_file_cannot_make_the_relay_open_connections(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        playlist = tmp_path / "list.m3u8"
        playlist.write_text(f"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:{server.getsockname()[1]}/1.ts\n#EXT-X-ENDLIST\n")
        with pytest.raises(SourceUnsupported):
            read_all(playlist)
        with pytest.raises(TimeoutError):
            server.accept()


# Capture time


def test_a_recording_with_a_creation_time_has_its_own_clock(tmp_path: Path) -> None:
    [packets] = read_all(make_clip(tmp_path / "clip.mkv", pictures=3, creation_time="2026-11-22T15:30:00.25Z"))
    assert {packet.capture_clock for packet in packets} == {"recording"}
    assert [packet.capture_ns for packet in packets] == [1795361400_250_000_000 + n * 40_000_000 for n in range(3)]


@pytest.mark.parametrize("creation_time", [None, "1970-01-01T00:00:00Z", "1904-01-01T00:00:00Z"])
def test_a_recording_without_a_clock_counts_as_captured_when_it_is_read(
    tmp_path: Path, creation_time: str | None
) -> None:
    before = time.time_ns()
    [packets] = read_all(make_clip(tmp_path / "clip.mkv", pictures=3, creation_time=creation_time))
    assert {packet.capture_clock for packet in packets} == {"arrival"}
    assert all(before <= packet.capture_ns <= time.time_ns() for packet in packets)


# Real clips


@pytest.mark.skipif(not REAL_CLIPS.is_dir(), reason=f"{REAL_CLIPS.name} is not here")
@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "data"),
    [
        ("codec-av1.mkv", "av1", "yuv420p", ()),
        ("codec-h264-10bit.mp4", "h264", "yuv420p10le", ()),
        ("codec-hevc.mp4", "hevc", "yuv420p", ()),
        ("codec-bt709-full-range.mp4", "h264", "yuvj420p", ()),
        ("klv-day.ts", "h264", "yuv420p", ("klv",)),
        ("klv-thermal.ts", "h264", "yuv420p", ("klv",)),
    ],
)
def test_a_real_recording_says_what_it_holds(name: str, codec: str, pix_fmt: str, data: tuple[str, ...]) -> None:
    with open_source(feed(REAL_CLIPS / name)) as source:
        segment = next(source.segments())
        packets = list(segment.packets())
    assert (segment.info.codec, segment.info.pix_fmt, segment.info.data) == (codec, pix_fmt, data)
    assert len([packet for packet in packets if packet.kind == "data"]) == (12 if data else 0)
