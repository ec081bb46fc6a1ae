from __future__ import annotations

import threading
from fractions import Fraction

import av
import pytest
from msgspec.structs import replace

from engines.colour import Colour
from engines.door import Slot
from engines.errors import EngineError
from stream.enhance import Gather, Lane, enhance
from stream.frame import Frame
from tests.doubling import DoublingEngine
from tests.waiting import wait_until

SECOND = 1_000_000_000
INTERVAL = SECOND // 25


def frame(pts: int, *, width: int = 32, received_ns: int = 0) -> Frame:
    return Frame(
        picture=av.VideoFrame(width, 32, "yuv420p"),
        colour=Colour(),
        pts=pts,
        source_pts=pts,
        time_base=Fraction(1, 25),
        received_ns=received_ns,
        capture_ns=received_ns,
        capture_clock="arrival",
        state="clean",
        source_sha256=bytes(32),
    )


class Drops(list[str]):
    """Why a lane dropped its frames, in order."""

    def lane(self, *, live: bool = True, age_budget_ns: int = SECOND) -> Lane:
        return Lane(live, age_budget_ns, self.append)


def gather_of(**lanes: Lane) -> Gather[str]:
    gather: Gather[str] = Gather()
    for name, lane in lanes.items():
        gather.open_lane(name, lane)
    return gather


def taken(gather: Gather[str], limit: int = 8, now_ns: int = 0, depth: int = 8) -> list[tuple[str, int]]:
    return [(name, frame.pts) for name, frame in gather.take(limit, depth, lambda: now_ns)]


def test_a_live_lane_drops_its_oldest_frames() -> None:
    drops = Drops()
    gather = gather_of(cam=drops.lane())
    for pts in range(5):
        gather.put("cam", frame(pts, received_ns=pts * INTERVAL))
    assert drops == ["overload"] * 3
    assert taken(gather) == [("cam", 3)]


