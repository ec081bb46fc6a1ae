"""The simulated camera that is asked by RTSP, with FFmpeg as its viewer, and by hand."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import pytest

from engines.data.darken import Night
from stream.errors import SourceLost
from stream.simulator.camera import Codec, NightCamera
from stream.simulator.rtsp_camera import UNSENT, RtspCamera
from stream.source import open_source
from tests.clips import free_port, make_clip
from tests.reading import feed, nothing_left, numbers, take, why_lost
from tests.waiting import wait_until

BY_DAY = Night(exposure=1.0, photons=1e6, read_noise=0.0)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "clip.ts", pictures=250)


@contextmanager
def filming(clip: Path, codec: Codec = "h264", loss: float = 0.0) -> Iterator[str]:
    """A camera that films by day, at full size; its address."""
    url = f"rtsp://127.0.0.1:{free_port(socket.SOCK_STREAM)}/night"
    camera = NightCamera(
        clip, url, BY_DAY, size=(160, 120), bit_rate=2_000_000, codec=codec, loop=True, loss=loss, seed=3
    )
    begun = threading.Event()
    thread = threading.Thread(target=camera.run, args=(lambda _: begun.set(),))
    thread.start()
    try:
        assert begun.wait(10)
        yield url
    finally:
        camera.stop()
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("codec", ["h264", "hevc", "mpeg4"])
def test_every_picture_comes_in_order_over_either_transport(clip: Path, codec: Codec, transport: str) -> None:
    with nothing_left(), filming(clip, codec) as url:
        with open_source(feed(f"{url}/", transport=transport)) as source:
            segment = next(source.segments())
            seen = numbers(segment, 40)
        assert seen[:40] == [(seen[0] + number) % 250 for number in range(40)]
        assert segment.info.codec == codec
        assert segment.rate == 25


def test_two_viewers_see_the_same_and_one_that_leaves_is_not_missed(clip: Path) -> None:
    with filming(clip) as url, open_source(feed(url, transport="tcp")) as stays:
        staying = next(stays.segments())
        with open_source(feed(url, transport="udp")) as leaves:
            assert len(take(next(leaves.segments()), 5)) == 5
        assert len(take(staying, 60)) == 60


def test_packets_that_are_lost_are_missed_by_all(clip: Path) -> None:
    with filming(clip, loss=0.1) as url, open_source(feed(url, transport="tcp")) as source:
        units = take(next(source.segments()), 100)
    damaged = sum(unit.packet.is_corrupt for unit in units)
    assert 5 < damaged < 100


def test_another_path_is_not_found(clip: Path) -> None:
    with filming(clip) as url:
        assert why_lost(feed(f"{url}s")).reason == "not found"


def test_an_address_that_is_taken_is_told(clip: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"rtsp://127.0.0.1:{taken.getsockname()[1]}/night"
        with nothing_left(), pytest.raises(SourceLost, match=rf"^{url}: Address already in use$"):
            NightCamera(clip, url).run()


# By hand


class Talk:
    """A connection to a camera, for requests by hand."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.answers = self._socket.makefile("rb")

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.answers.close()
        self._socket.close()

    def ask(self, *lines: str) -> tuple[str, dict[str, str]]:
        """The status line and the headers of the answer; a body is passed over."""
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode())
        status = self.answers.readline().decode().strip()
        headers = {}
        while line := self.answers.readline().decode().strip():
            name, _, value = line.partition(": ")
            headers[name] = value
        self.answers.read(int(headers.get("Content-Length", 0)))
        return status, headers

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)


@contextmanager
def by_hand() -> Iterator[tuple[RtspCamera, Talk, str]]:
    """A camera that films nothing, and a connection to it."""
    port = free_port(socket.SOCK_STREAM)
    url = f"rtsp://127.0.0.1:{port}/night"
    with nothing_left(), RtspCamera(url, "h264", Fraction(25)) as camera, Talk(port) as talk:
        yield camera, talk, url


def packet(size: int = 1000, kind: int = 96) -> bytes:
    """One of RTP, or by another `kind` of RTCP."""
    return bytes([0x80, kind]) + bytes(size - 2)


