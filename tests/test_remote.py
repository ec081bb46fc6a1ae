from __future__ import annotations

import errno
import http.server
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import av
import pytest

from stream.decode import Decoder
from stream.errors import SourceLost
from stream.settings import FeedSettings
from stream.source import open_source, opener_of
from stream.sources import reader
from stream.sources.remote import PLAYLIST_SECONDS, ways_to
from tests.clips import datagrams, free_port, listeners_at, make_clip
from tests.impostors import (
    Behaviour,
    Impostor,
    answers_until,
    drips,
    hangs_up,
    is_mute,
    never_ends_its_headers,
    talks_nonsense,
)
from tests.reading import feed, nothing_left, numbers, read, readers, take, why_lost
from tests.rtsp_server import make_certificate
from tests.waiting import DEADLINE, takes_less_than, wait_until

PASSWORD = "p@ss:w/o#r?d%"
CANNOT_BE_LOOKED_UP = "the name of the host cannot be looked up now"
PATIENCE = 1.0
"""Seconds that a source may take to open, in these tests."""


def impatient(url: str, **settings: object) -> FeedSettings:
    return feed(url, open_timeout=PATIENCE, **settings)


# Servers that are none


@pytest.mark.parametrize("transport", ["auto", "udp", "tcp"])
@pytest.mark.parametrize("behaviour", [is_mute, never_ends_its_headers, drips])
def test_a_server_that_does_not_come_to_an_end_is_a_time_out(behaviour: Behaviour, transport: str) -> None:
    with nothing_left(), Impostor(behaviour) as server:
        began = time.monotonic()
        lost = why_lost(impatient(f"rtsp://127.0.0.1:{server.port}/", transport=transport))
        assert time.monotonic() - began < 10 * PATIENCE
        wait_until(lambda: not readers(), "the end of the reader, although the server goes on")
    assert lost.reason == "time-out"
    assert "no packet for" in str(lost)


@pytest.mark.parametrize("behaviour", [hangs_up, talks_nonsense])
def test_a_server_that_is_none_is_told(behaviour: Behaviour) -> None:
    with nothing_left(), Impostor(behaviour) as server:
        lost = why_lost(impatient(f"rtsp://127.0.0.1:{server.port}/"))
    assert lost.reason in ("no video", "lost", "time-out")


def test_a_camera_that_hangs_up_when_it_is_to_play_is_told() -> None:
    with nothing_left(), Impostor(answers_until(b"PLAY", b"")) as server:
        lost = why_lost(impatient(f"rtsp://127.0.0.1:{server.port}/x", transport="tcp"))
    assert lost.reason == "refused"
    assert str(lost).endswith("/x: the server breaks off when it is asked to play")


def test_nobody_who_listens_is_told(unused_tcp_port: int) -> None:
    for scheme in ("rtsp", "rtsps", "http", "https"):
        with nothing_left():
            lost = why_lost(impatient(f"{scheme}://127.0.0.1:{unused_tcp_port}/x"))
        assert lost.reason == "refused", scheme
        assert str(lost).endswith("connection refused"), scheme


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "not found", "no such host"),
        (UnicodeError("label empty or too long"), "not found", "no such host"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "time-out", CANNOT_BE_LOOKED_UP),
        (socket.gaierror(socket.EAI_MEMORY, "Memory allocation failure"), "time-out", CANNOT_BE_LOOKED_UP),
        (OSError(errno.EMFILE, "Too many open files"), "time-out", CANNOT_BE_LOOKED_UP),
    ],
)
def test_a_host_that_nobody_knows_is_told_apart_from_one_that_nobody_can_be_asked_for(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str, words: str
) -> None:
    asked: list[object] = []

    def fail(host: object, *_: object, **__: object) -> None:
        asked.append(host)
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    lost = why_lost(impatient("rtsp://nobody.invalid/cam"))
    assert (lost.reason, str(lost)) == (reason, f"rtsp://nobody.invalid/cam: {words}")
    assert asked == ["nobody.invalid"], "another transport needs the same address"


