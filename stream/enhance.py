"""Frames of all feeds into the engine: the freshest of each feed, in batches, and never more than it can carry."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from engines.door import Door, Slot
from stream.frame import Frame
from stream.metrics import DropReason
from stream.recall import Recall

Key = TypeVar("Key", bound=Hashable)
"""What stands for a feed."""

AT_ONCE_KEPT = 16
"""Frames that came out of the engine last, by which it is judged how many it computes at once."""


@dataclass(eq=False)
class Lane:
    """One feed's place in front of the engine."""

    live: bool
    """Whether a full lane drops its oldest frame; else whoever brings frames waits."""
    age_budget_ns: int
    on_drop: Callable[[DropReason], None]
    waiting: deque[Frame] = field(default_factory=deque)
    in_flight: int = 0
    """Frames taken, whose slots are not yet given back."""
    computing: int = 0
    """Of these, frames that are not known to have left the engine."""
    served: int = 0
    """Pixels that the engine was given, counted so that lanes which wanted nothing have no claim on the past."""
    turns: tuple[int, int] = (0, 0)
    """The numbers of its latest two frames, counted over all lanes as they were taken."""
    encoded_at: float = 0.0
    """When its latest frame left the encoder; seconds of a clock that only grows, like the next one."""
    sure_until: float = 0.0
    """Until when its next frame must be in the engine, whatever is noticed while the one before is in the encoder."""
    closed: bool = False
    """Whether frames are dropped rather than taken in."""


class Turns:
    """Whose frame goes into the engine next, so that lanes which want more than it can do share its pixels. Pure.

    What is in the engine keeps its order, so only as much goes in early as keeps it busy. What it does in there shows
    in what comes out: where frames overtake those of other lanes, as several do that are computed side by side or in
    one batch, it computes so many at once. A frame that comes out while its lane's one before is in the encoder is
    noticed after that; so it is only believed to be inside as long as it must be.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._inside: list[tuple[Lane, float]] = []  # whose frames are in the engine, in order, and since when
        self._at_once = deque([1], maxlen=AT_ONCE_KEPT)
        self._taken = 0
        self._reached = 0  # what the lane that had the latest turn had been served before
        self._left_at = 0.0  # when the latest frame left the engine

    def join(self, lane: Lane) -> None:
        """A lane wants something that wanted nothing before."""
        lane.served = max(lane.served, self._reached)

    def enter(self, lane: Lane, pixels: int) -> None:
        """A lane's frame goes into the engine."""
        self._taken += 1
        self._reached = max(self._reached, lane.served)
        self._inside.append((lane, self._clock()))
        lane.in_flight += 1
        lane.computing += 1
        lane.served += pixels
        lane.turns = (lane.turns[1], self._taken)

    def leave(self, lane: Lane) -> None:
        """A lane's oldest frame in the engine is known to have left it; its next one will take as long, at least as
        long as this one was waited for."""
        place = [each for each, _ in self._inside].index(lane)
        overtaken = {each for each, _ in self._inside[:place] if each.computing == each.in_flight}
        self._at_once.append(1 + len(overtaken))
        _, entered_at = self._inside.pop(place)
        now = self._clock()
        lane.sure_until = now + now - max(entered_at, self._left_at, lane.encoded_at)
        self._left_at = now
        lane.computing -= 1

    def end(self, lane: Lane) -> None:
        """A lane's frame has left the encoder, or never reached it."""
        lane.in_flight -= 1
        if lane.computing > lane.in_flight:
            self.leave(lane)
        lane.encoded_at = self._clock()

    def forget(self, lane: Lane) -> None:
        """A lane is closed."""
        self._inside = [(each, since) for each, since in self._inside if each is not lane]

    def allow(self, lane: Lane, before: Sequence[Lane]) -> bool:
        """Whether a lane's next frame may go in now; the lanes `before` it were served no more than it.

        It may where the engine could begin with it at once, and where no other lane is to be served first. Else it may
        as long as fewer frames wait inside than are computed, and none of a lane that is to be served first waits out
        here. A second frame of its lane also leaves room for those of lanes that come twice as often as it is served.
        """
        inside = [each for each, _ in self._inside if self._is_sure(each)]
        at_once = max(self._at_once)
        if lane not in inside and len(set(inside)) < at_once:
            return True
        first = [each for each in before if is_first(each, lane)]
        if not first:
            return True
        if len(inside) >= 2 * at_once or any(each.waiting and self._is_sure(each) for each in first):
            return False
        return lane not in inside or all(each.turns[0] < lane.turns[0] for each in first)

    def until_unsure(self) -> float | None:
        """Seconds for which what is believed of the engine holds, if nothing happens; None: for ever."""
        now = self._clock()
        believed = [lane for lane, _ in self._inside if lane.computing < lane.in_flight and lane.sure_until > now]
        return min((lane.sure_until - now for lane in believed), default=None)

    def _is_sure(self, lane: Lane) -> bool:
        """Whether what a lane has in the engine is still there, as far as that is known."""
        return lane.computing == lane.in_flight or self._clock() < lane.sure_until