def is_unwatched(camera: RtspCamera) -> bool:
    """Whether nobody gets the next packet."""
    before = camera.count
    camera.write(packet())
    return camera.count == before


def test_packets_come_inside_the_connection_on_the_channels_that_were_asked_for() -> None:
    with by_hand() as (camera, talk, url):
        setup = (f"SETUP {url}/video RTSP/1.0", "CSeq: 1", "Transport: RTP/AVP/TCP;unicast;interleaved=4-5")
        status, headers = talk.ask(*setup)
        assert (status, headers["CSeq"]) == ("RTSP/1.0 200 OK", "1")
        assert headers["Transport"] == "RTP/AVP/TCP;unicast;interleaved=4-5"
        talk.send(b"$\x05\x00\x03abc")  # a viewer's own report, which is passed over
        assert talk.ask(f"PLAY {url} RTSP/1.0", "CSeq: 2")[0] == "RTSP/1.0 200 OK"
        wait_until(lambda: camera.write(packet()) and camera.count > 0, "somebody who watches")
        camera.write(packet(60, kind=200))
        wanted = {4: packet(), 5: packet(60, kind=200)}
        seen: set[int] = set()
        while seen != {4, 5}:
            head = talk.answers.read(4)
            assert head[:1] == b"$"
            assert talk.answers.read(int.from_bytes(head[2:], "big")) == wanted[head[1]]
            seen.add(head[1])


