from dataclasses import replace
from itertools import count, cycle, pairwise

import msgspec
import pytest

from stream.wire.inbox import Inbox, Lateness
from stream.wire.messages import Header, Kind, Message, Numbering

SECOND = 1_000_000_000
FRAME = 40_000_000
"""Nanoseconds between pictures."""


class Feed:
    """Makes the messages of a feed, one each 40 ms; the sender's clock is far from the receiver's."""

    def __init__(self, relay: str = "run-1", name: str = "pier", kind: Kind = "video", keys_every: int = 10) -> None:
        self._relay, self._name, self._kind, self._keys_every = relay, name, kind, keys_every
        self.numbers = Numbering(kind)
        self._places = count()

    def next(self, key: bool = False) -> Message:
        place = next(self._places)
        key = key or (self._kind != "data" and place % self._keys_every == 0)
        header = Header(key=key, state="clean")
        published_ns = 77 * SECOND + place * FRAME
        return Message(self._kind, self.numbers.stamp(header, self._relay, self._name, published_ns), b"")

    def take(self, amount: int) -> list[Message]:
        return [self.next() for _ in range(amount)]


def read_all(inbox: Inbox, now_ns: int) -> list[int]:
    """Numbers of everything that waits."""
    numbers = []
    while (message := inbox.take(now_ns)) is not None:
        numbers.append(message.header.seq)
    return numbers


def add_in_time(inbox: Inbox, messages: list[Message]) -> int:
    """Add each message at its own pace; tells the time of the last."""
    for message in messages:
        inbox.add(message, message.header.seq * FRAME)
    return messages[-1].header.seq * FRAME


def test_messages_come_out_in_order() -> None:
    inbox = Inbox(max_age=1)
    now = add_in_time(inbox, Feed().take(5))
    assert read_all(inbox, now) == [0, 1, 2, 3, 4]
    assert (inbox.received, inbox.lost, dict(inbox.dropped), dict(inbox.states)) == (5, 0, {}, {"clean": 5})


def test_a_late_joiner_begins_with_a_key_frame() -> None:
    inbox = Inbox(max_age=1)
    now = add_in_time(inbox, Feed().take(12)[7:])
    assert read_all(inbox, now) == [10, 11]
    assert inbox.lost == 0
    assert inbox.dropped == {"no key frame": 3}


def test_after_a_hole_pictures_begin_again_at_the_next_key_frame() -> None:
    inbox = Inbox(max_age=2)
    messages = Feed().take(22)
    now = add_in_time(inbox, messages[:3] + messages[5:])
    assert read_all(inbox, now) == [0, 1, 2, *range(10, 22)]
    assert inbox.lost == 2
    assert inbox.dropped == {"no key frame": 5}


def test_a_source_that_begins_anew_without_a_key_frame_is_no_hole_and_begins_again_with_the_next() -> None:
    inbox, feed = Inbox(max_age=2), Feed(kind="source")
    messages = feed.take(3)
    feed.numbers.begin_anew()
    now = add_in_time(inbox, messages + feed.take(9))
    assert read_all(inbox, now) == [0, 1, 2, 10, 11]
    assert inbox.lost == 0
    assert inbox.dropped == {"no key frame": 7}


def test_a_hole_right_before_a_key_frame_costs_nothing_more() -> None:
    inbox = Inbox(max_age=2)
    messages = Feed().take(12)
    now = add_in_time(inbox, messages[:9] + messages[10:])
    assert read_all(inbox, now) == [*range(9), 10, 11]


def test_a_relay_that_begins_anew_is_no_hole() -> None:
    inbox = Inbox(max_age=2)
    for relay in ("run-1", "run-2"):
        now = add_in_time(inbox, Feed(relay).take(3))
    assert read_all(inbox, now) == [0, 1, 2, 0, 1, 2]
    assert inbox.lost == 0


def test_a_new_relay_is_shown_from_its_first_key_frame() -> None:
    inbox = Inbox(max_age=2)
    now = add_in_time(inbox, Feed("run-1").take(3))
    now = add_in_time(inbox, Feed("run-2").take(12)[8:])
    assert read_all(inbox, now) == [0, 1, 2, 10, 11]
    assert inbox.lost == 0


def test_a_new_relay_whose_numbers_happen_to_go_on_is_a_new_start_all_the_same() -> None:
    inbox = Inbox(max_age=2)
    add_in_time(inbox, Feed("run-1").take(3))
    now = add_in_time(inbox, Feed("run-2").take(12)[3:])
    assert read_all(inbox, now) == [0, 1, 2, 10, 11]