class Gather(Generic[Key]):
    """Where frames wait for the engine: a short lane for each feed, read by one thread.

    A lane holds `LANE_LENGTH` frames and has at most `IN_FLIGHT` more in the engine and the encoder, which bounds
    the memory of a feed. A slow feed or encoder fills only its own lane. When all want more than the engine can do,
    each gets an equal share of its pixels, so that large pictures cost the feed that sends them (`Turns`).
    """

    LANE_LENGTH = 2
    IN_FLIGHT = 2

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lanes: dict[Key, Lane] = {}
        self._turns = Turns(clock)
        self._changed = threading.Condition()
        self._closed = False

    def open_lane(self, feed: Key, lane: Lane) -> None:
        """Make a place for a feed."""
        with self._changed:
            self._lanes[feed] = lane

    def close_lane(self, feed: Key) -> None:
        """Take a feed's place away; see `drain`."""
        with self._changed:
            lane = self._lanes.pop(feed)
            self._abandon(lane)
            self._turns.forget(lane)
            self._changed.notify_all()

    def put(self, feed: Key, frame: Frame) -> None:
        """Add a frame. Live: never blocks, a full lane drops its oldest frame. Else: waits for room."""
        with self._changed:
            lane = self._lanes[feed]
            if not lane.live:
                self._changed.wait_for(lambda: len(lane.waiting) < self.LANE_LENGTH or lane.closed or self._closed)
            if lane.closed or self._closed:
                lane.on_drop("stopped")
                return
            if len(lane.waiting) >= self.LANE_LENGTH:
                lane.waiting.popleft()
                lane.on_drop("overload")
            if not lane.waiting:
                self._turns.join(lane)
            lane.waiting.append(frame)
            self._changed.notify_all()

    def take(self, limit: int, now_ns: Callable[[], int]) -> list[tuple[Key, Frame]]:
        """Up to `limit` frames of one size, one of each feed; waits for the first, for no other.

        Frames of live feeds past their age budget are dropped. Returns [] once closed and empty.
        """
        with self._changed:
            while not (batch := self._batch(limit, now_ns())) and not self._finished():
                self._changed.wait(self._turns.until_unsure())
            self._changed.notify_all()
            return batch

    def computed(self, feed: Key) -> None:
        """A frame that was taken has left the engine."""
        with self._changed:
            if feed in self._lanes:
                self._turns.leave(self._lanes[feed])
                self._changed.notify_all()

    def done(self, feed: Key) -> None:
        """A frame that was taken has left the encoder, or never reached it."""
        with self._changed:
            if feed in self._lanes:
                self._turns.end(self._lanes[feed])
                self._changed.notify_all()

    def drain(self, feed: Key) -> None:
        """Return when nothing of a feed waits here, or is in the engine or the encoder."""
        with self._changed:
            lane = self._lanes[feed]
            self._changed.wait_for(lambda: is_idle(lane))

    def close(self) -> None:
        """No more frames; those that wait can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abandon(self, feed: Key | None = None) -> None:
        """Drop what waits, and all that is still to come, of one feed or of all."""
        with self._changed:
            for lane in self._lanes.values() if feed is None else [self._lanes[feed]]:
                self._abandon(lane)
            self._changed.notify_all()

    def _abandon(self, lane: Lane) -> None:
        lane.closed = True
        while lane.waiting:
            lane.waiting.popleft()
            lane.on_drop("stopped")

    def _finished(self) -> bool:
        return self._closed and not any(lane.waiting for lane in self._lanes.values())

    def _ready(self) -> Iterator[tuple[Key, Lane]]:
        """Lanes whose next frame may go into the engine, those first that were served least."""
        before: list[Lane] = []
        for feed, lane in sorted(self._lanes.items(), key=lambda item: item[1].served):
            if lane.waiting and lane.in_flight < self.IN_FLIGHT and self._turns.allow(lane, before):
                yield feed, lane
            before.append(lane)

    def _batch(self, limit: int, now_ns: int) -> list[tuple[Key, Frame]]:
        for lane in self._lanes.values():
            self._drop_late(lane, now_ns)
        batch: list[tuple[Key, Frame]] = []
        for feed, lane in self._ready():
            if len(batch) == limit:
                break
            if batch and size(lane.waiting[0]) != size(batch[0][1]):
                continue
            frame = lane.waiting.popleft()
            batch.append((feed, frame))
            self._turns.enter(lane, frame.width * frame.height)
        return batch

    def _drop_late(self, lane: Lane, now_ns: int) -> None:
        while lane.live and lane.waiting and is_late(lane.waiting[0], lane.age_budget_ns, now_ns):
            lane.waiting.popleft()
            lane.on_drop("late")
            self._changed.notify_all()


def is_idle(lane: Lane) -> bool:
    """Whether a lane wants nothing of the engine."""
    return not (lane.waiting or lane.in_flight)


def is_first(other: Lane, lane: Lane) -> bool:
    """Whether another lane is to be served before this one, now or when its next frame comes, as it did lately."""
    return other.served < lane.served and (not is_idle(other) or other.turns[1] > lane.turns[0])


def is_late(frame: Frame, age_budget_ns: int, now_ns: int) -> bool:
    """Whether a frame is older than its feed's budget, and than it became by being held back and as long again.

    That is no more than the budget again, and nothing beside it where frames are held back for less than half of it.
    """
    allowed_ns = max(age_budget_ns, frame.held_ns + min(frame.held_ns, age_budget_ns))
    return now_ns - frame.arrived_ns > allowed_ns


def size(frame: Frame) -> tuple[int, int]:
    """Width and height, which all frames of a batch share."""
    return frame.width, frame.height


def enhance(engine: Door, frames: list[Frame], recalls: Sequence[Recall] = ()) -> list[Slot]:
    """Start one batch: a submitted slot for each frame, to be waited for, read and released by the caller.

    `recalls` are those of the frames' feeds; without any each picture stands alone.
    """
    slots: list[Slot] = []
    try:
        for frame in frames:
            slots.append(engine.acquire(frame.width, frame.height))
            fill(slots[-1], frame)
        for recall, slot, frame in zip(recalls, slots, frames, strict=False):
            recall.lend(slot, frame)
        engine.submit(slots)
    except BaseException:
        for slot in slots:
            slot.release()
        raise
    return slots


def fill(slot: Slot, frame: Frame) -> None:
    """Write a frame's planes into a slot: the only copy of a picture between decoder and engine."""
    y, *chroma = frame.planes()
    slot.y[:] = y
    if chroma:  # of a picture that has none, the engine ignores what is there
        slot.uv[0], slot.uv[1] = chroma
    slot.colour = frame.colour