def test_who_gets_nothing_over_udp_goes_on_inside_the_connection() -> None:
    with by_hand() as (camera, talk, url), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        port = udp.getsockname()[1]
        _, headers = talk.ask(f"SETUP {url}/video RTSP/1.0", f"Transport: RTP/AVP;unicast;client_port={port}-{port}")
        session = f"Session: {headers['Session']}"
        assert talk.ask(f"PLAY {url} RTSP/1.0", session)[0] == "RTSP/1.0 200 OK"
        wait_until(lambda: camera.write(packet()) and camera.count > 0, "somebody who watches")
        tcp = (f"SETUP {url}/video RTSP/1.0", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
        assert talk.ask(*tcp, session)[0] == "RTSP/1.0 455 Method Not Valid Here"
        assert talk.ask(f"SETUP {url}/video RTSP/1.0", "Transport: RTP/AVP;multicast")[0].endswith("Transport")
        assert udp.recv(2000) == packet()
        status, headers = talk.ask(*tcp)
        assert status == "RTSP/1.0 200 OK"
        assert is_unwatched(camera)  # the old session is over
        count = camera.count
        assert talk.ask(f"PLAY {url} RTSP/1.0", f"Session: {headers['Session']}")[0] == "RTSP/1.0 200 OK"
        wait_until(lambda: camera.write(packet()) and camera.count > count, "somebody who watches")
        assert talk.answers.read(4) == b"$\x00" + len(packet()).to_bytes(2, "big")


def test_a_viewer_that_pauses_gets_nothing_until_it_plays_again() -> None:
    with by_hand() as (camera, talk, url):
        talk.ask(f"SETUP {url}/video RTSP/1.0", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
        for count in (1, 2):
            assert talk.ask(f"PLAY {url} RTSP/1.0")[0] == "RTSP/1.0 200 OK"
            wait_until(lambda count=count: camera.write(packet()) and camera.count == count, "somebody who watches")
            assert talk.answers.read(4 + len(packet()))[:1] == b"$"
            assert talk.ask(f"PAUSE {url} RTSP/1.0")[0] == "RTSP/1.0 200 OK"
            assert is_unwatched(camera)


def test_the_session_of_somebody_else_is_not_found_and_the_own_goes_on() -> None:
    with by_hand() as (camera, talk, url):
        talk.ask(f"SETUP {url}/video RTSP/1.0", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
        for method in ("PLAY", "PAUSE", "GET_PARAMETER", "TEARDOWN"):
            assert talk.ask(f"{method} {url} RTSP/1.0", "Session: wrong")[0] == "RTSP/1.0 454 Session Not Found"
        assert talk.ask(f"PLAY {url} RTSP/1.0")[0] == "RTSP/1.0 200 OK"
        wait_until(lambda: camera.write(packet()) and camera.count > 0, "somebody who watches")


def test_the_body_of_a_request_is_no_request() -> None:
    with by_hand() as (_, talk, url):
        talk.send(f"GET_PARAMETER {url} RTSP/1.0\r\nContent-Length: 18\r\n\r\npackets_received\r\n".encode())
        assert talk.ask("OPTIONS * RTSP/1.0", "CSeq: 2")[0] == "RTSP/1.0 200 OK"  # to the request with a body
        status, headers = talk.ask("OPTIONS * RTSP/1.0", "CSeq: 3")
        assert (status, headers["CSeq"]) == ("RTSP/1.0 200 OK", "2")


def test_a_viewer_that_does_not_read_is_cut_off_and_holds_nobody_up() -> None:
    with by_hand() as (camera, talk, url):
        talk.ask(f"SETUP {url}/video RTSP/1.0", "CSeq: 1", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
        talk.ask(f"PLAY {url} RTSP/1.0", "CSeq: 2")
        wait_until(lambda: camera.write(packet()) and camera.count > 0, "somebody who watches")
        for _ in range(20 * UNSENT // 1000):
            camera.write(packet())
        wait_until(lambda: is_unwatched(camera), "the end of the connection")


def test_a_viewer_that_asks_and_does_not_read_is_cut_off_and_holds_nobody_up() -> None:
    with by_hand() as (camera, talk, url):
        talk.ask(f"SETUP {url}/video RTSP/1.0", "CSeq: 1", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
        talk.ask(f"PLAY {url} RTSP/1.0", "CSeq: 2")
        wait_until(lambda: camera.write(packet()) and camera.count > 0, "somebody who watches")
        questions = f"DESCRIBE {url} RTSP/1.0\r\nCSeq: 3\r\n\r\n".encode() * 200_000
        with pytest.raises(ConnectionError):
            talk.send(questions)
        wait_until(lambda: is_unwatched(camera), "the end of the connection")


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (("OPTIONS * RTSP/1.0",), "200 OK"),
        (("GET_PARAMETER * RTSP/1.0",), "200 OK"),
        (("DESCRIBE rtsp://127.0.0.1/other RTSP/1.0",), "404 Not Found"),
        (("SETUP rtsp://127.0.0.1/night/video RTSP/1.0", "Transport: RAW/RAW/UDP"), "461 Unsupported Transport"),
        (
            ("SETUP rtsp://127.0.0.1/night/video RTSP/1.0", "Transport: RTP/AVP;multicast;client_port=5000-5001"),
            "461 Unsupported Transport",
        ),
        (
            ("SETUP rtsp://127.0.0.1/night/video RTSP/1.0", "Transport: RTP/AVP;unicast;client_port=x"),
            "461 Unsupported Transport",
        ),
        (
            ("SETUP rtsp://127.0.0.1/night/video RTSP/1.0", "Transport: RTP/AVP/TCP;interleaved=255-256"),
            "461 Unsupported Transport",
        ),
        (("PLAY rtsp://127.0.0.1/night RTSP/1.0",), "454 Session Not Found"),
        (("RECORD rtsp://127.0.0.1/night RTSP/1.0",), "501 Not Implemented"),
        (("GET / HTTP/1.1",), "400 Bad Request"),
        (("DESCRIBE rtsp://[ RTSP/1.0",), "400 Bad Request"),
        (("\xff\xfe",), "400 Bad Request"),
    ],
)
def test_a_request_is_answered_with(lines: tuple[str, ...], status: str) -> None:
    with by_hand() as (_, talk, _url):
        told, headers = talk.ask(lines[0], "CSeq: 7", *lines[1:])
    assert (told, headers["CSeq"]) == (f"RTSP/1.0 {status}", "7")


@pytest.mark.parametrize(
    "endless",
    [
        b"OPTIONS * RTSP/1.0\r\nX: " + b"a" * 5000,
        b"a" * 5000,
        b"X: a\r\n" * 100,
        b"OPTIONS * RTSP/1.0\r\nContent-Length: 9000\r\n\r\n",
    ],
)
def test_who_sends_without_an_end_is_not_listened_to(endless: bytes) -> None:
    with by_hand() as (_, talk, _url):
        talk.send(endless)
        with suppress(ConnectionResetError):
            assert talk.answers.read() == b""