def test_a_password_file_that_is_gone_is_told(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("secret")
    settings = feed("rtsp://127.0.0.1:9/x", password_file=file)
    file.unlink()
    lost = why_lost(settings)
    assert lost.reason == "unauthorised"
    assert "No such file" in str(lost)


def test_a_password_that_cannot_be_sent_is_a_loss_since_its_file_may_hold_another_one_later(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    file = tmp_path / "password"
    file.write_text("x" * 150)
    settings = feed(f"rtsp://127.0.0.1:{unused_tcp_port}/x", username="me", password_file=file)
    opener = opener_of(settings)
    lost = why_lost(settings, opener)
    assert lost.reason == "address"
    assert "127 characters at most" in str(lost)
    file.write_text("short")
    assert why_lost(settings, opener).reason == "refused"


@pytest.mark.parametrize("password", ["p[w", "p]w", "p\u2100w", "p/?#w"])
def test_a_raw_password_of_any_characters_is_no_mistake(unused_tcp_port: int, password: str) -> None:
    lost = why_lost(impatient(f"http://admin:{password}@127.0.0.1:{unused_tcp_port}/a.mjpg"))
    assert lost.reason == "refused"
    assert password not in str(lost)


@pytest.mark.parametrize(
    ("url", "playlist"),
    [
        ("http://host/live.m3u8", True),
        ("http://me:p?w[d@host:81/a/LIVE.M3U?x=1", True),
        ("https://host/live.m3u8#a", True),
        ("http://host/live.ts?next=a.m3u8", False),
        ("http://me:a.m3u8@host/live.ts", False),
        ("http://host.m3u8", False),
    ],
)
def test_a_playlist_is_known_by_its_path_and_may_be_silent_for_longer(url: str, playlist: bool) -> None:
    [way] = ways_to(feed(url))
    assert way.silence == 2.0 + (PLAYLIST_SECONDS if playlist else 0)


@pytest.fixture
def unused_tcp_port() -> Iterator[int]:
    """Taken, so that nobody else comes to listen there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


# Stopping, and readers that are stuck


@pytest.mark.parametrize("scheme", ["rtsp", "rtsps", "http", "https"])
def test_a_source_that_is_being_opened_is_stopped_within_a_second(scheme: str) -> None:
    def seconds_to_stop() -> float:
        stop = threading.Event()
        with Impostor(is_mute) as server:
            settings = feed(f"{scheme}://127.0.0.1:{server.port}/x", open_timeout=20.0)
            timer = threading.Timer(0.2, stop.set)
            timer.start()
            began = time.monotonic()
            with open_source(settings, stop) as source:
                assert list(source.segments()) == []
            taken = time.monotonic() - began
            timer.join()
        return taken

    assert takes_less_than(1.2, seconds_to_stop)


@pytest.fixture
def hanging_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Looking up a name hangs until the event is set."""
    release, look_up = threading.Event(), socket.getaddrinfo

    def hang(*arguments: object, **named: object) -> object:
        release.wait()
        return look_up(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    yield release
    release.set()


def test_a_name_that_cannot_be_looked_up_does_not_keep_a_feed_from_stopping(hanging_names: threading.Event) -> None:
    def seconds_to_stop() -> float:
        stop = threading.Event()
        timer = threading.Timer(0.1, stop.set)
        timer.start()
        began = time.monotonic()
        with open_source(feed("rtsp://camera/x", open_timeout=20.0), stop) as source:
            assert list(source.segments()) == []
        taken = time.monotonic() - began
        timer.join()
        return taken

    with nothing_left():
        assert takes_less_than(1.0, seconds_to_stop)
        hanging_names.set()


def test_a_feed_leaves_one_stuck_reader_behind_at_most(hanging_names: threading.Event) -> None:
    settings = feed("rtsp://camera/x", open_timeout=0.3, transport="tcp")
    opener = opener_of(settings)
    reasons = [why_lost(settings, opener) for _ in range(4)]
    assert readers() == 1
    assert [(lost.reason, str(lost).rpartition(": ")[2]) for lost in reasons] == [("time-out", CANNOT_BE_LOOKED_UP)] * 4
    hanging_names.set()
    wait_until(lambda: not readers(), "the end of the reader")


def test_a_reader_that_is_stuck_although_its_host_is_known_is_told_of_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*_: object, **__: object) -> None:
        release.wait()
        raise av.ExitError(0, "Immediate exit requested")

    monkeypatch.setattr(av, "open", hang)
    settings = feed("rtsp://127.0.0.1:9/x", open_timeout=0.3, transport="tcp")
    opener = opener_of(settings)
    with nothing_left():
        words = [str(why_lost(settings, opener)).rpartition(": ")[2] for _ in range(2)]
        release.set()
    assert words == ["no packet for 0.3 s", "the attempt before still hangs in the network"]


def test_a_reader_that_is_given_up_stays_so_although_its_first_picture_comes_a_moment_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=5)

    def come_late(*_: object) -> None:
        wait_until(lambda: reading.failure is not None, "the end of patience")

    monkeypatch.setattr(reader.RtpLosses, "mark", come_late)
    monkeypatch.setattr(reader, "POLL_SECONDS", 0.5)
    reading = reader.Reader(reader.Way("file", str(clip), PATIENCE, PATIENCE, silence=PATIENCE), 1.0)
    assert not reading.wait(threading.Event())
    reading.leave()
    wait_until(lambda: not readers(), "the end of the reader")


def test_a_program_ends_although_a_reader_is_stuck() -> None:
    program = (
        "import sys, threading; from stream.settings import FeedSettings; from stream.source import open_source\n"
        "stop = threading.Event()\n"
        "threading.Thread(target=lambda: sys.stdin.readline() and stop.set()).start()\n"
        "with open_source(FeedSettings(url=sys.argv[1], open_timeout=60.0), stop) as source:\n"
        "    assert list(source.segments()) == []\n"
    )
    asked = threading.Event()

    def is_mute_when_asked(connection: socket.socket, stop: threading.Event) -> None:
        connection.recv(4096)
        asked.set()
        stop.wait()

    with Impostor(is_mute_when_asked) as server:
        command = [sys.executable, "-c", program, f"rtsp://127.0.0.1:{server.port}/x"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as running:
            assert asked.wait(DEADLINE)
            _, complaints = running.communicate(b"\n", timeout=20)
    assert (running.returncode, complaints) == (0, b"")


# HTTP


Answer = Callable[[Any], None]


class WebServer(http.server.ThreadingHTTPServer):
    """Serves a folder and answers of its own at 127.0.0.1."""

    daemon_threads = True

    def __init__(self, folder: Path, answers: dict[str, Answer]) -> None:
        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = answers.get(self.path, http.server.SimpleHTTPRequestHandler.do_GET)
                with suppress(OSError):  # of a client that has heard enough
                    answer(self)

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), lambda *args: Handler(*args, directory=str(folder)))
        threading.Thread(target=self.serve_forever, args=(0.05,), name="web", daemon=True).start()

    def url(self, path: str, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.server_port}{path}"

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def over_tls(server: WebServer, certificate: Path) -> WebServer:
    """The same, with a PEM file of a key and a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server


def send(handler: http.server.BaseHTTPRequestHandler, status: int, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()


def test_a_recording_over_http_is_read_to_its_end_and_opened_again(tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.ts", pictures=30)
    with WebServer(tmp_path, {}) as server:
        settings = feed(server.url("/clip.ts"))
        with open_source(settings) as source:
            segment = next(source.segments())
            assert segment.recorded
            assert len(take(segment, 100)) == 30
            with pytest.raises(SourceLost, match="the server ended the stream"):
                next(source.segments())
        with open_source(settings.model_copy(update={"mode": "replay"})) as source:
            assert [len(take(segment, 100)) for segment in source.segments()] == [30]


def test_a_connection_that_breaks_off_in_a_recording_over_http_is_a_loss(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=20).read_bytes()

    def broken_off(handler: http.server.BaseHTTPRequestHandler) -> None:
        send(handler, 200, Content_Length=str(2 * len(clip)))
        handler.wfile.write(clip)

    with WebServer(tmp_path, {"/cam": broken_off}) as server:
        lost = why_lost(feed(server.url("/cam")))
    assert (lost.reason, str(lost).rpartition(": ")[2]) == ("lost", "the connection broke off")


def test_a_recording_over_http_whose_key_frames_nobody_takes_for_long_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_clip(tmp_path / "clip.ts", pictures=120, key_interval=60)
    monkeypatch.setattr(reader, "KEYLESS_SECONDS", 0.5)
    monkeypatch.setattr(reader, "AHEAD_BYTES", 1)
    with WebServer(tmp_path, {}) as server, open_source(feed(server.url("/clip.ts"))) as source:
        packets = next(source.segments()).packets()
        began = [next(packets) for _ in range(10)]
        time.sleep(1)  # the time that the pictures take
        assert len(began + list(packets)) == 120


def test_a_live_stream_over_http_without_key_frames_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=200, key_interval=200).read_bytes()
    monkeypatch.setattr(reader, "KEYLESS_SECONDS", 0.5)

    def stream(handler: http.server.BaseHTTPRequestHandler) -> None:
        send(handler, 200, Content_Type="video/mp2t")
        for start in range(0, len(clip), len(clip) // 100):
            handler.wfile.write(clip[start : start + len(clip) // 100])
            time.sleep(0.02)

    with WebServer(tmp_path, {"/live": stream}) as server, open_source(feed(server.url("/live"))) as source:
        take(next(source.segments()), 200)
        with pytest.raises(SourceLost, match=r"no key frame for 0\.5 s"):
            next(source.segments())


def test_a_live_stream_over_http_is_not_paced(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=30).read_bytes()

    def stream(handler: http.server.BaseHTTPRequestHandler) -> None:
        send(handler, 200, Content_Type="video/mp2t")
        handler.wfile.write(clip)
        time.sleep(5)

    with WebServer(tmp_path, {"/live": stream}) as server, open_source(feed(server.url("/live"))) as source:
        segment = next(source.segments())
        assert not segment.recorded
        assert len(take(segment, 100)) >= 28
        with pytest.raises(SourceLost, match=r"no packet for 2 s") as lost:
            next(source.segments())
    assert lost.value.reason == "time-out"


def test_video_that_stops_while_data_goes_on_is_noticed(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=400, klv=True).read_bytes()
    packets = [clip[start : start + 188] for start in range(0, len(clip), 188)]
    data_pid = 0x101

    def stream(handler: http.server.BaseHTTPRequestHandler) -> None:
        send(handler, 200, Content_Type="video/mp2t")
        handler.wfile.write(b"".join(packets[: len(packets) // 10]))
        for packet in packets[len(packets) // 10 :]:
            if (packet[1] & 0x1F) << 8 | packet[2] == data_pid:
                handler.wfile.write(packet)
                time.sleep(0.01)

    with (
        WebServer(tmp_path, {"/live": stream}) as server,
        open_source(feed(server.url("/live"), read_timeout=0.5)) as source,
    ):
        packets_read = list(next(source.segments()).packets())
        with pytest.raises(SourceLost, match=r"packets come, but no video for 0.5 s") as lost:
            next(source.segments())
    assert lost.value.reason == "no video"
    assert sum(packet.kind == "data" for packet in packets_read) < 200, "long before the data ends"


def changing(folder: Path, **after: Any) -> Answer:
    """An answer whose video is something else after 20 pictures."""
    first = make_clip(folder / "first.ts", pictures=20).read_bytes()
    second = make_clip(folder / "second.ts", pictures=40, **after).read_bytes()

    def stream(handler: http.server.BaseHTTPRequestHandler) -> None:
        send(handler, 200, Content_Type="video/mp2t")
        handler.wfile.write(first)
        for start in range(0, len(second), 1316):
            handler.wfile.write(second[start : start + 1316])
            time.sleep(0.02)
        time.sleep(5)

    return stream


@pytest.mark.parametrize("codec", ["libx265", "mpeg4"])
def test_a_stream_over_http_whose_codec_changes_is_lost_at_once(tmp_path: Path, codec: str) -> None:
    with (
        WebServer(tmp_path, {"/live": changing(tmp_path, codec=codec)}) as server,
        open_source(feed(server.url("/live"))) as source,
    ):
        assert 18 <= len(take(next(source.segments()), 100)) <= 20
        with pytest.raises(SourceLost, match="its video has another codec now"):
            next(source.segments())


def test_a_stream_over_http_whose_video_moves_goes_on_and_its_reader_can_end(tmp_path: Path) -> None:
    with WebServer(tmp_path, {"/live": changing(tmp_path, first_pid=0x200)}) as server:
        with open_source(feed(server.url("/live"))) as source:
            assert len(take(next(source.segments()), 50)) == 50
        wait_until(lambda: not readers(), "the end of the reader")


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_stream_over_http_that_repeats_its_parameter_sets_goes_on(tmp_path: Path, codec: str) -> None:
    body = make_clip(tmp_path / "clip.flv", codec=codec, pictures=20).read_bytes()
    with (
        WebServer(tmp_path, {"/live": flv(body, body)}) as server,
        open_source(feed(server.url("/live"))) as source,
    ):
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        frames = [frame for unit in take(segment, 100) for frame in decoder.decode(unit)] + decoder.flush()
    assert (len(frames), decoder.lost) == (40, 0)


def test_a_stream_over_http_whose_parameter_sets_of_hevc_change_is_lost_at_once(tmp_path: Path) -> None:
    """FFmpeg goes on with the first ones."""
    first = make_clip(tmp_path / "first.flv", codec="libx265", pictures=20).read_bytes()
    second = make_clip(tmp_path / "second.flv", codec="libx265", pictures=20, size=(320, 240)).read_bytes()
    with (
        WebServer(tmp_path, {"/live": flv(first, second)}) as server,
        open_source(feed(server.url("/live"))) as source,
    ):
        assert len(take(next(source.segments()), 100)) == 20
        with pytest.raises(SourceLost, match="its video has another size or another profile now") as lost:
            next(source.segments())
    assert lost.value.reason == "lost"


def flv(first: bytes, second: bytes) -> Answer:
    """An answer of two streams in FLV, one behind the other."""
    header_bytes = 13

    def stream(handler: http.server.BaseHTTPRequestHandler) -> None:
        send(handler, 200, Content_Type="video/x-flv")
        handler.wfile.write(first + second[header_bytes:])

    return stream


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


def test_a_password_opens_a_stream_over_http(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=10).read_bytes()
    expected = "Basic " + b64encode(f"watch:{PASSWORD}".encode()).decode()

    def guarded(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.headers.get("Authorization") != expected:
            send(handler, 401, WWW_Authenticate='Basic realm="camera"')
            return
        send(handler, 200, Content_Length=str(len(clip)))
        handler.wfile.write(clip)

    password = tmp_path / "password"
    password.write_text(PASSWORD)
    with WebServer(tmp_path, {"/cam": guarded}) as server:
        assert why_lost(feed(server.url("/cam"))).reason == "unauthorised"
        assert len(read(feed(server.url("/cam"), username="watch", password_file=password), 5)) == 5


@pytest.mark.parametrize(
    ("status", "reason"), [(400, "refused"), (403, "unauthorised"), (404, "not found"), (500, "refused")]
)
def test_what_a_web_server_answers_is_told(tmp_path: Path, status: int, reason: str) -> None:
    with WebServer(tmp_path, {"/cam": lambda handler: send(handler, status)}) as server:
        assert why_lost(feed(server.url("/cam"))).reason == reason


def test_a_web_page_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html>" + "hello " * 10_000)
    with WebServer(tmp_path, {}) as server:
        lost = why_lost(feed(server.url("/page.html")))
    assert (lost.reason, str(lost)) == ("no video", f"{server.url('/page.html')}: what comes is nothing that is known")


def test_a_stream_is_read_over_tls_and_a_server_without_it_is_told(tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.ts", pictures=10)
    with WebServer(tmp_path, {}) as plain:
        lost = why_lost(feed(plain.url("/clip.ts", "https")))
        assert (lost.reason, lost.args[0].rpartition(": ")[2]) == ("refused", "the TLS connection fails")
    with over_tls(WebServer(tmp_path, {}), make_certificate(tmp_path)) as server:
        assert len(read(feed(server.url("/clip.ts", "https")), 5)) == 5


def test_a_server_must_be_vouched_for_where_that_is_asked(tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.ts", pictures=10)
    ours, others = tmp_path / "ours", tmp_path / "others"
    for folder in (ours, others):
        folder.mkdir()
        make_certificate(folder)
    with over_tls(WebServer(tmp_path, {}), ours / "server.pem") as server:
        url = server.url("/clip.ts", "https")
        assert len(read(feed(url, tls_ca_file=ours / "certificate.pem"), 5)) == 5
        lost = why_lost(feed(url, tls_ca_file=others / "certificate.pem"))
    assert (lost.reason, str(lost)) == ("refused", f"{url}: its certificate is not trusted: self-signed certificate")


def test_no_way_leads_round_the_check_of_certificates(tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.ts", pictures=50)
    certificate = make_certificate(tmp_path)
    with WebServer(tmp_path, {}) as plain:
        elsewhere = plain.url("/clip.ts")
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{elsewhere}\n#EXT-X-ENDLIST\n"
        (tmp_path / "list.m3u8").write_text(playlist)
        answers: dict[str, Answer] = {"/moved": lambda handler: send(handler, 302, Location=elsewhere)}
        with over_tls(WebServer(tmp_path, answers), certificate) as server:
            for path in ("/list.m3u8", "/moved"):
                url = server.url(path, "https")
                assert len(read(feed(url), 5)) == 5
                lost = why_lost(feed(url, tls_ca_file=tmp_path / "certificate.pem"))
                assert (lost.reason, str(lost).partition(": ")[2]) == (
                    "refused",
                    "it leads to a playlist, or to an address without TLS: tls_ca_file cannot be kept",
                )


@contextmanager
def forbidding_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the proxy that `http_proxy` names is asked for, in first lines; it answers that it forbids it."""
    asked = list[str]()

    def forbid(connection: socket.socket, _: threading.Event) -> None:
        with connection.makefile("rb") as lines:
            asked.append(next(lines).decode().strip())
            for line in lines:
                if line == b"\r\n":
                    break
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        connection.shutdown(socket.SHUT_RDWR)

    with Impostor(forbid) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        yield asked


