import pytest

from stream.wire.inbox import Inbox
from tests.inbox_feed import FRAME, SECOND, Feed, add_in_time


def test_a_hole_asks_for_a_key_frame_once_a_second_until_it_has_come() -> None:
    inbox = Inbox(max_age=0.5)
    asked = []
    for message in Feed(keys_every=90).take(120):
        number = message.header.seq
        if number == 30:
            continue
        if inbox.add(message, number * FRAME):
            asked.append(number)
        inbox.take(number * FRAME)
    assert asked == [31, 56, 81]


def test_requests_for_key_frames_become_rarer_while_they_do_not_help_for_long() -> None:
    """Each time a picture goes missing one second after pictures have begun again."""
    inbox, feed = Inbox(max_age=0.5), Feed(keys_every=10_000)
    inbox.add(feed.next(), 0)
    pauses, now, asked_at, begun_at = [], 0, 0, 0
    for _ in range(6):
        while now - begun_at < SECOND:
            now += FRAME
            assert not inbox.add(feed.next(), now)
            inbox.take(now)
        feed.numbers._seq += 1  # a message is lost
        while not inbox.add(feed.next(), now := now + FRAME):
            inbox.take(now)
        pauses.append((now - asked_at) / SECOND)
        asked_at = now
        inbox.add(feed.next(key=True), now := now + FRAME)
        begun_at = now
    assert pauses == pytest.approx([1, 2, 4, 8, 8, 8], abs=0.1)


def test_a_quiet_spell_makes_the_next_request_come_at_once_again() -> None:
    inbox, feed = Inbox(max_age=0.5), Feed(keys_every=10_000)
    inbox.add(feed.next(), 0)
    now, waits = 0, []
    for seconds in (1, 1, 1, 6, 6, 1):
        for _ in range(seconds * 25):
            inbox.add(feed.next(), now := now + FRAME)
            inbox.take(now)
        feed.numbers._seq += 1  # a message is lost
        lost_at = now
        while not inbox.add(feed.next(), now := now + FRAME):
            inbox.take(now)
        waits.append((now - lost_at) / SECOND)
        inbox.add(feed.next(key=True), now := now + FRAME)
    assert waits == pytest.approx([0, 1, 3, 0, 0, 1], abs=0.15)


def test_who_has_just_joined_or_found_a_new_relay_does_not_ask_again_at_once() -> None:
    inbox = Inbox(max_age=0.5)
    now = 0
    for relay in ("run-1", "run-2"):
        for message in Feed(relay, keys_every=1000).take(45)[20:]:
            now += FRAME
            assert not inbox.add(message, now), "subscribing has asked for one already"
        now += FRAME
    inbox.begin_anew(now)
    assert not inbox.add(Feed("run-2", keys_every=1000).take(46)[45], now + FRAME)


def test_late_messages_ask_for_a_key_frame_at_once() -> None:
    inbox = Inbox(max_age=0.5)
    messages = Feed(keys_every=1000).take(80)
    add_in_time(inbox, messages[:40])
    inbox.take(39 * FRAME)
    assert [inbox.add(message, 80 * FRAME) for message in messages[40:60]] == [True] + [False] * 19


def test_for_a_reader_that_stands_still_nobody_asks_until_it_reads_again() -> None:
    inbox = Inbox(max_age=0.5)
    feed = Feed(keys_every=1000)
    messages = feed.take(200)
    asked = [inbox.add(message, message.header.seq * FRAME) for message in messages]
    assert not any(asked)
    assert inbox.take(199 * FRAME) is None
    assert inbox.add(feed.next(), 200 * FRAME)


def test_only_the_relays_own_pictures_are_asked_for() -> None:
    for kind in ("source", "data"):
        inbox = Inbox(max_age=0.5)
        messages = Feed(kind=kind, keys_every=1000).take(80)  # type: ignore[arg-type]
        assert not any(inbox.add(message, message.header.seq * FRAME) for message in messages[:30] + messages[50:])
