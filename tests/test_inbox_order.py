from stream.wire.inbox import Inbox
from tests.inbox_feed import FRAME, SECOND, Feed, add_in_time, read_all


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
