"""Viewers that send more than a viewer has to say; they speak ZMTP (ZeroMQ RFC 23) by hand."""

from __future__ import annotations

import errno
import logging
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from socket import AF_UNIX, MSG_WAITALL, SO_LINGER, SOL_SOCKET, create_connection, create_server, socket, socketpair

import pytest
import zmq

from stream.publish import Publisher
from stream.settings import RelaySettings
from stream.subscribe import Subscriber
from stream.wire import bouncer
from stream.wire.messages import Header
from tests.command import ROOT
from tests.waiting import wait_until

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
READY = b"\x04\x19\x05READY\x0bSocket-Type" + struct.pack(">I", 3) + b"SUB"
PING = b"\x04\x0b\x04PING\x00\x00ctxt"
ABORTING = struct.pack("ii", 1, 0)
"""A connection that is closed with this is reset."""


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with Publisher(RelaySettings(endpoint="tcp://127.0.0.1:*"), "run") as publisher:
        yield publisher


def connected(publisher: Publisher) -> socket:
    host, _, port = publisher.endpoint.removeprefix("tcp://").rpartition(":")
    return create_connection((host, int(port)))


@contextmanager
def subscriber(publisher: Publisher) -> Iterator[socket]:
    """One that has shaken hands."""
    with connected(publisher) as viewer:
        shake_hands(viewer)
        yield viewer


def shake_hands(viewer: socket) -> None:
    """Return when libzmq has answered: what is sent then comes behind the handshake."""
    viewer.sendall(GREETING + READY)
    answer = b""
    while b"READY" not in answer:
        answer += viewer.recv(1024)


def wait_until_looked_at(publisher: Publisher, guests: int) -> None:
    """That so many connections are there, and that each was looked at twice since they were."""
    watching = publisher._bouncer
    assert watching is not None
    wait_until(lambda: len(watching._connections) == guests, "the guests")
    began = time.monotonic()
    wait_until(
        lambda: all(guest.looked - began > bouncer.LOOK_SECONDS for guest in list(watching._connections.values())),
        "two looks at each of them",
    )