def test_holes_of_one_feed_do_not_touch_another() -> None:
    inbox = Inbox(max_age=2)
    near, far = Feed(name="near").take(4), Feed(name="far").take(4)
    for message in (near[0], far[0], near[2], far[1], near[3], far[2]):
        inbox.add(message, 0)
    assert read_all(inbox, 0) == [0, 0, 1, 2]


def test_data_after_a_hole_needs_no_key_frame() -> None:
    inbox = Inbox(max_age=2)
    messages = Feed(kind="data").take(4)
    now = add_in_time(inbox, [messages[0], messages[3]])
    assert read_all(inbox, now) == [0, 3]
    assert inbox.lost == 2


def test_a_reader_that_comes_back_gets_only_what_is_fresh_from_a_key_frame_on() -> None:
    inbox = Inbox(max_age=1)
    now = add_in_time(inbox, Feed().take(100))
    first, *rest = read_all(inbox, now)
    assert first % 10 == 0
    assert (99 - first) * FRAME <= SECOND
    assert [first, *rest] == list(range(first, 100))
    assert inbox.dropped == {"unread": first}


def test_nobody_reading_costs_no_more_memory_than_the_age_allows() -> None:
    inbox = Inbox(max_age=1)
    now = add_in_time(inbox, Feed(keys_every=1000).take(500))
    assert len(read_all(inbox, now)) <= 26


def test_a_group_longer_than_the_age_is_dropped_until_the_next_key_frame() -> None:
    inbox = Inbox(max_age=1)
    feed = Feed(keys_every=50)
    now = add_in_time(inbox, feed.take(40))
    assert read_all(inbox, now) == []
    now = add_in_time(inbox, feed.take(13))
    assert read_all(inbox, now) == [50, 51, 52]


def test_dropping_unread_pictures_does_not_hide_a_later_hole() -> None:
    inbox = Inbox(max_age=1)
    messages = Feed().take(28)
    now = add_in_time(inbox, messages[:22] + messages[24:28])
    assert inbox.dropped == {"unread": 10, "no key frame": 4}
    assert read_all(inbox, now) == list(range(10, 22))


def test_unread_data_is_dropped_by_age_alone() -> None:
    inbox = Inbox(max_age=1)
    now = add_in_time(inbox, Feed(kind="data").take(100))
    assert read_all(inbox, now) == list(range(74, 100))


def test_unread_pictures_of_one_topic_take_no_other_with_them() -> None:
    inbox = Inbox(max_age=1)
    add_in_time(inbox, Feed().take(3))
    now = add_in_time(inbox, Feed(kind="data").take(28)[20:])
    assert read_all(inbox, now) == list(range(20, 28))
    assert inbox.dropped == {"unread": 3}


def test_messages_held_up_on_their_way_are_dropped_until_a_fresh_key_frame() -> None:
    inbox = Inbox(max_age=1)
    messages = Feed().take(130)
    add_in_time(inbox, messages[:20])
    read_all(inbox, 20 * FRAME)
    stalled_until = 103 * FRAME
    for message in messages[20:60]:  # what the sockets kept, all at once
        inbox.add(message, stalled_until)
    for message in messages[103:]:
        inbox.add(message, message.header.seq * FRAME)
    assert read_all(inbox, 129 * FRAME) == list(range(110, 130))
    assert inbox.dropped["late"] == 40
    assert inbox.lost == 43


def test_what_refers_to_a_late_message_waits_for_a_key_frame_too() -> None:
    inbox = Inbox(max_age=1)
    messages = Feed().take(12)
    assert read_all(inbox, add_in_time(inbox, messages[:5])) == [0, 1, 2, 3, 4]
    stalled_until = 5 * FRAME + 1_100_000_000
    for message in messages[5:]:
        inbox.add(message, stalled_until)
    assert read_all(inbox, stalled_until) == [10, 11]
    assert inbox.dropped == {"late": 3, "no key frame": 2}


