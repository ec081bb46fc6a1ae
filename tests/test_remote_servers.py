from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream.source import opener_of
from stream.sources.remote import PLAYLIST_SECONDS, ways_to
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
from tests.reading import feed, nothing_left, readers, why_lost
from tests.waiting import wait_until
from tests.web_server import CANNOT_BE_LOOKED_UP, PATIENCE, impatient


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
    assert str(lost).endswith("/x: the server closed the connection instead of playing")


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