@pytest.mark.parametrize(
    ("scheme", "checked", "line"),
    [
        ("http", False, "GET http://127.0.0.1:{port}/x HTTP/1.1"),
        ("https", False, "CONNECT 127.0.0.1:{port} HTTP/1.1"),
        ("https", True, "CONNECT 127.0.0.1:{port} HTTP/1.1"),
        ("rtsps", False, "CONNECT 127.0.0.1:{port} HTTP/1.1"),
    ],
)
def test_the_proxy_of_the_environment_is_asked_for_the_camera(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, checked: bool, line: str
) -> None:
    ca_file = make_certificate(tmp_path).with_name("certificate.pem") if checked else None
    with Impostor(hangs_up) as camera, forbidding_proxy(monkeypatch) as asked:
        settings = impatient(f"{scheme}://127.0.0.1:{camera.port}/x", tls_ca_file=ca_file)
        lost = why_lost(settings)
        assert (camera.accepted, asked[0]) == (0, line.format(port=camera.port))
        assert (lost.reason, str(lost).rpartition(": ")[2]) == ("unauthorised", "the server forbids it")
        asked.clear()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        why_lost(settings)
        assert camera.accepted > 0
        assert asked == []


@pytest.mark.parametrize(
    "target", ["file:///{}/clip.ts", "udp://127.0.0.1:9", "concat:{}/clip.ts", "httpproxy://127.0.0.1:9/host:9"]
)
def test_a_redirection_leads_to_the_web_only(tmp_path: Path, target: str) -> None:
    make_clip(tmp_path / "clip.ts", pictures=10)
    location = target.format(tmp_path)
    with WebServer(tmp_path, {"/cam": lambda handler: send(handler, 302, Location=location)}) as server:
        lost = why_lost(impatient(server.url("/cam")))
    assert lost.reason in ("refused", "lost", "no video", "not found")


