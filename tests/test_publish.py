import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from queue import SimpleQueue

import pytest
import zmq
import zmq.auth

from stream import publish
from stream.errors import WireError
from stream.publish import Joins, Publisher
from stream.settings import RelaySettings
from stream.subscribe import Subscriber
from stream.wire.messages import Header, Kind, Message, decode_message
from tests.link import thin_link
from tests.live import Viewer
from tests.published import relay
from tests.waiting import DEADLINE, takes_less_than, wait_until

ANYWHERE = RelaySettings(endpoint="tcp://127.0.0.1:*")


@contextmanager
def viewer(publisher: Publisher, *prefixes: bytes, **options: object) -> Iterator[zmq.SyncSocket]:
    context: zmq.SyncContext = zmq.Context.instance()
    with context.socket(zmq.SUB) as socket:
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RCVTIMEO, int(DEADLINE * 1000))
        for name, value in options.items():
            setattr(socket, name, value)
        for prefix in prefixes:
            socket.subscribe(prefix)
        socket.connect(publisher.endpoint)
        yield socket


def wait_for_join(publisher: Publisher, feed: str) -> None:
    wait_until(lambda: publisher.take_join(feed), f"a viewer of {feed}")


def receive(socket: zmq.SyncSocket) -> Message:
    return decode_message(socket.recv_multipart())


def test_a_message_arrives_with_what_the_publisher_adds() -> None:
    with Publisher(ANYWHERE, "run-7") as publisher, viewer(publisher, b"pier/video/") as socket:
        wait_for_join(publisher, "pier")
        before = time.time_ns()
        assert publisher.publish("pier", "video", Header(key=True, codec="h264"), b"unit") == 0
        message = receive(socket)
    assert (message.kind, message.payload) == ("video", b"unit")
    header = message.header
    assert (header.v, header.relay, header.feed, header.seq, header.gop, header.au) == (1, "run-7", "pier", 0, 1, 0)
    assert (header.key, header.codec) == (True, "h264")
    assert before <= header.published_ns <= time.time_ns()


def test_every_topic_is_numbered_for_itself() -> None:
    with Publisher(ANYWHERE, "run-1") as publisher:
        topics: list[tuple[str, Kind]] = [("pier", "video"), ("pier", "source"), ("quay", "video"), ("pier", "video")]
        numbers = [publisher.publish(feed, kind, Header(), b"") for feed, kind in topics]
    assert numbers == [0, 0, 0, 1]


def test_a_viewer_gets_what_it_subscribed_to_and_not_feeds_with_like_names() -> None:
    with Publisher(ANYWHERE, "run-1") as publisher, viewer(publisher, b"cam1/video/") as socket:
        wait_for_join(publisher, "cam1")
        publisher.publish("cam10", "video", Header(), b"cam10")
        publisher.publish("cam1", "data", Header(), b"data")
        publisher.publish("cam1", "video", Header(), b"cam1")
        assert receive(socket).payload == b"cam1"


def test_a_stalled_viewer_costs_the_relay_and_other_viewers_nothing() -> None:
    with (
        Publisher(ANYWHERE, "run-1") as publisher,
        viewer(publisher, b"pier/video/", rcvhwm=1),
        viewer(publisher, b"quay/video/") as reading,
    ):
        wait_for_join(publisher, "pier")
        wait_for_join(publisher, "quay")
        taken = []
        for number in range(400):
            start = time.monotonic()
            publisher.publish("pier", "video", Header(), bytes(20_000))
            publisher.publish("quay", "video", Header(), bytes(20_000))
            taken.append(time.monotonic() - start)
            assert receive(reading).header.seq == number
    assert sorted(taken)[-3] < 1.0, "a busy machine holds up two at most"


def test_a_stalled_viewer_is_kept_no_more_than_the_high_water_mark() -> None:
    settings = RelaySettings(endpoint="tcp://127.0.0.1:*", high_water_mark=4)
    with (
        Publisher(settings, "run-1") as publisher,
        viewer(publisher, b"pier/video/", rcvhwm=1, rcvbuf=65_536) as socket,
    ):
        wait_for_join(publisher, "pier")
        for _ in range(1000):
            publisher.publish("pier", "video", Header(), bytes(20_000))
        kept = 0
        while socket.poll(500):
            receive(socket)
            kept += 1
    assert 0 < kept < 100


