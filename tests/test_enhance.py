from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import partial
from heapq import heappop, heappush
from itertools import count

import av
import pytest

from engines.colour import Colour
from engines.door import Slot
from engines.errors import EngineError
from stream.enhance import Gather, Lane, enhance
from stream.frame import Frame
from tests.doubling import DoublingEngine
from tests.waiting import wait_until

SECOND = 1_000_000_000


def frame(pts: int, *, width: int = 32, height: int = 32, received_ns: int = 0) -> Frame:
    return Frame(
        picture=av.VideoFrame(width, height, "yuv420p"),
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


def taken(gather: Gather[str], limit: int = 8, now_ns: int = 0) -> list[tuple[str, int]]:
    return [(name, frame.pts) for name, frame in gather.take(limit, lambda: now_ns)]


def test_a_live_lane_drops_its_oldest_frames() -> None:
    drops = Drops()
    gather = gather_of(cam=drops.lane())
    for pts in range(5):
        gather.put("cam", frame(pts))
    assert drops == ["overload"] * 3
    assert taken(gather) == [("cam", 3)]


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
    threading.Thread(target=gather.take, args=(8, lambda: 2 * SECOND), daemon=True).start()
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


# Shares of the engine


CIF, NHD, HD = (352, 288), (640, 360), (1280, 720)
SECONDS_PER_PIXEL = 1e-7
INSTANT = 1e-6


class Sharing:
    """Live feeds that share one engine, in a time that is only reckoned.

    It computes in the order in which pictures come to it, `at_once` of different feeds side by side, and goes on with
    the next one by itself. Each feed has an encoder of its own, which takes `encoding` seconds for a picture.
    """

    def __init__(
        self,
        feeds: Mapping[str, tuple[tuple[int, int], float]],
        *,
        at_once: int = 1,
        encoding: Mapping[str, float] | None = None,
    ) -> None:
        """`feeds`: size and pictures a second."""
        self.now = 0.0
        self.published: Counter[str] = Counter()
        self.dropped = {name: Drops() for name in feeds}
        self.dry = 0
        """How often the engine ended a picture and had no next one, although one waited in front of it."""
        self.idle = 0.0
        """Seconds for which it could have computed more than it did."""
        self.gather: Gather[str] = Gather(lambda: self.now)
        self._feeds = {name: (frame(0, width=size[0], height=size[1]), rate) for name, (size, rate) in feeds.items()}
        self._lanes = {name: drops.lane() for name, drops in self.dropped.items()}
        self._at_once, self._encoding = at_once, encoding or {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._queue: list[str] = []
        self._running: set[str] = set()
        self._computed: Counter[str] = Counter()
        self._in_encoder: set[str] = set()
        for number, name in enumerate(feeds):
            self.gather.open_lane(name, self._lanes[name])
            self._at(0.003 + 0.011 * number, partial(self._come, name))

    def run(self, seconds: float) -> None:
        """Go on until that time."""
        while self._events[0][0] <= seconds:
            now, _, happen = heappop(self._events)
            self.idle += (now - self.now) * (min(self._at_once, len(self._wanted())) - len(self._running))
            self.now = now
            happen()
            while batch := self.gather._batch(8, 0):
                self._queue += [name for name, _ in batch]
                self._begin()
            if (patience := self.gather._turns.until_unsure()) is not None:
                self._at(self.now + patience + INSTANT, lambda: None)

    def resize(self, name: str, size: tuple[int, int]) -> None:
        """From now on a feed has pictures of another size."""
        self._feeds[name] = (frame(0, width=size[0], height=size[1]), self._feeds[name][1])

    def pixels(self, name: str) -> int:
        """How many of a feed were published."""
        picture, _ = self._feeds[name]
        return self.published[name] * picture.width * picture.height

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        heappush(self._events, (when, next(self._numbers), happen))

    def _wanted(self) -> set[str]:
        """Feeds that have something in the engine or in front of it."""
        return {*self._queue, *self._running, *(name for name, lane in self._lanes.items() if lane.waiting)}

    def _come(self, name: str) -> None:
        picture, rate = self._feeds[name]
        self.gather.put(name, picture)
        self._at(self.now + 1 / rate, partial(self._come, name))

    def _begin(self) -> None:
        for name in list(self._queue):
            if len(self._running) < self._at_once and name not in self._running:
                self._queue.remove(name)
                self._running.add(name)
                picture, _ = self._feeds[name]
                takes = picture.width * picture.height * SECONDS_PER_PIXEL * self._at_once
                self._at(self.now + takes, partial(self._end, name))

    def _end(self, name: str) -> None:
        self._running.remove(name)
        self._begin()
        self.dry += len(self._running) < min(self._at_once, len(self._wanted()))
        self._computed[name] += 1
        if name not in self._in_encoder:
            self._encode(name)

    def _encode(self, name: str) -> None:
        self._computed[name] -= 1
        self._in_encoder.add(name)
        self.gather.computed(name)
        self._at(self.now + self._encoding.get(name, 0.0), partial(self._publish, name))

    def _publish(self, name: str) -> None:
        self.published[name] += 1
        self._in_encoder.remove(name)
        self.gather.done(name)
        if self._computed[name]:
            self._encode(name)


@pytest.mark.parametrize("encoding", [{}, {"small": 0.003, "large": 0.024}])
@pytest.mark.parametrize("order", [("small", "large"), ("large", "small")])
def test_a_feed_that_needs_less_than_its_share_of_the_engine_loses_nothing(
    order: tuple[str, str], encoding: dict[str, float]
) -> None:
    feeds = {"small": (CIF, 25.0), "large": (HD, 25.0)}
    sharing = Sharing({name: feeds[name] for name in order}, encoding=encoding)
    sharing.run(20)
    assert sharing.dropped["small"] == []
    assert sharing.published["small"] >= 495
    assert sharing.published["large"] >= 158  # as many as the rest of the engine can do
    assert (sharing.dry, sharing.idle) == (0, 0)


def test_feeds_that_want_more_than_the_engine_can_do_get_equal_shares_of_its_pixels() -> None:
    sharing = Sharing({"middle": (NHD, 50.0), "large": (HD, 25.0)}, encoding={"middle": 0.006, "large": 0.024})
    sharing.run(20)
    assert sharing.pixels("middle") / sharing.pixels("large") == pytest.approx(1, abs=0.1)
    assert sharing.dry == 0


def test_small_feeds_lose_little_beside_large_ones_which_get_the_rest() -> None:
    sharing = Sharing({"a": (CIF, 25.0), "b": (CIF, 25.0), "c": (CIF, 25.0), "large": (HD, 25.0)})
    sharing.run(20)
    assert min(sharing.published[name] for name in "abc") >= 485
    assert sharing.published["large"] >= 50
    assert sharing.dry == 0


@pytest.mark.parametrize("at_once", [2, 4])
def test_an_engine_that_computes_several_pictures_at_once_is_kept_busy(at_once: int) -> None:
    feeds = {name: (size, 25.0) for name, size in zip("abcdefgh", [CIF, NHD, HD, HD, CIF, NHD, HD, HD], strict=True)}
    sharing = Sharing(feeds, at_once=at_once, encoding=dict.fromkeys(feeds, 0.005))
    sharing.run(10)
    assert (sharing.dry, sharing.idle) == (0, 0)
    shares = [sharing.pixels(name) for name in feeds]
    assert min(shares) > 0.85 * max(shares)


@pytest.mark.parametrize("seconds", [0.03, 0.06, 0.2, 30.0])
def test_an_encoder_that_is_slow_keeps_no_other_feed_from_the_engine(seconds: float) -> None:
    feeds = {"small": (CIF, 50.0), "middle": (NHD, 25.0), "large": (HD, 25.0)}
    sharing = Sharing(feeds, encoding={"small": seconds})
    sharing.run(10)
    assert sum(map(sharing.pixels, feeds)) * SECONDS_PER_PIXEL > 9.6
    assert sharing.idle < 0.01


def test_a_feed_has_its_share_also_beside_one_whose_encoder_is_slow() -> None:
    feeds = {"small": (CIF, 25.0), "slow": (CIF, 25.0), "large": (HD, 25.0)}
    sharing = Sharing(feeds, encoding={"small": 0.003, "slow": 0.1})
    sharing.run(10)
    assert sharing.dropped["small"] == []


def test_a_feed_whose_encoder_hangs_is_waited_for_as_long_as_its_next_picture_may_be_in_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    gather: Gather[str] = Gather(lambda: now)

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(gather._changed, "wait", wait)
    for name in ("large", "small"):
        gather.open_lane(name, Drops().lane())
    gather.put("large", frame(0, width=320))
    assert taken(gather) == [("large", 0)]
    gather.done("large")
    for pts in (1, 2):
        gather.put("small", frame(pts))
        assert taken(gather) == [("small", pts)]
    gather.put("small", frame(3))
    gather.put("large", frame(4, width=320))
    now = 5.0
    gather.computed("small")
    assert taken(gather) == [("large", 4)]
    assert now == 10


def test_what_never_came_out_of_the_engine_changes_no_shares() -> None:
    sharing = Sharing({"small": (CIF, 25.0), "large": (HD, 25.0)}, encoding={"small": 0.003})
    sharing.gather.open_lane("gone", Drops().lane())
    for name in ("gone", "small"):
        sharing.gather.put(name, frame(0))
        assert len(sharing.gather._batch(8, 0)) == 1
    sharing.gather.close_lane("gone")
    sharing.gather.done("small")
    assert sharing.gather._turns._inside == []
    sharing.run(20)
    assert sharing.dropped["small"] == []


def test_a_feed_that_wanted_little_for_long_has_no_claim_on_what_others_had_meanwhile() -> None:
    sharing = Sharing({"small": (CIF, 25.0), "large": (HD, 25.0)}, encoding={"small": 0.036})
    sharing.run(20)
    before = sharing.published["large"]
    sharing.resize("small", HD)
    sharing.run(24)
    assert sharing.published["large"] - before >= 19


def test_a_feed_that_comes_while_nobody_wants_anything_has_no_claim_on_the_time_before() -> None:
    gather = gather_of(busy=Drops().lane(), late=Drops().lane())
    for pts in range(100):
        gather.put("busy", frame(pts))
        assert taken(gather) == [("busy", pts)]
        gather.done("busy")
    gather.put("late", frame(0))
    served = []
    for pts in range(10):
        gather.put("late", frame(pts))
        gather.put("busy", frame(pts))
        ((name, _),) = taken(gather, limit=1)
        gather.done(name)
        served.append(name)
    assert served.count("busy") >= 4


def test_a_feed_alone_has_as_much_in_the_engine_as_it_may() -> None:
    gather = gather_of(cam=Drops().lane(), gone=Drops().lane())
    gather.put("gone", frame(0))
    taken(gather)
    gather.computed("gone")
    gather.done("gone")
    for pts in range(4):
        gather.put("cam", frame(pts))
    assert taken(gather) + taken(gather) == [("cam", 2), ("cam", 3)]


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