# HLS


def make_playlist(
    folder: Path, *, segments: int = 4, ended: bool = False, codec: str = "libx264", fragments: bool = False
) -> Path:
    """An HLS playlist and its segments of 0.4 s each: transport streams, or fragments of MP4."""
    clip = make_clip(folder / "all.ts", codec=codec, pictures=10 * segments, key_interval=10)
    made = folder / "live.m3u8"
    options = {"hls_time": "0.4", "hls_list_size": "0", "hls_segment_filename": f"{folder}/part%d.ts"}
    if fragments:
        options |= {"hls_segment_type": "fmp4", "hls_segment_filename": f"{folder}/part%d.m4s"}
    with av.open(str(clip)) as source, av.open(str(made), "w", format="hls", options=options) as playlist:
        stream = playlist.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                playlist.mux(packet)
    if not ended:
        made.write_text(made.read_text().replace("#EXT-X-ENDLIST\n", ""))
    return made


def test_a_playlist_is_paced_and_begins_near_its_end(tmp_path: Path) -> None:
    make_playlist(tmp_path)
    with WebServer(tmp_path, {}) as server, open_source(feed(server.url("/live.m3u8"))) as source:
        segment = next(source.segments())
        assert segment.recorded
        assert segment.info.container == "hls"
        assert numbers(segment, 15)[0] == 20


