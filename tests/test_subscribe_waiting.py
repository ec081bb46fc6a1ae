import subprocess
import sys
import threading
import time
from itertools import islice
from pathlib import Path

import pytest

from stream import subscribe
from stream.subscribe import Subscriber
from stream.wire.messages import Header, Message, decode_message
from tests.published import Camera, relay
from tests.waiting import DEADLINE, wait_until


def test_with_no_highest_age_the_socket_is_read_only_as_fast_as_the_reader_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscribe, "WAITING_MOST", 10)
    with relay(lossless=True) as publisher, Subscriber(publisher.endpoint, "pier", max_age=None) as subscriber:
        assert publisher.wait_for_viewer("pier", DEADLINE)
        sent: list[int] = []

        def publish() -> None:
            for number in range(2_000):
                publisher.publish("pier", "video", Header(key=number % 50 == 0), bytes(4_000))
                sent.append(number)

        thread = threading.Thread(target=publish)
        thread.start()
        wait_until(lambda: len(sent) > 20 and stands_still(sent), "the publisher's waiting")
        assert len(sent) < 1_000
        assert subscriber.received <= 11
        messages = islice(iter(lambda: subscriber.receive(DEADLINE), None), 2_000)
        numbers = [message.header.seq for message in messages]
        thread.join()
    assert numbers == list(range(2_000))
    assert (subscriber.lost, subscriber.dropped) == (0, {})


PAUSING_READER = """
import sys, time
from stream import subscribe
subscribe.HEARTBEAT_MS, subscribe.RELAY_LOST_MS, subscribe.WAITING_MOST = 200, 2_000, 5
with subscribe.Subscriber(sys.argv[1], "pier", max_age=None) as subscriber:
    subscriber.receive()
    time.sleep(3)
    while subscriber.received < 500 and subscriber.receive(30):
        pass
    print(subscriber.received, subscriber.lost)
"""


def test_a_reader_that_pauses_for_longer_than_a_relay_is_given_up_after_loses_nothing() -> None:
    with relay(lossless=True) as publisher:
        program = subprocess.Popen(
            [sys.executable, "-c", PAUSING_READER, publisher.endpoint],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        try:
            assert publisher.wait_for_viewer("pier", DEADLINE)
            for _ in range(500):
                publisher.publish("pier", "video", Header(key=True), bytes(4_000))
            output, _ = program.communicate(timeout=DEADLINE)
        finally:
            program.kill()
            program.communicate()
    assert (program.returncode, output) == (0, "500 0\n")


def stands_still(sent: list[int]) -> bool:
    before = len(sent)
    time.sleep(0.2)
    return len(sent) == before


def test_what_has_come_but_was_not_looked_at_is_the_readers_after_closing_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a busy machine, where a recorder is stopped before its thread has seen the last pictures."""
    looking, closed = threading.Event(), threading.Event()

    def slowly(parts: list[bytes]) -> Message:
        if threading.current_thread().name == "slow":
            looking.set()
            assert closed.wait(DEADLINE)
        return decode_message(parts)

    monkeypatch.setattr(subscribe, "decode_message", slowly)
    with relay() as publisher, Subscriber(publisher.endpoint, "pier", max_age=None) as subscriber:
        assert subscriber._thread is not None
        subscriber._thread.name = "slow"
        camera = Camera(publisher)
        camera.wait_for_viewer()
        with Subscriber(publisher.endpoint, "pier", max_age=None) as witness:
            camera.wait_for_viewer()
            camera.show(20)
            assert looking.wait(DEADLINE)
            wait_until(lambda: witness.received == 20, "all messages")
        subscriber.close()
        closed.set()
        assert [message.header.seq for message in subscriber] == list(range(20))


def test_a_subscriber_that_nobody_reads_can_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribe, "WAITING_MOST", 2)
    with relay() as publisher, Subscriber(publisher.endpoint, "pier", max_age=None) as subscriber:
        assert publisher.wait_for_viewer("pier", DEADLINE)
        for _ in range(50):
            publisher.publish("pier", "video", Header(key=True), b"")
        wait_until(lambda: subscriber.received == 2, "a full inbox")


def test_closing_from_another_thread_ends_the_readers_loop() -> None:
    with relay() as publisher, Subscriber(publisher.endpoint, "pier") as subscriber:
        read: list[object] = []
        reader = threading.Thread(target=lambda: read.extend(subscriber))
        reader.start()
        subscriber.close()
        reader.join(DEADLINE)
        assert not reader.is_alive()
        assert read == []


def test_what_waits_for_a_reader_who_wants_everything_is_his_after_closing_too() -> None:
    with relay() as publisher, Subscriber(publisher.endpoint, "pier", max_age=None) as subscriber:
        camera = Camera(publisher)
        camera.wait_for_viewer()
        camera.show(50)
        wait_until(lambda: subscriber.received == 50, "all messages")
        subscriber.close()
        assert [message.header.seq for message in subscriber] == list(range(50))
        assert subscriber.receive() is None