def is_cut_off(viewer: socket) -> bool:
    viewer.settimeout(0.05)
    try:
        while viewer.recv(65_536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def subscription(prefix: bytes) -> bytes:
    body = b"\x01" + prefix
    return bytes([0, len(body)]) + body


def key_frame_request(topic: bytes) -> bytes:
    """Subscribing once more and unsubscribing again, as libzmq 4.3.5 writes it."""
    commands = b"\x09SUBSCRIBE" + topic, b"\x06CANCEL" + topic
    return b"".join(bytes([4, len(body)]) + body for body in commands)


def flood(viewer: socket, length: int) -> None:
    """A million subscriptions."""
    for _ in range(1000):
        viewer.sendall(b"".join(subscription(os.urandom(length)) for _ in range(1000)))


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


RESET_WHILE_FULL = """
import sys, time
from stream.publish import Publisher
from stream.settings import RelaySettings
from stream.wire.messages import Header
with Publisher(RelaySettings(endpoint="tcp://127.0.0.1:*"), "run") as publisher:
    print(publisher.endpoint, flush=True)
    for line in sys.stdin:
        time.sleep(0.1)  # while libzmq takes in what was sent
        publisher.take_join("pier")
        publisher.publish("pier", "video", Header(), bytes(20000))
        print("alive", flush=True)
"""


def test_a_viewer_that_fills_the_inlet_and_resets_its_connection_does_not_end_the_process() -> None:
    """libzmq 4.3.5 gives up on an assertion where a message stands behind a full inlet."""
    program = subprocess.Popen(
        [sys.executable, "-c", RESET_WHILE_FULL],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with program:
        assert program.stdin is not None
        assert program.stdout is not None
        host, _, port = program.stdout.readline().strip().removeprefix("tcp://").rpartition(":")
        for _ in range(5):
            with create_connection((host, int(port))) as viewer:
                shake_hands(viewer)
                viewer.sendall(b"\x00\x01\x01" * 1002 + PING)
                time.sleep(0.003)  # so that libzmq has begun to read when the reset comes; part of the attack
                viewer.setsockopt(SOL_SOCKET, SO_LINGER, ABORTING)
            program.stdin.write("go on\n")
            program.stdin.flush()
            assert program.stdout.readline() == "alive\n"
        program.stdin.close()
    assert program.returncode == 0


@pytest.mark.parametrize("length", [12, 70, 200])
def test_a_viewer_that_subscribes_without_an_end_is_cut_off_and_the_others_go_on(
    publisher: Publisher, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    viewer = Subscriber(publisher.endpoint, "pier", ("video",), max_age=3600)
    with viewer as healthy, subscriber(publisher) as flooding:
        wait_until(lambda: publisher.take_join("pier"), "the healthy viewer")
        flooding.settimeout(30)
        with pytest.raises(OSError):  # noqa: PT011 - it is reset, or the pipe is broken
            flood(flooding, length)
        for number in range(3):
            publisher.publish("pier", "video", Header(key=not number), b"picture")
        assert [healthy.receive(30) is not None for _ in range(3)] == [True] * 3
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told.startswith("1 viewers were cut off; the last one at 127.0.0.1: it sent ")


def test_a_viewer_with_many_subscriptions_is_let_be(publisher: Publisher) -> None:
    with subscriber(publisher) as viewer:
        viewer.sendall(b"".join(subscription(b"feed%d/video/" % number) for number in range(600)))
        wait_until(lambda: publisher.take_join("feed599"), "the last subscription")
        wait_until_looked_at(publisher, 1)
        assert not is_cut_off(viewer)


def longest_topics(first: int, count: int) -> bytes:
    """Subscriptions to topics of feeds with the longest names."""
    return b"".join(subscription(b"%064d/video/" % number) for number in range(first, first + count))


def test_a_viewer_that_subscribes_to_ever_other_topics_is_cut_off_however_slowly_it_does(
    publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    with subscriber(publisher) as viewer, subscriber(publisher) as other:
        viewer.sendall(longest_topics(0, 600))
        wait_until(lambda: publisher.take_join(f"{599:064}"), "the last subscription")
        viewer.sendall(longest_topics(598, 1) * 100)
        viewer.sendall(subscription(b"pier/video/"))
        wait_until(lambda: publisher.take_join("pier"), "what came after it had asked for more key frames")
        wait_until_looked_at(publisher, 2)
        assert not is_cut_off(viewer)
        other.sendall(longest_topics(600, 100))
        viewer.sendall(longest_topics(600, 100))
        wait_until(lambda: publisher.take_join("quay") or is_cut_off(viewer), "its end")
        wait_until(lambda: not publisher.wait_for_viewer("pier", 0), "what it subscribed to being freed")
        assert not is_cut_off(other)
    assert "it subscribed to 637 different topics" in caplog.text


def test_a_viewer_of_zeromq_3_that_subscribes_to_ever_other_topics_is_cut_off_and_no_newer_one(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It speaks ZMTP 2.0: libzmq does not say whose subscriptions those are."""
    monkeypatch.setattr(bouncer, "SUBSCRIBED_MOST", 8_192)
    with subscriber(publisher) as newer, connected(publisher) as older:
        newer.sendall(subscription(b"pier/video/") * 1_000)
        older.sendall(b"\xff" + bytes(8) + b"\x7f\x01\x02" + bytes(2))
        older.sendall(longest_topics(0, 100))
        wait_until(lambda: publisher.take_join(f"{99:064}"), "the last subscription")
        wait_until_looked_at(publisher, 2)
        assert not is_cut_off(older)
        older.sendall(longest_topics(100, 20))
        wait_until(lambda: publisher.take_join("quay") or is_cut_off(older), "its end")
        assert not is_cut_off(newer)


def test_a_viewer_of_zeromq_2_which_subscribes_to_nothing_by_name_gets_everything(publisher: Publisher) -> None:
    """Its subscription is libzmq's own, of which that does not say whose it is."""
    with connected(publisher) as viewer:
        viewer.sendall(b"\x01\x00")  # the greeting of ZMTP 1.0
        wait_until(lambda: publisher.take_join("pier"), "the viewer")
        publisher.publish("pier", "video", Header(key=True), b"picture")
        came = b""
        while b"picture" not in came:
            came += viewer.recv(1024)


def test_a_viewer_that_goes_on_sending_more_than_a_viewer_has_to_say_is_cut_off(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bouncer, "BURST", 8_192)
    with subscriber(publisher) as viewer, subscriber(publisher) as asking:
        began, sent, asked = time.monotonic(), 0, 0

        def is_over() -> bool:
            nonlocal sent, asked
            seconds = time.monotonic() - began
            due = int(14_000 * seconds) // len(PING)
            if asked < int(10 * seconds):  # ten feeds each tenth of a second, and no more to make up for a delay
                asking.sendall(b"".join(key_frame_request(b"cam%02d/video/" % number) for number in range(10)))
                asked += 1
            with suppress(OSError):
                viewer.sendall(PING * (due - sent))
            sent = due
            return is_cut_off(viewer)

        wait_until(is_over, "its end")
        wait_until(lambda: is_over() and asked >= 25, "ten kilobytes of requests")
        assert not is_cut_off(asking)


def test_viewers_beyond_a_share_of_the_files_are_cut_off_newest_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (40, 40))
    with ExitStack() as stack:
        publisher = stack.enter_context(Publisher(RelaySettings(endpoint="tcp://127.0.0.1:*"), "run"))
        guests = [stack.enter_context(connected(publisher)) for _ in range(10)]
        wait_until_looked_at(publisher, 10)
        assert not any(is_cut_off(guest) for guest in guests)
        late = stack.enter_context(connected(publisher))
        wait_until(lambda: is_cut_off(late), "the end of the eleventh")
        assert not any(is_cut_off(guest) for guest in guests)
        guests[0].close()
        wait_until_looked_at(publisher, 9)
        another = stack.enter_context(connected(publisher))
        wait_until_looked_at(publisher, 10)
        assert not is_cut_off(another)
    assert "more than 10 viewers" in caplog.text


@contextmanager
def no_file_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Inside the block the process may open no more files; tells of what a copy was wanted."""
    wanted: list[int] = []

    def refuse(number: int) -> int:
        wanted.append(number)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr("os.dup", refuse)
        yield wanted


def test_a_viewer_that_could_not_be_looked_at_for_a_while_is_watched_again(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subscriber(publisher) as flooding:
        wait_until_looked_at(publisher, 1)
        with no_file_left(monkeypatch) as wanted:
            wait_until(lambda: len(wanted) >= 2, "two looks in vain")
            assert not is_cut_off(flooding)
        wait_until_looked_at(publisher, 1)
        flooding.sendall(b"".join(subscription(os.urandom(200)) for _ in range(1000)))
        wait_until(lambda: is_cut_off(flooding), "the end of the viewer")


def test_a_viewer_beyond_the_share_that_could_not_be_cut_off_at_once_is_cut_off_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (4, 4))
    with ExitStack() as stack:
        publisher = stack.enter_context(Publisher(RelaySettings(endpoint="tcp://127.0.0.1:*"), "run"))
        guest = stack.enter_context(subscriber(publisher))
        wait_until_looked_at(publisher, 1)
        with no_file_left(monkeypatch) as wanted:
            late = stack.enter_context(subscriber(publisher))
            wait_until(lambda: len(set(wanted)) == 2 and len(wanted) >= 4, "looks in vain at both")
            assert not is_cut_off(late)
        wait_until(lambda: is_cut_off(late), "the end of the second")
        wait_until_looked_at(publisher, 1)
        assert not is_cut_off(guest)


def test_what_has_taken_the_place_of_a_viewer_that_has_gone_is_left_alone(publisher: Publisher, tmp_path: Path) -> None:
    watching = publisher._bouncer
    assert watching is not None
    with ExitStack() as stack:
        server = stack.enter_context(create_server(("127.0.0.1", 0)))
        camera = stack.enter_context(create_connection(server.getsockname()))
        sender, _ = server.accept()
        stack.enter_context(sender)
        received = threading.Thread(target=lambda: camera.recv(200_000, MSG_WAITALL))
        received.start()
        sender.sendall(bytes(200_000))
        received.join()
        others = [camera, *socketpair(AF_UNIX), (tmp_path / "file").open("w")]
        for other in others:
            stack.enter_context(other)
        before = open_files()
        for other in others:
            watching._note(zmq.EVENT_ACCEPTED, other.fileno(), publisher.endpoint.encode())
        wait_until(lambda: not watching._connections, "the bouncer to see that these are no viewers")
        assert open_files() == before
        sender.sendall(b"more")
        assert camera.recv(4) == b"more"


def test_the_end_of_a_publisher_leaves_no_thread_and_no_file(publisher: Publisher) -> None:
    publisher.__exit__(None, None, None)
    before = open_files()
    with Publisher(RelaySettings(endpoint="tcp://127.0.0.1:*"), "run"):
        pass
    wait_until(lambda: open_files() <= before, "the end of all files")
    assert not [thread for thread in threading.enumerate() if thread.name == "nightbridge-bouncer"]
