import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import zmq
import zmq.auth

from stream.errors import WireError
from stream.publish import Publisher
from stream.settings import CurveSettings, RelaySettings
from stream.subscribe import Subscriber, ViewerKeys
from stream.wire import Header
from tests.published import Camera, relay
from tests.waiting import DEADLINE, wait_until


def test_pictures_arrive_in_order_from_a_key_frame_on() -> None:
    with relay() as publisher:
        camera = Camera(publisher)
        camera.show(3)
        with Subscriber(publisher.endpoint, "pier") as subscriber:
            camera.wait_for_viewer()
            camera.show(25)
            messages = [subscriber.receive(DEADLINE) for _ in range(18)]
    numbers = [message.header.seq for message in messages if message]
    assert numbers == list(range(10, 28))
    assert messages[0] is not None
    assert messages[0].header.key
    assert (subscriber.lost, subscriber.received) == (0, 25)
    assert subscriber.dropped == {"no key frame": 7}
    assert subscriber.states == {"clean": 25}


def test_a_new_viewer_sees_a_picture_at_once_since_the_encoder_begins_a_key_frame() -> None:
    with relay() as publisher:
        camera = Camera(publisher, key_interval=1000.0)
        camera.show(5)
        with Subscriber(publisher.endpoint, "pier") as subscriber:
            message = None
            end = time.monotonic() + DEADLINE
            while message is None and time.monotonic() < end:
                camera.show()
                message = subscriber.receive(0.05)
        assert message is not None
        assert message.header.key
        assert message.header.gop == 2


def test_nothing_within_the_time_is_none() -> None:
    with relay() as publisher, Subscriber(publisher.endpoint, "pier") as subscriber:
        start = time.monotonic()
        assert subscriber.receive(0.1) is None
        assert 0.1 <= time.monotonic() - start < DEADLINE


def test_without_a_feed_all_feeds_arrive_and_only_the_kinds_asked_for() -> None:
    with relay() as publisher, Subscriber(publisher.endpoint, kinds=("video", "status")) as subscriber:
        wait_until(lambda: publisher.take_join("pier"), "the viewer")
        for feed in ("pier", "quay"):
            publisher.publish(feed, "data", Header(), b"data")
            publisher.publish(feed, "video", Header(key=True), b"unit")
            publisher.publish(feed, "status", Header(), b"state")
        messages = [subscriber.receive(DEADLINE) for _ in range(4)]
        assert [(message.header.feed, message.kind) for message in messages if message] == [
            ("pier", "video"),
            ("pier", "status"),
            ("quay", "video"),
            ("quay", "status"),
        ]
        assert subscriber.receive(0) is None


def test_a_relay_that_restarts_is_found_again_by_itself_and_is_no_hole() -> None:
    with relay("run-1") as publisher:
        endpoint = publisher.endpoint
        subscriber = Subscriber(endpoint, "pier").__enter__()
        camera = Camera(publisher)
        camera.wait_for_viewer()
        camera.show(4)
        first = [subscriber.receive(DEADLINE) for _ in range(4)]
    with relay("run-2", endpoint) as publisher:
        camera = Camera(publisher)
        camera.wait_for_viewer()
        camera.show(4)
        second = [subscriber.receive(DEADLINE) for _ in range(4)]
    subscriber.__exit__(None, None, None)
    assert [(m.header.relay, m.header.seq) for m in first + second if m] == [
        (run, seq) for run in ("run-1", "run-2") for seq in range(4)
    ]
    assert subscriber.lost == 0


def test_a_subscriber_may_come_before_its_relay() -> None:
    with relay() as publisher:
        endpoint = publisher.endpoint
    with Subscriber(endpoint, "pier") as subscriber, relay("run-2", endpoint) as publisher:
        camera = Camera(publisher)
        camera.wait_for_viewer()
        camera.show()
        assert subscriber.receive(DEADLINE) is not None


def test_what_the_publisher_could_not_keep_is_counted_as_lost_and_skipped_to_a_key_frame() -> None:
    context: zmq.SyncContext = zmq.Context.instance()
    with relay() as publisher, context.socket(zmq.XPUB) as lossy, context.socket(zmq.SUB) as tap:
        tap.set(zmq.RCVTIMEO, int(DEADLINE * 1000))
        tap.subscribe(b"")
        tap.connect(publisher.endpoint)
        port = lossy.bind_to_random_port("tcp://127.0.0.1")
        with Subscriber(f"tcp://127.0.0.1:{port}", "pier") as subscriber:
            assert lossy.recv() == b"\1pier/video/"
            camera = Camera(publisher)
            camera.wait_for_viewer()
            camera.show(22)
            for number in range(22):
                parts = tap.recv_multipart()
                if number not in (13, 14):
                    lossy.send_multipart(parts)
            numbers: list[int] = []
            while len(numbers) < 15:
                message = subscriber.receive(DEADLINE)
                assert message is not None
                numbers.append(message.header.seq)
    assert numbers == [*range(13), 20, 21]
    assert subscriber.lost == 2
    assert subscriber.dropped == {"no key frame": 5}


PROGRAM = """
import sys
from stream.subscribe import Subscriber
with Subscriber(sys.argv[1], "pier", max_age=0.5) as subscriber:
    for message in subscriber:
        print(message.header.seq, message.header.key, flush=True)
"""