def test_any_thread_may_publish() -> None:
    with Publisher(ANYWHERE, "run-1") as publisher, viewer(publisher, b"pier/"):
        wait_for_join(publisher, "pier")
        numbers: list[int] = []

        def publish_many() -> None:
            numbers.extend([publisher.publish("pier", "video", Header(), bytes(1000)) for _ in range(500)])

        threads = [threading.Thread(target=publish_many) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
    assert sorted(numbers) == list(range(2000))


def test_a_viewer_that_comes_makes_its_feed_begin_a_key_frame_once() -> None:
    with Publisher(ANYWHERE, "run-1") as publisher:
        assert not publisher.take_join("pier")
        with viewer(publisher, b"pier/video/"):
            wait_for_join(publisher, "pier")
            assert not publisher.take_join("pier")
            assert not publisher.take_join("quay")


def test_a_second_viewer_of_the_same_feed_is_heard_too() -> None:
    with Publisher(ANYWHERE, "run-1") as publisher, viewer(publisher, b"pier/video/"):
        wait_for_join(publisher, "pier")
        with viewer(publisher, b"pier/video/"):
            wait_for_join(publisher, "pier")


def test_key_frames_for_viewers_are_a_second_apart() -> None:
    joins = Joins(interval=1.0)
    joins.add(b"\1pier/video/")
    assert joins.take(b"pier/video/", 10.0)
    joins.add(b"\1pier/video/")
    joins.add(b"\1pier/video/")
    assert not joins.take(b"pier/video/", 10.9)
    assert joins.take(b"pier/video/", 11.0)
    assert not joins.take(b"pier/video/", 20.0)


def test_who_asks_for_key_frames_without_an_end_gets_one_in_two_seconds_until_a_quiet_spell() -> None:
    joins = Joins(interval=1.0)

    def taken(first: int, last: int) -> list[int]:
        """The seconds with a key frame, where one is asked for ten times a second."""
        seconds = []
        for number in range(10 * first, 10 * last):
            joins.add(b"\1pier/video/")
            if joins.take(b"pier/video/", number / 10):
                seconds.append(number // 10)
        return seconds

    assert taken(100, 112) == [100, 101, 102, 103, 104, 106, 108, 110]
    joins.add(b"\1quay/")
    assert joins.take(b"quay/video/", 111.0), "another feed has its own"
    assert taken(118, 124) == [118, 119, 120, 121, 122]


def test_one_feed_does_not_use_up_anothers_key_frame() -> None:
    joins = Joins(interval=1.0)
    joins.add(b"\1")
    assert joins.take(b"pier/video/", 10.0)
    assert joins.take(b"quay/video/", 10.0)


@pytest.mark.parametrize(
    ("prefix", "matches"),
    [
        (b"", True),
        (b"p", True),
        (b"pier/", True),
        (b"pier/video/", True),
        (b"pier/data/", False),
        (b"pier/video/x", False),
    ],
)
def test_a_subscription_counts_where_it_matches_the_enhanced_pictures(prefix: bytes, matches: bool) -> None:
    joins = Joins(interval=1.0)
    joins.add(b"\1" + prefix)
    assert joins.take(b"pier/video/", 10.0) is matches


@pytest.mark.parametrize(
    ("prefix", "matches"),
    [
        (b"", True),
        (b"pier", True),
        (b"pier/", True),
        (b"pier/video/", True),
        (b"*", True),
        (b"*/feeds/", True),
        (b"a" * 65, False),
        (b"Pier/", False),
        (b"-pier", False),
        (b"/video/", False),
        (b"pier/thermal/", False),
        (b"pier/video/x", False),
        (b"\xff", False),
    ],
)
def test_a_subscription_that_no_topic_can_match_is_not_remembered(prefix: bytes, matches: bool) -> None:
    joins = Joins(interval=1.0)
    joins.add(b"\1" + prefix)
    assert joins._subscribed == ({prefix: 1} if matches else {})


def test_where_more_is_subscribed_to_than_is_remembered_a_viewer_still_gets_its_key_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publish, "SUBSCRIPTIONS_KEPT", 3)
    joins = Joins(interval=1.0)
    for feed in (b"one/", b"two/", b"three/"):
        joins.add(b"\1" + feed)
    assert not joins.take(b"pier/video/", 10.0)
    joins.add(b"\1pier/video/")
    assert joins.take(b"pier/video/", 10.0)
    assert not joins.take(b"pier/video/", 20.0)
    assert joins.has_any(b"pier/")


def test_viewers_that_left_and_what_is_no_subscription_count_nothing() -> None:
    joins = Joins(interval=1.0)
    for event in (b"\1pier/video/", b"\0pier/video/", b"\0never", b"", b"pier/video/"):
        joins.add(event)
    assert not joins.take(b"pier/video/", 10.0)


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:*", "ipc://{folder}/wire"])
def test_an_address_that_is_taken_is_named(tmp_path: Path, endpoint: str) -> None:
    with Publisher(RelaySettings(endpoint=endpoint.format(folder=tmp_path)), "run-1") as first:
        taken = RelaySettings(endpoint=first.endpoint)
        with (
            pytest.raises(WireError, match=f"cannot publish at {first.endpoint}: Address already in use"),
            Publisher(taken, "run-2"),
        ):
            pass


def test_a_file_in_place_of_a_socket_is_refused_and_stays(tmp_path: Path) -> None:
    mission = tmp_path / "mission.mp4"
    mission.write_text("pictures")
    settings = RelaySettings(endpoint=f"ipc://{mission}")
    with (
        pytest.raises(WireError, match=r"ipc://.*mission\.mp4: what is there is no socket"),
        Publisher(settings, "run"),
    ):
        pass
    assert mission.read_text() == "pictures"


def test_a_socket_that_a_killed_relay_left_is_no_hindrance(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / "wire"))
    with Publisher(RelaySettings(endpoint=f"ipc://{tmp_path}/wire"), "run") as publisher:
        assert publisher.endpoint == f"ipc://{tmp_path}/wire"


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(WireError, match=r"cannot publish at tcp://203\.0\.113\.1:5560"):
        Publisher(RelaySettings(endpoint="tcp://203.0.113.1:5560"), "run-1").__enter__()