def test_a_live_lane_keeps_pictures_that_come_in_a_burst() -> None:
    drops = Drops()
    gather = gather_of(cam=drops.lane())
    for pts in range(15):
        gather.put("cam", frame(pts, received_ns=pts * SECOND // 1000))
    assert drops == ["overload"] * (15 - Gather.BURST)
    assert taken(gather) == [("cam", 3)]


def test_of_a_burst_that_the_engine_had_no_time_for_nothing_is_left_when_the_next_one_comes() -> None:
    drops = Drops()
    gather = gather_of(cam=drops.lane())
    for pts in range(6):
        gather.put("cam", frame(pts))
    for pts in range(6, 12):
        gather.put("cam", frame(pts, received_ns=6 * INTERVAL))
    assert drops == ["overload"] * 6
    assert taken(gather) == [("cam", 6)]


def test_a_batch_has_one_frame_of_each_feed_and_waits_for_none() -> None:
    gather = gather_of(a=Drops().lane(), b=Drops().lane(), silent=Drops().lane())
    for pts in range(2):
        gather.put("a", frame(pts))
        gather.put("b", frame(10 + pts))
    assert taken(gather) == [("a", 0), ("b", 10)]
    assert taken(gather) == [("a", 1), ("b", 11)]


def test_a_batch_has_one_size_and_the_others_come_next() -> None:
    gather = gather_of(a=Drops().lane(), wide=Drops().lane(), c=Drops().lane())
    gather.put("a", frame(1))
    gather.put("wide", frame(2, width=64))
    gather.put("c", frame(3))
    assert taken(gather) == [("a", 1), ("c", 3)]
    assert taken(gather) == [("wide", 2)]


def test_with_small_batches_every_feed_gets_its_turn() -> None:
    gather = gather_of(**{name: Drops().lane() for name in "abc"})
    served = []
    for pts in range(6):
        for name in "abc":
            gather.put(name, frame(pts))
        ((name, _),) = taken(gather, limit=1)
        gather.done(name)
        served.append(name)
    assert served == ["a", "b", "c"] * 2


def test_frames_past_their_age_budget_are_dropped_before_the_network() -> None:
    drops = Drops()
    gather = gather_of(cam=drops.lane(age_budget_ns=SECOND))
    gather.put("cam", frame(1, received_ns=0))
    gather.put("cam", frame(2, received_ns=SECOND))
    assert taken(gather, now_ns=SECOND + 1) == [("cam", 2)]
    assert drops == ["late"]


def test_a_frame_that_waited_in_the_kernel_is_as_old_as_its_arrival() -> None:
    drops = Drops()
    gather = gather_of(cam=drops.lane(age_budget_ns=SECOND))
    gather.put("cam", replace(frame(1, received_ns=20 * SECOND), capture_ns=SECOND))
    gather.put("cam", replace(frame(2, received_ns=20 * SECOND), capture_ns=SECOND, capture_clock="rtcp"))
    assert taken(gather, now_ns=20 * SECOND + 1) == [("cam", 2)]
    assert drops == ["late"]


def held(seconds: float) -> Frame:
    """One that came at 0, and could not be had sooner than so many seconds later."""
    return replace(frame(1), held_ns=int(seconds * SECOND))


@pytest.mark.parametrize(
    ("held_back", "age"), [(0.16, 1.0), (0.5, 1.0), (0.75, 1.5), (2.0, 3.0), (8.0, 9.0)], ids=lambda value: f"{value} s"
)
def test_a_frame_that_could_not_be_had_sooner_is_late_when_it_waits_beyond_that(held_back: float, age: float) -> None:
    drops = Drops()
    gather = gather_of(cam=drops.lane(age_budget_ns=SECOND))
    gather.put("cam", held(held_back))
    assert taken(gather, now_ns=int(age * SECOND)) == [("cam", 1)]
    gather.put("cam", held(held_back))
    gather.put("cam", frame(2, received_ns=100 * SECOND))
    assert taken(gather, now_ns=int(age * SECOND) + 1) == [("cam", 2)]
    assert drops == ["late"]


def test_a_feed_has_no_more_in_the_engine_than_its_share() -> None:
    gather = gather_of(cam=Drops().lane(), other=Drops().lane())
    for pts in range(Gather.IN_FLIGHT):
        gather.put("cam", frame(pts))
        assert taken(gather) == [("cam", pts)]
    gather.put("cam", frame(8))
    gather.put("other", frame(9))
    assert taken(gather) == [("other", 9)]
    gather.done("cam")
    assert taken(gather) == [("cam", 8)]


class Taker:
    """Takes frames one by one in a thread of its own, as long as there are no more than `depth` in the engine."""

    def __init__(self, gather: Gather[str], depth: int, now_ns: int = 0) -> None:
        self.names: list[str] = []
        self._gather = gather
        self._thread = threading.Thread(target=self._take, args=(depth, now_ns))

    def __enter__(self) -> Taker:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._gather.abandon()
        self._gather.close()
        self._thread.join(5)
        assert not self._thread.is_alive()

    def _take(self, depth: int, now_ns: int) -> None:
        while batch := self._gather.take(1, depth, lambda: now_ns):
            self.names += [name for name, _ in batch]


def test_the_engine_is_given_no_more_than_keeps_it_busy_and_who_waits_stays_fresh() -> None:
    gather = gather_of(**{name: Drops().lane() for name in "abcdef"})
    for name in "abcdef":
        gather.put(name, frame(0))
    with Taker(gather, depth=3) as taker:
        wait_until(lambda: taker.names == ["a", "b", "c"], "a full engine")
        for pts in range(1, 4):
            gather.put("d", frame(pts, received_ns=pts * INTERVAL))
        gather.came_out("b")
        wait_until(lambda: taker.names == ["a", "b", "c", "d"], "the next one")
        gather.done("b")  # the same picture, which has left the encoder, too
        gather.came_out("a")
        wait_until(lambda: taker.names == ["a", "b", "c", "d", "e"], "the one after that")


def test_while_the_engine_is_full_a_lane_gets_fresher() -> None:
    drops = Drops()
    gather = gather_of(busy=Drops().lane(), cam=drops.lane())
    gather.put("busy", frame(0))
    assert taken(gather) == [("busy", 0)]
    for pts in range(10):
        gather.put("cam", frame(pts, received_ns=pts * INTERVAL))
    gather.came_out("busy")
    assert taken(gather, depth=1) == [("cam", 8)]
    assert drops == ["overload"] * 8


def test_a_batch_leaves_the_engine_with_the_first_picture_that_comes_out() -> None:
    gather = gather_of(a=Drops().lane(), b=Drops().lane(), c=Drops().lane())
    for name in "abc":
        gather.put(name, frame(1))
    assert taken(gather, limit=2, depth=1) == [("a", 1), ("b", 1)]
    gather.came_out("b")
    assert taken(gather, depth=1) == [("c", 1)]


def test_feeds_whose_encoders_are_slow_keep_nobody_from_the_engine() -> None:
    gather = gather_of(slow=Drops().lane(), slower=Drops().lane(), cam=Drops().lane())
    for name in ("slow", "slower"):
        for pts in range(2):
            gather.put(name, frame(pts))
            assert taken(gather) == [(name, pts)]
        gather.came_out(name)
    gather.put("cam", frame(9))
    with Taker(gather, depth=1) as taker:
        wait_until(lambda: taker.names == ["cam"], "the other feed's picture")


def test_a_feed_that_is_taken_away_leaves_the_engine_to_the_others() -> None:
    gather = gather_of(leaving=Drops().lane(), cam=Drops().lane())
    gather.put("leaving", frame(0))
    assert taken(gather) == [("leaving", 0)]
    gather.put("cam", frame(9))
    with Taker(gather, depth=1) as taker:
        gather.close_lane("leaving")
        wait_until(lambda: taker.names == ["cam"], "the other feed's picture")


def test_replay_drops_nothing_and_waits_for_room() -> None:
    drops = Drops()
    gather = gather_of(tape=drops.lane(live=False))
    feeder = threading.Thread(target=lambda: [gather.put("tape", frame(pts)) for pts in range(20)])
    feeder.start()
    came = []
    while len(came) < 20:
        ((name, pts),) = taken(gather, now_ns=100 * SECOND)
        came.append(pts)
        gather.done(name)
    feeder.join(timeout=5)
    assert came == list(range(20))
    assert drops == []


def test_after_close_what_waits_is_still_taken_and_then_it_ends() -> None:
    drops = Drops()
    gather = gather_of(cam=drops.lane())
    gather.put("cam", frame(1))
    gather.close()
    gather.put("cam", frame(2))
    assert taken(gather) == [("cam", 1)]
    assert taken(gather) == []
    assert drops == ["stopped"]


def test_abandoning_frees_whoever_waits_for_room_and_counts_every_frame() -> None:
    drops = Drops()
    lane = drops.lane(live=False)
    gather = gather_of(tape=lane)
    feeder = threading.Thread(target=lambda: [gather.put("tape", frame(pts)) for pts in range(4)])
    feeder.start()
    wait_until(lambda: len(lane.waiting) == Gather.LANE_LENGTH, "a full lane")
    gather.abandon()
    feeder.join(timeout=5)
    assert not feeder.is_alive()
    assert drops == ["stopped"] * 4


def test_a_feed_is_drained_when_its_last_picture_has_left_the_encoder() -> None:
    gather = gather_of(cam=Drops().lane(), other=Drops().lane())
    gather.put("cam", frame(1))
    gather.put("other", frame(2))
    drained = threading.Event()
    waiter = threading.Thread(target=lambda: (gather.drain("cam"), drained.set()))
    waiter.start()
    assert len(taken(gather)) == 2
    assert not drained.is_set()
    gather.done("cam")
    waiter.join(timeout=5)
    assert drained.is_set()


def test_a_feed_of_large_pictures_gets_no_more_of_the_engine_than_the_others() -> None:
    gather = gather_of(small=Drops().lane(), huge=Drops().lane(), other=Drops().lane())
    served = []
    for pts in range(40):
        gather.put("small", frame(pts))
        gather.put("other", frame(pts))
        gather.put("huge", frame(pts, width=320))
        ((name, _),) = taken(gather, limit=1)
        gather.done(name)
        served.append(name)
    assert served.count("huge") in (1, 2)
    assert abs(served.count("small") - served.count("other")) <= 1


def test_a_feed_that_was_silent_has_no_claim_on_the_time_before() -> None:
    gather = gather_of(busy=Drops().lane(), silent=Drops().lane())
    for pts in range(100):
        gather.put("busy", frame(pts))
        assert taken(gather) == [("busy", pts)]
        gather.done("busy")
    served = []
    for pts in range(10):
        gather.put("busy", frame(pts))
        gather.put("silent", frame(pts))
        ((name, _),) = taken(gather, limit=1)
        gather.done(name)
        served.append(name)
    assert served.count("busy") >= 4


def test_one_feed_can_be_abandoned_while_the_others_go_on() -> None:
    drops, lane = Drops(), Drops().lane()
    gather = gather_of(leaving=drops.lane(live=False), staying=lane)
    gather.put("leaving", frame(1))
    gather.put("staying", frame(2))
    gather.abandon("leaving")
    gather.put("leaving", frame(3))
    gather.drain("leaving")
    assert drops == ["stopped"] * 2
    assert taken(gather) == [("staying", 2)]
    gather.close_lane("leaving")
    gather.put("staying", frame(4))
    assert taken(gather) == [("staying", 4)]


def test_a_feed_whose_last_frames_were_late_is_drained() -> None:
    gather = gather_of(cam=Drops().lane(age_budget_ns=SECOND))
    gather.put("cam", frame(1, received_ns=0))
    drained = threading.Thread(target=gather.drain, args=("cam",))
    drained.start()
    threading.Thread(target=gather.take, args=(8, 1, lambda: 2 * SECOND), daemon=True).start()
    drained.join(timeout=5)
    assert not drained.is_alive()
    gather.close()


def test_an_abandoned_feed_is_drained_when_its_pictures_have_left_the_engine() -> None:
    gather = gather_of(cam=Drops().lane())
    gather.put("cam", frame(1))
    assert taken(gather) == [("cam", 1)]
    gather.abandon("cam")
    drained = threading.Thread(target=gather.drain, args=("cam",))
    drained.start()
    drained.join(timeout=0.1)
    assert drained.is_alive()
    gather.done("cam")
    drained.join(timeout=5)
    assert not drained.is_alive()


class Poor(DoublingEngine):
    """Has memory for two slots."""

    made = 0

    def _make(self, width: int, height: int) -> Slot:
        if self.made == 2:
            raise EngineError("no memory")
        self.made += 1
        return super()._make(width, height)


def test_a_batch_that_cannot_begin_gives_all_its_slots_back() -> None:
    with Poor() as engine:
        for _ in range(3):
            with pytest.raises(EngineError, match="no memory"):
                enhance(engine, [frame(number) for number in range(3)])
        assert len(enhance(engine, [frame(number) for number in range(2)])) == 2


def test_a_slot_is_told_what_the_code_values_of_its_picture_mean() -> None:
    meanings = [Colour("bt709", full_range=True), Colour(grey=True)]
    with DoublingEngine() as engine:
        slots = enhance(engine, [replace(frame(0), colour=colour) for colour in meanings])
        assert [slot.colour for slot in slots] == meanings
