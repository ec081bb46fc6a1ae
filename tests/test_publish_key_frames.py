import socket
import struct

import pytest

from stream import publish
from stream.publish import Joins, Publisher
from stream.wire.messages import Header
from tests.sockets import ANYWHERE, receive, viewer, wait_for_join
from tests.waiting import DEADLINE


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