def test_a_closed_publisher_says_so_and_frees_its_address() -> None:
    with Publisher(ANYWHERE, "run-1") as publisher:
        endpoint = publisher.endpoint
    with pytest.raises(WireError, match="closed"):
        publisher.publish("pier", "video", Header(), b"")
    with pytest.raises(WireError, match="closed"):
        publisher.take_join("pier")

    with relay("run-2", endpoint) as again:
        assert again.endpoint == endpoint


def test_the_last_messages_still_arrive_after_the_publisher_has_closed() -> None:
    with Publisher(ANYWHERE, "run-1") as publisher, viewer(publisher, b"pier/") as socket:
        wait_for_join(publisher, "pier")
        for _ in range(10):
            publisher.publish("pier", "video", Header(), bytes(20_000))
        publisher.__exit__(None, None, None)
        assert [receive(socket).header.seq for _ in range(10)] == list(range(10))


def test_a_viewer_that_takes_nothing_does_not_hold_up_the_end() -> None:
    with Publisher(ANYWHERE, "run-1") as publisher, viewer(publisher, b"pier/", rcvhwm=1, rcvbuf=65_536):
        wait_for_join(publisher, "pier")
        for _ in range(100):
            publisher.publish("pier", "video", Header(), bytes(100_000))
        ending = threading.Thread(target=publisher.__exit__, args=(None, None, None))
        ending.start()
        ending.join(10.0)
        assert not ending.is_alive()


def test_a_stopped_viewer_that_takes_nothing_is_cut_off_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "VIEWER_LOST", 1.0)
    with Publisher(ANYWHERE, "run-1") as publisher, Viewer(publisher.endpoint) as stopped:
        assert publisher.wait_for_viewer("pier", DEADLINE)
        stopped.process.send_signal(signal.SIGSTOP)

        def is_forgotten() -> bool:
            publisher.publish("pier", "video", Header(), bytes(50_000))
            return not publisher.wait_for_viewer("pier", 0)

        wait_until(is_forgotten, "cutting off the viewer")


