import time
from contextlib import ExitStack

import pytest
import zmq
import zmq.auth

from stream.errors import WireError
from stream.subscribe import Subscriber
from stream.wire.messages import ALL_FEEDS, Header, Numbering, encode_message
from tests.live import Live
from tests.published import Camera, relay
from tests.waiting import DEADLINE, wait_until


def test_pictures_arrive_in_order_from_a_key_frame_on() -> None:
    with relay() as publisher:
        camera = Camera(publisher)
        camera.show(3)
        with Subscriber(publisher.endpoint, "pier", max_age=3600) as subscriber:
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


def test_a_reader_that_did_not_read_gets_fresh_pictures_within_a_moment() -> None:
    with relay() as publisher, Subscriber(publisher.endpoint, "pier") as subscriber:
        assert publisher.wait_for_viewer("pier", DEADLINE)
        with Live(publisher) as feed:
            assert subscriber.receive(DEADLINE) is not None
            wait_until(lambda: subscriber.dropped.get("no key frame", 0) >= 25, "a second without a key frame")
            assert len(feed.keys) == 1, "for a reader that stands still no key frame is made"
            began = time.monotonic()
            message = subscriber.receive(DEADLINE)
            waited = time.monotonic() - began
    assert message is not None
    assert message.header.key
    assert (time.time_ns() - message.header.published_ns) / 1e9 < 1.0
    assert waited < 1.0


@pytest.mark.parametrize("feed", ["pier", None])
def test_a_key_frame_is_asked_for_by_subscribing_once_more_while_the_first_subscription_goes_on(
    feed: str | None,
) -> None:
    context: zmq.SyncContext = zmq.Context.instance()
    with context.socket(zmq.XPUB) as lossy:
        lossy.set(zmq.XPUB_VERBOSE, 1)
        lossy.set(zmq.RCVTIMEO, int(DEADLINE * 1000))
        port = lossy.bind_to_random_port("tcp://127.0.0.1")
        with Subscriber(f"tcp://127.0.0.1:{port}", feed) as subscriber:
            assert lossy.recv() == (b"\1pier/video/" if feed else b"\1")
            numbers = Numbering("video")

            def send(key: bool = False) -> None:
                stamped = numbers.stamp(Header(key=key), "run", "pier", time.time_ns())
                lossy.send_multipart(encode_message(b"pier/video/", stamped, b""))

            def is_asked_for() -> bool:
                send()
                return bool(lossy.poll(20))

            for _ in range(2):
                send(key=True)
                assert subscriber.receive(DEADLINE) is not None
                numbers._seq += 1  # a message is lost
                wait_until(is_asked_for, "a request")
                assert lossy.recv() == b"\1pier/video/"
                assert not lossy.poll(50), "no subscription has ended"


def test_one_lost_message_costs_a_round_trip_and_a_picture() -> None:
    with relay() as publisher, Subscriber(publisher.endpoint, "pier") as subscriber:
        assert publisher.wait_for_viewer("pier", DEADLINE)
        with Live(publisher) as feed:
            for _ in range(30):  # the relay makes one key frame a second, and the viewer has just joined
                assert subscriber.receive(DEADLINE) is not None
            with publisher._lock:
                publisher._sequences[b"pier/video/"].numbers._seq += 1
            moment = time.monotonic()
            while (message := subscriber.receive(DEADLINE)) is not None and not message.header.key:
                assert subscriber.lost == 0, "pictures after the hole refer to what is missing"
            waited = time.monotonic() - moment
    assert message is not None
    assert (subscriber.lost, len(feed.keys)) == (1, 2)
    assert waited < 0.5


def test_many_viewers_that_come_within_a_second_bring_one_key_frame_each_second_at_most() -> None:
    with relay() as publisher, ExitStack() as stack, Live(publisher) as feed:
        wait_until(lambda: feed.keys, "the feed")
        viewers = [stack.enter_context(Subscriber(publisher.endpoint, "pier")) for _ in range(10)]
        viewers += [stack.enter_context(Subscriber(publisher.endpoint)) for _ in range(10)]
        first = [viewer.receive(DEADLINE) for viewer in viewers]
        ended = time.monotonic()
    assert all(message and message.header.key for message in first)
    assert all(after - asked >= 1.0 for asked, after in zip(feed.asked[1:], feed.keys[2:], strict=False))
    assert len(feed.keys) - 1 <= 2 + (ended - feed.keys[0])


def test_at_one_picture_a_second_the_next_picture_is_the_key_frame() -> None:
    with relay() as publisher, Live(publisher, rate=1.0) as feed:
        wait_until(lambda: feed.keys, "the first picture")
        with Subscriber(publisher.endpoint, "pier", max_age=3600) as subscriber:
            message = subscriber.receive(DEADLINE)
    assert message is not None
    assert (message.header.key, subscriber.dropped) == (True, {})


def test_messages_of_a_kind_that_version_1_got_later_are_ignored() -> None:
    with relay() as publisher, Subscriber(publisher.endpoint) as subscriber:
        camera = Camera(publisher, "pier")
        camera.wait_for_viewer()
        assert publisher._socket is not None
        publisher._socket.send_multipart([b"pier/thermal/", b"", b""])
        camera.show()
        assert subscriber.receive(DEADLINE) is not None


def test_a_feed_with_a_wrong_name_is_refused() -> None:
    with pytest.raises(WireError, match="Pier/video/"):
        Subscriber("tcp://127.0.0.1:5560", "Pier")


def test_beside_the_kinds_of_one_feed_the_list_of_all_can_be_asked_for() -> None:
    with relay() as publisher, Subscriber(publisher.endpoint, "pier", ("status", "feeds")) as subscriber:
        assert publisher.wait_for_viewer("pier", DEADLINE)
        assert publisher.wait_for_viewer(ALL_FEEDS, DEADLINE)
        publisher.publish("gate", "status", Header(), b"not asked for")
        publisher.publish("pier", "status", Header(), b"of one")
        publisher.publish(ALL_FEEDS, "feeds", Header(), b"of all")
        messages = [subscriber.receive(DEADLINE) for _ in range(2)]
    assert [message and message.payload for message in messages] == [b"of one", b"of all"]
