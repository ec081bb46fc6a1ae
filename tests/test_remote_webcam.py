from __future__ import annotations

import http.server
import threading
import time
from pathlib import Path

import av
import pytest

from stream.source import open_source
from tests.clips import make_clip
from tests.reading import feed, read, take
from tests.waiting import DEADLINE
from tests.web_server import Answer, WebServer, impatient, send


def test_pictures_of_a_webcam_have_the_times_at_which_they_came(tmp_path: Path) -> None:
    """Motion JPEG over HTTP has no time stamps."""
    with av.open(str(make_clip(tmp_path / "clip.mkv", codec="mjpeg", pix_fmt="yuvj420p", pictures=12))) as container:
        pictures = [bytes(packet) for packet in container.demux() if packet.size]

    def webcam(handler: http.server.BaseHTTPRequestHandler) -> None:
        send(handler, 200, Content_Type="multipart/x-mixed-replace; boundary=frame")
        for jpeg in pictures:
            handler.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg))
            handler.wfile.write(jpeg + b"\r\n")
            time.sleep(0.05)

    with WebServer(tmp_path, {"/webcam": webcam}) as server:
        units = read(feed(server.url("/webcam")), 10)
    assert [unit.packet.pts for unit in units] == [unit.received_ns // 1000 for unit in units]
    assert {unit.packet.time_base.denominator for unit in units} == {1_000_000}


def test_a_webcam_that_tells_a_size_for_its_endless_pictures_is_no_recording(tmp_path: Path) -> None:
    with av.open(str(make_clip(tmp_path / "clip.mkv", codec="mjpeg", pix_fmt="yuvj420p", pictures=1))) as container:
        [jpeg] = [bytes(packet) for packet in container.demux() if packet.size]

    def webcam(handler: http.server.BaseHTTPRequestHandler) -> None:
        send(handler, 200, Content_Type="multipart/x-mixed-replace; boundary=frame", Content_Length="999999999")
        for _ in range(100):
            handler.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg + b"\r\n")
            time.sleep(0.02)

    with WebServer(tmp_path, {"/webcam": webcam}) as server, open_source(feed(server.url("/webcam"))) as source:
        segment = next(source.segments())
        assert not segment.recorded
        assert len(take(segment, 5)) == 5


def halting(beginning: bytes, rest: bytes, go_on: threading.Event) -> Answer:
    """An answer whose rest comes when that is allowed."""

    def stream(handler: http.server.BaseHTTPRequestHandler) -> None:
        send(handler, 200)
        handler.wfile.write(beginning)
        if go_on.wait(DEADLINE):
            handler.wfile.write(rest)

    return stream


def test_a_webcam_opens_with_its_first_picture_however_long_the_next_one_takes(tmp_path: Path) -> None:
    with av.open(str(make_clip(tmp_path / "clip.mkv", codec="mjpeg", pix_fmt="yuvj420p", pictures=1))) as container:
        [jpeg] = [bytes(packet) for packet in container.demux() if packet.size]
    part = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg) + jpeg + b"\r\n"
    go_on = threading.Event()
    with (
        WebServer(tmp_path, {"/webcam": halting(part, part * 9, go_on)}) as server,
        open_source(impatient(server.url("/webcam"))) as source,
    ):
        segment = next(source.segments())
        go_on.set()
        assert len(take(segment, 10)) == 10


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
def test_a_live_stream_over_http_opens_with_three_pictures_and_knows_its_rate(tmp_path: Path, codec: str) -> None:
    """FFmpeg gives a picture when the one after the next begins."""
    clip = make_clip(tmp_path / "clip.ts", codec=codec, pictures=20)
    with av.open(str(clip)) as container:
        fourth = [packet.pos for packet in container.demux(video=0) if packet.size][3]
    data, go_on = clip.read_bytes(), threading.Event()
    with (
        WebServer(tmp_path, {"/live": halting(data[:fourth], data[fourth:], go_on)}) as server,
        open_source(impatient(server.url("/live"))) as source,
    ):
        segment = next(source.segments())
        go_on.set()
        assert segment.rate == 25
        assert len(take(segment, 18)) == 18