def test_a_viewer_is_waited_for() -> None:
    with Publisher(ANYWHERE, "run-1") as publisher:
        assert not publisher.wait_for_viewer("pier", 0)
        start = time.monotonic()
        assert not publisher.wait_for_viewer("pier", 0.1)
        assert 0.1 <= time.monotonic() - start < DEADLINE
        with viewer(publisher, b"pier/data/"):
            assert publisher.wait_for_viewer("pier", DEADLINE)
            assert not publisher.wait_for_viewer("quay", 0)
            assert not publisher.take_join("pier"), "who wants data alone needs no key frame"
        with viewer(publisher, b""):
            assert publisher.wait_for_viewer("quay", DEADLINE)
            assert publisher.take_join("quay"), "waiting for a viewer takes no key frame from it"
        wait_until(lambda: not publisher.wait_for_viewer("quay", 0), "leaving")


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
    monkeypatch.setattr(publish, "notice_lost_viewers", lambda *_: None)  # as where ipc is the transport
    with full(b"pier/video/") as (_, told):
        assert told.get(timeout=DEADLINE) == 2_000


PUBLISH_AND_END = """
import sys, time
from stream.publish import Publisher
from stream.settings import RelaySettings
from stream.wire.messages import Header
with Publisher(RelaySettings(endpoint="tcp://127.0.0.1:*"), "run", lossless=sys.argv[1] == "lossless") as publisher:
    print(publisher.endpoint, flush=True)
    publisher.wait_for_viewer("pier", 30)
    for number in range(50):
        publisher.publish("pier", "video", Header(key=True), bytes(100_000))
"""


@pytest.mark.parametrize("manner", ["live", "lossless"])
def test_the_last_messages_leave_before_the_process_ends(manner: str) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PUBLISH_AND_END, manner],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert program.stdout is not None
    with program.stdout, Subscriber(program.stdout.readline().strip(), "pier", max_age=None) as subscriber:
        seen = [message.header.seq for message in islice(iter(lambda: subscriber.receive(DEADLINE), None), 50)]
        assert program.wait(DEADLINE) == 0
    assert seen == list(range(50))


def test_opening_and_closing_leaves_nothing_behind() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with Publisher(ANYWHERE, "run-0") as publisher, viewer(publisher, b""):
        pass  # what all of them share has been opened
    before, threads = descriptors(), threading.active_count()
    for run in range(20):
        with Publisher(ANYWHERE, f"run-{run}") as publisher, viewer(publisher, b""):
            wait_for_join(publisher, "pier")
    wait_until(lambda: descriptors() <= before, "closing every socket")
    wait_until(lambda: threading.active_count() <= threads, "the end of all threads")


def test_a_viewer_that_sends_more_than_a_subscription_is_cut_off() -> None:
    with Publisher(ANYWHERE, "run-1") as publisher, viewer(publisher, b"pier/") as other:
        assert publisher.wait_for_viewer("pier", DEADLINE)
        host, _, port = publisher.endpoint.removeprefix("tcp://").partition(":")
        with socket.create_connection((host, int(port)), DEADLINE) as rude:
            rude.sendall(b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00NULL" + bytes(48))
            ready = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 3) + b"SUB"
            rude.sendall(b"\x04" + bytes([len(ready)]) + ready)
            rude.sendall(b"\x02" + struct.pack(">Q", 400_000_000) + bytes(1000))
            while rude.recv(1 << 16):
                pass
        publisher.publish("pier", "video", Header(key=True), bytes(100_000))
        assert len(receive(other).payload) == 100_000


def test_a_flood_of_subscriptions_is_forgotten_rather_than_kept() -> None:
    joins = Joins(interval=1.0)
    joins.add(b"\1pier/video/")
    assert joins.take(b"pier/video/", 0.0)
    for number in range(publish.SUBSCRIPTIONS_KEPT + 1000):
        joins.add(b"\1" + str(number).encode())
    assert len(joins._subscribed) == publish.SUBSCRIPTIONS_KEPT
    joins.add(b"\1pier/video/")
    assert joins.take(b"pier/video/", 1.0)
