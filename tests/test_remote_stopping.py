from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from stream.source import open_source, opener_of
from stream.sources import reader
from tests.clips import make_clip
from tests.impostors import (
    Impostor,
    is_mute,
)
from tests.reading import feed, nothing_left, readers, why_lost
from tests.waiting import DEADLINE, takes_less_than, wait_until
from tests.web_server import CANNOT_BE_LOOKED_UP, PATIENCE


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
    assert words == ["no packet for 0.3 s", "the previous connection attempt is still blocked"]


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