def test_waiting_on_the_way_and_for_the_reader_count_together() -> None:
    inbox = Inbox(max_age=0.5)
    messages = Feed(keys_every=1).take(2)
    inbox.add(messages[0], 0)
    inbox.add(messages[1], FRAME + 300_000_000)  # 0.3 s late
    assert read_all(inbox, FRAME + 450_000_000) == [0, 1]
    inbox = Inbox(max_age=0.5)
    inbox.add(messages[0], 0)
    inbox.add(messages[1], FRAME + 300_000_000)
    assert read_all(inbox, FRAME + 510_000_000) == []
    assert inbox.dropped == {"unread": 2}


def test_where_everything_is_late_for_a_second_the_connection_is_to_be_made_anew() -> None:
    inbox = Inbox(max_age=0.5)
    messages = Feed(keys_every=1).take(80)
    add_in_time(inbox, messages[:20])
    behind = []
    for message in messages[20:60]:  # the relay's clock was set, or the link became too thin
        now = message.header.seq * FRAME + 10 * SECOND
        inbox.add(message, now)
        behind.append(inbox.is_behind(now))
    assert behind == [False] * 26 + [True] * 14
    inbox.begin_anew(now)
    assert not inbox.is_behind(now)
    read_all(inbox, now)
    for message in messages[60:]:
        inbox.add(message, message.header.seq * FRAME + 10 * SECOND)
    assert read_all(inbox, 79 * FRAME + 10 * SECOND)[-1] == 79


def thin_link(inbox: Inbox, seconds: int, fresh_seconds: float = 1.2) -> tuple[list[float], list[float]]:
    """Where each connection gives fresh pictures for so long, and late ones then: when it was made anew, and when key
    frames were asked for."""
    feed = Feed(keys_every=10_000)
    inbox.add(feed.next(), 0)
    anew, asked, connected_at = [], [], 0
    for now in range(FRAME, seconds * SECOND, FRAME):
        message = feed.next(key=now - connected_at <= FRAME)
        late_ns = 0 if now - connected_at < fresh_seconds * SECOND else SECOND
        message = replace(
            message, header=msgspec.structs.replace(message.header, published_ns=77 * SECOND + now - late_ns)
        )
        if inbox.add(message, now):
            asked.append(now / SECOND)
        inbox.take(now)
        if inbox.is_behind(now):
            inbox.begin_anew(now)
            anew.append(now / SECOND)
            connected_at = now
    return anew, asked


def test_on_a_link_that_is_too_thin_the_connection_is_made_anew_and_key_frames_are_asked_for_ever_more_rarely() -> None:
    anew, asked = thin_link(Inbox(max_age=0.5), seconds=60)
    assert [after - before for before, after in pairwise([0, *anew])] == pytest.approx(
        [2.2, 3.2, 5.2, 9.2, 9.2, 9.2, 9.2, 9.2], abs=0.2
    )
    assert len(asked) <= 2, "a key frame that is asked for over such a link comes as late as all else"


def test_where_a_new_connection_helps_for_a_while_the_next_one_is_made_as_soon_as_the_first() -> None:
    anew, _ = thin_link(Inbox(max_age=0.5), seconds=60, fresh_seconds=6)
    assert [after - before for before, after in pairwise([0, *anew])] == pytest.approx([7] * 8, abs=0.2)


def over_a_link(messages: list[Message], key_ms: int, stalled: range = range(0)) -> list[tuple[Message, int]]:
    """Messages and when they come, one after the other, where each key frame takes so long, any other picture 5 to 30
    ms, and nothing passes while the feed is at the numbers `stalled`."""
    came, free_ns = [], 0
    for message, other_ms in zip(messages, cycle((5, 5, 30))):
        begun_ns = message.header.seq * FRAME
        if message.header.seq in stalled:
            begun_ns = stalled.stop * FRAME
        free_ns = max(free_ns, begun_ns) + 1_000_000 * (key_ms if message.header.key else other_ms)
        came.append((message, free_ns))
    return came


def test_a_key_frame_that_takes_long_on_a_link_that_is_free_is_shown_with_all_behind_it() -> None:
    inbox, shown = Inbox(max_age=0.5), []
    for message, now in over_a_link(Feed(keys_every=50).take(200), key_ms=600):
        assert not inbox.add(message, now)
        shown += read_all(inbox, now)
        assert not inbox.is_behind(now)
    assert shown == list(range(200))


