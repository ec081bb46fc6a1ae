import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import pytest

from stream import publish
from stream.errors import WireError
from stream.publish import Publisher
from stream.settings import RelaySettings
from stream.subscribe import Subscriber
from stream.wire.messages import Header
from tests.link import thin_link
from tests.live import Viewer
from tests.sockets import ANYWHERE, receive, viewer, wait_for_join
from tests.waiting import DEADLINE, takes_less_than, wait_until

SLOW_READER = """
import sys, time
from stream.subscribe import Subscriber
with Subscriber(sys.argv[1], "pier", ("video", "data"), max_age=None) as subscriber:
    while (message := subscriber.receive(30)) is not None and message.payload != b"end":
        time.sleep(0.0005)
        print(message.kind, message.header.seq, flush=True)
"""


@contextmanager
def slow_reader(publisher: Publisher) -> Iterator[subprocess.Popen[str]]:
    """A reader in a process of its own, which prints what it gets."""
    program = subprocess.Popen(
        [sys.executable, "-c", SLOW_READER, publisher.endpoint],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    try:
        assert publisher.wait_for_viewer("pier", DEADLINE)
        yield program
    finally:
        program.kill()
        program.communicate()


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_a_lossless_publisher_loses_nothing_however_slow_its_reader(transport: str, tmp_path: Path) -> None:
    settings = ANYWHERE if transport == "tcp" else RelaySettings(endpoint=f"ipc://{tmp_path}/wire")
    with Publisher(settings, "run-1", lossless=True) as publisher, slow_reader(publisher) as reader:
        waits = 0.0
        for number in range(2_000):
            before = time.monotonic()
            publisher.publish("pier", "video", Header(key=number % 50 == 0), bytes(20_000))
            publisher.publish("pier", "data", Header(), b"data")
            waits = max(waits, time.monotonic() - before)
        publisher.publish("pier", "data", Header(), b"end")
        publisher.__exit__(None, None, None)
        output, _ = reader.communicate(timeout=DEADLINE)
    lines = output.splitlines()
    for kind in ("video", "data"):
        assert [line for line in lines if line.startswith(kind)] == [f"{kind} {seq}" for seq in range(2_000)]
    assert waits > publish.ROOM_INTERVAL, "the publisher never had to wait: this test proves nothing"


def wait_until_it_stands(sent: list[int]) -> None:
    """Return once nothing more is added for a while."""
    before = -1
    while not sent or before != len(sent):
        before = len(sent)
        time.sleep(0.2)


@contextmanager
def full(prefix: bytes) -> Iterator[tuple[Publisher, SimpleQueue[int | WireError]]]:
    """A lossless publisher in which another thread waits for a viewer that does not read; what becomes of it."""
    told: SimpleQueue[int | WireError] = SimpleQueue()
    settings = RelaySettings(endpoint="tcp://127.0.0.1:*", stop_timeout=0.1)
    with (
        Publisher(settings, "run-1", lossless=True) as publisher,
        viewer(publisher, prefix, rcvhwm=1, rcvbuf=4096),
    ):
        assert publisher.wait_for_viewer("pier", DEADLINE)
        sent: list[int] = []

        def publish_until_the_end() -> None:
            try:
                while len(sent) < 2_000:
                    sent.append(publisher.publish("pier", "video", Header(), bytes(100_000)))
                told.put(len(sent))
            except WireError as error:
                told.put(error)

        thread = threading.Thread(target=publish_until_the_end)
        thread.start()
        wait_until_it_stands(sent)
        try:
            yield publisher, told
        finally:
            publisher.__exit__(None, None, None)
            thread.join()


def test_a_lossless_publisher_that_waits_ends_when_it_is_closed() -> None:
    with full(b"pier/video/") as (publisher, told):
        start = time.monotonic()
        publisher.__exit__(None, None, None)
        error = told.get(timeout=DEADLINE)
    assert isinstance(error, WireError)
    assert "closed" in str(error)
    assert time.monotonic() - start < DEADLINE


def test_a_message_that_waited_for_room_says_when_it_left() -> None:
    with (
        Publisher(ANYWHERE, "run-1", lossless=True) as publisher,
        viewer(publisher, b"pier/", rcvhwm=1, rcvbuf=4096) as socket,
    ):
        wait_for_join(publisher, "pier")
        sent: list[int] = []

        def publish_all() -> None:
            while len(sent) < 100:
                sent.append(publisher.publish("pier", "video", Header(), bytes(100_000)))

        thread = threading.Thread(target=publish_all)
        thread.start()
        wait_until_it_stands(sent)
        waiting, since_ns = len(sent), time.time_ns()
        headers = [receive(socket).header for _ in range(100)]
        thread.join()
    assert headers[waiting].published_ns >= since_ns


def test_a_reader_that_goes_on_late_gets_what_a_lossless_publisher_left_it() -> None:
    settings = RelaySettings(endpoint="tcp://127.0.0.1:*", stop_timeout=DEADLINE)
    with (
        Publisher(settings, "run-1", lossless=True) as publisher,
        viewer(publisher, b"pier/", rcvhwm=1, rcvbuf=4096) as socket,
    ):
        wait_for_join(publisher, "pier")
        for _ in range(8):
            publisher.publish("pier", "video", Header(), bytes(100_000))
        ending = threading.Thread(target=publisher.__exit__, args=(None, None, None))
        ending.start()
        ending.join(2 * publish.LINGER_MS / 1000)
        assert [receive(socket).header.seq for _ in range(8)] == list(range(8))
        ending.join(DEADLINE)
        assert not ending.is_alive()


@pytest.mark.parametrize("linger", [0.1, DEADLINE])
def test_over_a_thin_link_the_last_messages_have_as_long_as_a_lossless_publisher_is_told(linger: float) -> None:
    settings = RelaySettings(endpoint="tcp://127.0.0.1:*", send_buffer=4096, stop_timeout=0.1)
    with (
        Publisher(settings, "run-1", lossless=True) as publisher,
        thin_link(publisher.endpoint, octets_per_second=300_000) as endpoint,
        Subscriber(endpoint, "pier", max_age=None) as subscriber,
    ):
        assert publisher.wait_for_viewer("pier", DEADLINE)
        for number in range(8):
            publisher.publish("pier", "video", Header(key=not number), bytes(60_000))
        assert publisher.linger == 0.1
        publisher.linger = linger
        publisher.__exit__(None, None, None)
        seen: list[int] = []
        while len(seen) < 8 and (message := subscriber.receive(1.0)):
            seen.append(message.header.seq)
    assert (seen == list(range(8))) is (linger == DEADLINE)


def test_a_viewer_that_takes_nothing_of_the_last_messages_does_not_use_up_the_time_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publish, "PATIENCE", 0.5)
    with Publisher(ANYWHERE, "run-1", lossless=True) as publisher, Viewer(publisher.endpoint) as stopped:
        assert publisher.wait_for_viewer("pier", DEADLINE)
        stopped.process.send_signal(signal.SIGSTOP)
        for _ in range(8):
            publisher.publish("pier", "video", Header(key=True), bytes(300_000))
        publisher.linger = 2 * DEADLINE
        start = time.monotonic()
        publisher.__exit__(None, None, None)
        assert time.monotonic() - start < DEADLINE


