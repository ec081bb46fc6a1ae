import threading
import time

from stream.publish import Publisher
from stream.settings import RelaySettings
from stream.wire.messages import Header, Kind
from tests.sockets import ANYWHERE, receive, viewer, wait_for_join
from tests.waiting import DEADLINE, wait_until


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