@pytest.mark.parametrize("waits_for_its_reader", [100_000_000, 200_000_000])
def test_what_is_behind_such_a_key_frame_still_waits_for_its_reader_for_a_moment_only(
    waits_for_its_reader: int,
) -> None:
    inbox = Inbox(max_age=0.5)
    came = over_a_link(Feed(keys_every=50).take(51), key_ms=600)
    for message, now in came[:50]:
        inbox.add(message, now)
        inbox.take(now)
    inbox.add(*came[50])
    waiting = read_all(inbox, came[50][1] + waits_for_its_reader)
    assert waiting == ([50] if waits_for_its_reader < 500_000_000 // 3 else [])


@pytest.mark.parametrize(("key_ms", "oldest"), [(60, 0.5), (600, 1 + 0.5 / 3)])
@pytest.mark.parametrize("begins", [100, 101, 130])
def test_after_a_stall_nothing_is_shown_that_is_older_than_its_key_frame_may_make_it(
    begins: int, key_ms: int, oldest: float
) -> None:
    inbox, shown = Inbox(max_age=0.5), []
    for message, now in over_a_link(Feed(keys_every=50).take(400), key_ms, range(begins, begins + 63)):
        inbox.add(message, now)
        while (each := inbox.take(now)) is not None:
            shown.append(each.header.seq)
            assert now - each.header.seq * FRAME <= oldest * SECOND + 10_000_000
    assert shown[-100:] == list(range(300, 400))


@pytest.mark.parametrize("keys_every", [1, 50])
def test_on_a_link_that_is_a_little_too_thin_key_frames_make_nothing_older_and_it_is_begun_anew(
    keys_every: int,
) -> None:
    inbox = Inbox(max_age=0.5)
    for message in Feed(keys_every=keys_every).take(1500):
        published_ns = message.header.seq * FRAME
        now = published_ns + published_ns // 20
        inbox.add(message, now)
        while (each := inbox.take(now)) is not None:
            assert now - each.header.seq * FRAME <= 0.52 * SECOND, "clocks may run apart a little"
        if inbox.is_behind(now):
            break
    assert 10 * SECOND < now < 13 * SECOND


def test_a_key_frame_that_takes_more_than_a_second_is_late() -> None:
    inbox = Inbox(max_age=0.5)
    for message, now in over_a_link(Feed(keys_every=75).take(151), key_ms=1_100):
        inbox.add(message, now)
        inbox.take(now)
    assert inbox.dropped["late"] >= 2
    assert not inbox.is_behind(now)


def test_one_fresh_message_is_enough_to_keep_the_connection() -> None:
    inbox = Inbox(max_age=0.5)
    messages = Feed(keys_every=1).take(100)
    for message in messages:
        late = 0 if message.header.seq % 20 == 0 else SECOND
        now = message.header.seq * FRAME + late
        inbox.add(message, now)
        assert not inbox.is_behind(now)


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


def test_without_a_highest_age_nothing_is_too_old() -> None:
    inbox = Inbox(max_age=None)
    messages = Feed(keys_every=10).take(100)
    for message in messages:
        inbox.add(message, message.header.seq * SECOND)
    assert len(inbox) == 100
    assert not inbox.is_behind(100 * SECOND)
    assert read_all(inbox, 1000 * SECOND) == list(range(100))
    assert not inbox.dropped


def test_without_a_highest_age_pictures_after_a_hole_wait_for_a_key_frame_all_the_same() -> None:
    inbox = Inbox(max_age=None)
    messages = Feed(keys_every=50).take(60)
    asked = [inbox.add(message, message.header.seq * FRAME) for message in messages[:30] + messages[31:]]
    assert read_all(inbox, 60 * FRAME) == [*range(30), *range(50, 60)]
    assert asked.index(True) == 30


def test_clocks_that_drift_apart_slowly_make_nothing_late() -> None:
    lateness = Lateness()
    hour = 3600 * 25
    assert not any(lateness.of("run-1", place * FRAME, int(place * FRAME * 1.0005)) for place in range(0, 2 * hour, 5))


def test_lateness_is_what_a_message_took_longer_than_the_quickest() -> None:
    lateness = Lateness()
    assert lateness.of("run-1", 0, 7 * SECOND) == 0
    assert lateness.of("run-1", FRAME, 7 * SECOND + FRAME) == 0
    assert lateness.of("run-1", 2 * FRAME, 8 * SECOND + FRAME) == pytest.approx(SECOND - FRAME, rel=0.01)
    assert lateness.of("run-1", 3 * FRAME, 6 * SECOND) == 0, "quicker than all before"
    assert lateness.of("run-2", 4 * FRAME, 60 * SECOND) == 0, "another relay, another clock"