def test_while_a_lossless_publisher_waits_for_one_feed_the_others_go_on() -> None:
    with full(b"pier/video/") as (publisher, _), viewer(publisher, b"quay/") as other:
        assert publisher.wait_for_viewer("quay", DEADLINE)
        start = time.monotonic()
        assert publisher.take_join("quay")
        for number in range(100):
            assert publisher.publish("quay", "video", Header(), bytes(1_000)) == number
            assert receive(other).header.seq == number
        assert time.monotonic() - start < 5.0


def test_the_status_waits_for_nobody() -> None:
    with full(b"pier/") as (publisher, _):

        def seconds_to_tell() -> float:
            start = time.monotonic()
            publisher.publish("pier", "status", Header(), b"")
            return time.monotonic() - start

        assert takes_less_than(1.0, seconds_to_tell)


def test_a_slow_reader_of_a_lossless_publisher_takes_neither_the_status_from_others_nor_loses_pictures_by_it() -> None:
    ended, numbers = threading.Event(), list[int]()
    with (
        Publisher(ANYWHERE, "run-1", lossless=True) as publisher,
        viewer(publisher, b"pier/", rcvhwm=1, rcvbuf=4096) as slow,
        Subscriber(publisher.endpoint, "pier", ("status",), max_age=None) as other,
    ):
        wait_until(lambda: publisher.wait_for_viewer("pier", 0) and publisher._joins._count == 2, "both viewers")

        def publish_pictures() -> None:
            while not ended.is_set():
                publisher.publish("pier", "video", Header(key=True), bytes(50_000))
            publisher.publish("pier", "data", Header(), b"end")

        def read_slowly() -> None:
            while (message := receive(slow)).kind != "data":
                numbers.extend([message.header.seq] if message.kind == "video" else [])
                ended.wait(0.03)

        threads = [threading.Thread(target=each) for each in (publish_pictures, read_slowly)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(numbers) >= 10, "pictures")
        for _ in range(30):
            publisher.publish("pier", "status", Header(), b"\x80")
        publisher.publish("pier", "status", Header(), b"\x80")
        ended.set()
        for thread in threads:
            thread.join(DEADLINE)
        assert other.receive(DEADLINE) is not None
        wait_until(lambda: other.received > 10, "most statuses")
    assert numbers == list(range(len(numbers)))


def test_a_lossless_publisher_goes_on_when_the_reader_that_it_waits_for_is_killed() -> None:
    with (
        Publisher(ANYWHERE, "run-1", lossless=True) as publisher,
        slow_reader(publisher) as stopped,
        slow_reader(publisher) as reader,
    ):
        wait_until(
            lambda: publisher.wait_for_viewer("pier", 0) and publisher._joins._count == 4, "both topics of both readers"
        )
        stopped.send_signal(signal.SIGSTOP)
        sent: list[int] = []

        def publish_all() -> None:
            for number in range(600):
                publisher.publish("pier", "video", Header(key=True), bytes(50_000))
                sent.append(number)

        thread = threading.Thread(target=publish_all)
        thread.start()
        wait_until_it_stands(sent)
        assert len(sent) < 50, "it keeps 8 messages for the stopped reader, and no more"
        stopped.kill()
        thread.join(DEADLINE)
        assert not thread.is_alive()
        publisher.publish("pier", "data", Header(), b"end")
        publisher.__exit__(None, None, None)
        output, _ = reader.communicate(timeout=DEADLINE)
    assert output.split()[1::2] == [str(seq) for seq in range(600)]


def test_a_reader_that_takes_nothing_for_too_long_loses_messages_and_no_other_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publish, "PATIENCE", 0.5)
    monkeypatch.setattr(publish, "drop_lost_viewers", lambda *_: None)  # as where ipc is the transport
    with full(b"pier/video/") as (_, told):
        assert told.get(timeout=DEADLINE) == 2_000
