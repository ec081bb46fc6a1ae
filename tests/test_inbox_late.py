from dataclasses import replace
from itertools import cycle, pairwise

import msgspec
import pytest

from stream.wire.inbox import Inbox, Lateness
from stream.wire.messages import Message
from tests.inbox_feed import FRAME, SECOND, Feed, add_in_time, read_all


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
