from __future__ import annotations

import os
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import pytest

from stream.source import open_source
from stream.sources import reader
from tests.clips import datagrams, free_port, listeners_at, make_clip
from tests.reading import feed, nothing_left, numbers, read, take, why_lost
from tests.waiting import wait_until
from tests.web_server import impatient


def sdp_file(folder: Path, port: int) -> Path:
    file = folder / "camera.sdp"
    lines = ["v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=camera", "c=IN IP4 127.0.0.1", "t=0 0"]
    lines += [f"m=video {port} RTP/AVP 96", "a=rtpmap:96 H264/90000", "a=fmtp:96 packetization-mode=1"]
    file.write_text("\r\n".join(lines) + "\r\n")
    return file


def send_rtp(clip: Path, port: int, stop: threading.Event) -> None:
    """Send a clip as RTP, twice as fast as it is."""
    options = {"strict": "experimental"}  # for VP9
    with (
        av.open(str(clip)) as source,
        av.open(f"rtp://127.0.0.1:{port}", "w", format="rtp", options=options) as output,
    ):
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size and not stop.wait(0.02):
                packet.stream = stream
                output.mux(packet)


@contextmanager
def sent_as_rtp(clip: Path) -> Iterator[Path]:
    """An SDP file beside a clip, which says of H.264 that it is being sent."""
    port, stop = free_port() & ~1, threading.Event()
    thread = threading.Thread(target=send_rtp, args=(clip, port, stop))
    thread.start()
    try:
        yield sdp_file(clip.parent, port)
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def rtp(tmp_path: Path) -> Iterator[Path]:
    """An SDP file that describes what is being sent for two seconds."""
    with sent_as_rtp(make_clip(tmp_path / "clip.ts", pictures=100, key_interval=10)) as file:
        yield file


def test_vp9_over_rtp_gives_pictures_from_its_next_key_frame_on(tmp_path: Path) -> None:
    """Although FFmpeg calls none of its access units a key frame."""
    live = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}
    clip = make_clip(tmp_path / "clip.mkv", codec="libvpx-vp9", pictures=100, key_interval=10, options=live)
    with sent_as_rtp(clip) as file:
        file.write_text(file.read_text().replace("H264", "VP9"))
        with open_source(feed(file)) as source:
            seen = numbers(next(source.segments()), 15)
    assert seen[0] % 10 == 0
    assert seen == list(range(seen[0], seen[0] + len(seen)))


@pytest.mark.parametrize(
    ("first", "key"),
    [
        (0b10_00_0_0_10, True),
        (0b10_00_0_1_10, False),
        (0b10_00_1_000, False),
        (0b10_01_0_0_01, True),
        (0b10_11_0_0_0_1, True),
        (0b10_11_0_0_1_0, False),
        (0b10_11_0_1_00, False),
        (0b01_00_0_0_00, False),
    ],
)
def test_a_key_frame_of_vp9_is_known_by_its_first_byte_in_all_profiles(first: int, key: bool) -> None:
    assert reader.begins_with_vp9_key(bytes([first, 0x49, 0x83, 0x42])) is key


def test_rtp_is_read_by_its_sdp_file_until_it_stops(rtp: Path) -> None:
    for url in (str(rtp), rtp.as_uri()):
        with open_source(feed(url)) as source:
            assert len(take(next(source.segments()), 15)) == 15
    lost = why_lost(feed(rtp))
    assert lost.reason == "time-out"


@pytest.mark.parametrize(
    ("media", "codec", "reason", "words"),
    [
        ("video", "FOO/90000", "codec", "its video codec is not supported"),
        ("audio", "OPUS/48000/2", "no video", "no video in it; it holds audio opus"),
    ],
)
def test_rtp_that_cannot_be_relayed_is_told(rtp: Path, media: str, codec: str, reason: str, words: str) -> None:
    rtp.write_text(rtp.read_text().replace("m=video", f"m={media}").replace("H264/90000", codec))
    lost = why_lost(feed(rtp))
    assert (lost.reason, str(lost)) == (reason, f"{rtp}: {words}")


def test_mpeg_ts_in_rtp_is_read_wherever_it_is_joined(tmp_path: Path) -> None:
    parts = datagrams(make_clip(tmp_path / "clip.ts", pictures=100, key_interval=10))
    tables = [number for number, part in enumerate(parts) if part[1:3] == b"\x40\x00"]
    assert tables[1] - tables[0] > 2
    port, stop = free_port() & ~1, threading.Event()

    def send() -> None:
        wait_until(lambda: listeners_at(port), "somebody listens")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for number, part in enumerate(parts[tables[0] + 1 :] * 5):
                sender.sendto(struct.pack(">BBHII", 0x80, 33, number, 1800 * number, 7) + part, ("127.0.0.1", port))
                if stop.wait(0.02):
                    return

    file = sdp_file(tmp_path, port)
    file.write_text(re.sub(r" 96\r?\na=.*", " 33\n", file.read_text(), flags=re.DOTALL))
    thread = threading.Thread(target=send)
    thread.start()
    try:
        assert len(read(feed(file), 15)) == 15
    finally:
        stop.set()
        thread.join()


def test_rtp_that_never_comes_is_a_time_out(tmp_path: Path) -> None:
    with nothing_left():
        lost = why_lost(impatient(str(sdp_file(tmp_path, free_port() & ~1))))
    assert (lost.reason, lost.args[0].rpartition(": ")[2]) == ("time-out", "no packet for 2 s")


def test_an_sdp_file_that_is_none_is_told(tmp_path: Path) -> None:
    assert why_lost(feed(tmp_path / "missing.sdp")).reason == "not found"
    (tmp_path / "noise.sdp").write_bytes(os.urandom(5000))
    assert why_lost(impatient(str(tmp_path / "noise.sdp"))).reason in ("no video", "lost")