def damaged_in(folder: Path) -> list[int]:
    """Which of the 40 access units of a playlist are marked as damaged."""
    with WebServer(folder, {}) as server, open_source(feed(server.url("/live.m3u8"), mode="replay")) as source:
        units = take(next(source.segments()), 50)
    assert len(units) == 40
    return [number for number, unit in enumerate(units) if unit.packet.is_corrupt]


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_damaged_access_unit_of_a_playlist_of_transport_streams_is_marked(tmp_path: Path, codec: str) -> None:
    make_playlist(tmp_path, ended=True, codec=codec)
    part = tmp_path / "part3.ts"
    data = part.read_bytes()
    middle_of_key_frame = 188 * 8
    part.write_bytes(data[:middle_of_key_frame] + data[middle_of_key_frame + 188 :])
    assert damaged_in(tmp_path) == [30]


def test_an_access_unit_that_is_cut_off_in_a_playlist_of_fragments_is_marked(tmp_path: Path) -> None:
    make_playlist(tmp_path, ended=True, codec="mpeg4", fragments=True)
    part = tmp_path / "part3.m4s"
    part.write_bytes(part.read_bytes()[:-50])
    assert damaged_in(tmp_path) == [39]


def test_a_playlist_cannot_read_files_of_this_machine(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "secret.ts", pictures=30)
    (tmp_path / "live.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{clip}\n#EXT-X-ENDLIST\n"
    )
    with WebServer(tmp_path, {}) as server:
        lost = why_lost(impatient(server.url("/live.m3u8")))
    assert lost.reason in ("refused", "lost", "no video", "time-out")


# RTP by an SDP file


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
        ("video", "FOO/90000", "codec", "its video has a codec that is not known here"),
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