def test_a_viewer_that_was_stopped_shows_fresh_pictures_when_it_goes_on() -> None:
    with relay(high_water_mark=16) as publisher:
        camera = Camera(publisher)
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, publisher.endpoint],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        assert program.stdout is not None
        lines = program.stdout
        try:
            camera.wait_for_viewer()
            camera.show(5)
            assert [lines.readline().split()[0] for _ in range(5)] == ["0", "1", "2", "3", "4"]
            program.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            while time.monotonic() - stopped < 1.5:  # longer than the age that the viewer allows
                camera.show(2)
                time.sleep(0.02)
            fresh_from = camera.shown
            program.send_signal(signal.SIGCONT)

            shown: list[tuple[int, bool]] = []

            def read() -> None:
                for line in lines:
                    number, key = line.split()
                    shown.append((int(number), key == "True"))

            reader = threading.Thread(target=read)
            reader.start()

            def caught_up() -> bool:
                camera.show()
                return bool(shown) and shown[-1][0] >= fresh_from

            wait_until(caught_up, "a fresh picture")
        finally:
            program.kill()
            program.wait()
        reader.join()
        lines.close()
    number, key = shown[0]
    assert key
    assert fresh_from - number < 50, "the first picture after the stall is seconds old"


def test_closing_from_another_thread_ends_the_readers_loop() -> None:
    with relay() as publisher, Subscriber(publisher.endpoint, "pier") as subscriber:
        read: list[object] = []
        reader = threading.Thread(target=lambda: read.extend(subscriber))
        reader.start()
        subscriber.close()
        reader.join(DEADLINE)
        assert not reader.is_alive()
        assert read == []


def test_a_relay_of_another_version_ends_the_reader_with_its_number() -> None:
    context: zmq.SyncContext = zmq.Context.instance()
    with context.socket(zmq.XPUB) as foreign:
        port = foreign.bind_to_random_port("tcp://127.0.0.1")
        with Subscriber(f"tcp://127.0.0.1:{port}", "pier") as subscriber:
            assert foreign.recv() == b"\1pier/video/"
            foreign.send_multipart([b"pier/video/", b"\x81\xa1v\x02", b""])
            with pytest.raises(WireError, match="wire version 2"):
                subscriber.receive(DEADLINE)


def test_messages_of_a_kind_that_version_1_got_later_are_ignored() -> None:
    with relay() as publisher, Subscriber(publisher.endpoint) as subscriber:
        camera = Camera(publisher, "pier")
        camera.wait_for_viewer()
        assert publisher._socket is not None
        publisher._socket.send_multipart([b"pier/thermal/", b"", b""])
        camera.show()
        assert subscriber.receive(DEADLINE) is not None


def test_a_receiver_that_fails_ends_its_reader_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with relay() as publisher, Subscriber(publisher.endpoint) as subscriber:

        def add(*arguments: object) -> None:
            raise ArithmeticError("on purpose")

        monkeypatch.setattr(subscriber._inbox, "add", add)
        camera = Camera(publisher, "pier")
        camera.wait_for_viewer()
        camera.show()
        with pytest.raises(ArithmeticError, match="on purpose"):
            subscriber.receive(DEADLINE)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:5560", "tcp://127.0.0.1", "http://127.0.0.1:5560", "", "tcp://*:x"])
def test_an_endpoint_that_cannot_be_used_is_named(endpoint: str) -> None:
    with pytest.raises(WireError, match="an endpoint looks like tcp://HOST:PORT"):
        Subscriber(endpoint).__enter__()


def test_a_feed_with_a_wrong_name_is_refused() -> None:
    with pytest.raises(WireError, match="Pier/video/"):
        Subscriber("tcp://127.0.0.1:5560", "Pier")


def test_with_its_keys_a_viewer_reads_an_encrypted_relay(tmp_path: Path) -> None:
    for name in ("relay", "guest"):
        zmq.auth.create_certificates(tmp_path, name)
    curve = CurveSettings(server_secret_key_file=tmp_path / "relay.key_secret", client_keys_folder=tmp_path)
    keys = ViewerKeys(tmp_path / "relay.key", tmp_path / "guest.key_secret")
    with (
        Publisher(RelaySettings(endpoint="tcp://127.0.0.1:*", curve=curve), "run-1") as publisher,
        Subscriber(publisher.endpoint, "pier", keys=keys) as subscriber,
    ):
        camera = Camera(publisher)
        camera.wait_for_viewer()
        camera.show()
        assert subscriber.receive(DEADLINE) is not None
    with pytest.raises(WireError, match=r"guest\.key holds no secret key"):
        Subscriber(publisher.endpoint, keys=ViewerKeys(tmp_path / "relay.key", tmp_path / "guest.key")).__enter__()


def test_opening_and_closing_leaves_nothing_behind() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with relay() as publisher:
        with Subscriber(publisher.endpoint, "pier"):
            wait_until(lambda: publisher.take_join("pier"), "the viewer")
        before, threads = descriptors(), threading.active_count()
        for _ in range(10):
            with Subscriber(publisher.endpoint, "pier"):
                pass
        wait_until(lambda: descriptors() <= before, "closing every socket")
        assert threading.active_count() == threads
