"""Frames of all feeds into the engine: the freshest of each feed, in batches, and never more than it can carry."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic, TypeVar

from engines.door import Door, Slot
from stream.frame import Frame, Planes
from stream.metrics import DropReason
from stream.recall import Recall

Key = TypeVar("Key", bound=Hashable)
"""What stands for a feed."""


class Turn:
    """A batch that was taken."""


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
    in_engine: deque[Turn] = field(default_factory=deque)
    """Of the frames taken that the engine has not done with, as far as is known."""
    served: int = 0
    """Pixels that the engine was given, counted so that lanes which were idle have no claim on the past."""
    closed: bool = False
    """Whether frames are dropped rather than taken in."""


class Gather(Generic[Key]):
    """Where frames wait for the engine: a short lane for each feed, read by one thread.

    A lane holds `LANE_LENGTH` frames, or the `BURST` latest of those that arrived within `BURST_NS`, and has at most
    `IN_FLIGHT` more in the engine and the encoder, which bounds the memory of a feed. A slow feed or encoder fills only
    its own lane. The engine is given no more than keeps it busy: who waits, waits here, where the freshest frame is
    taken. When all want more than the engine can do, the lane that was given the fewest pixels goes first, so that
    large pictures cost the feed that sends them.
    """

    LANE_LENGTH = 2
    BURST, BURST_NS = 12, 60_000_000
    IN_FLIGHT = 2

    def __init__(self) -> None:
        self._lanes: dict[Key, Lane] = {}
        self._turns: set[Turn] = set()
        """Of the batches of which no frame is known to have come out of the engine."""
        lock = threading.Lock()
        self._to_take = threading.Condition(lock)
        """That `take` may find something; it is woken for nothing else, as by every picture that comes out."""
        self._changed = threading.Condition(lock)
        """Of what all others wait for."""
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
            self._turns.difference_update(lane.in_engine)
            self._tell()

    def put(self, feed: Key, frame: Frame) -> None:
        """Add a frame. Live: never blocks, a full lane drops its oldest frames. Else: waits for room."""
        with self._changed:
            lane = self._lanes[feed]
            if not lane.live:
                self._changed.wait_for(lambda: len(lane.waiting) < self.LANE_LENGTH or lane.closed or self._closed)
            if lane.closed or self._closed:
                lane.on_drop("stopped")
                return
            while self._is_full(lane, frame):
                lane.waiting.popleft()
                lane.on_drop("overload")
            if is_idle(lane):
                busy = [other.served for other in self._lanes.values() if not is_idle(other)]
                lane.served = max(lane.served, min(busy, default=0))
            lane.waiting.append(frame)
            if self._is_ready(lane):
                self._to_take.notify()

    def take(self, limit: int, depth: int, now_ns: Callable[[], int]) -> list[tuple[Key, Frame]]:
        """Up to `limit` frames of one size, one of each feed; waits for the first, for no other, and while there are
        `depth` batches in the engine.

        Frames of live feeds past their age budget are dropped. Returns [] once closed and empty.
        """
        with self._to_take:
            while not self._finished():
                if self._has_room(depth) and any(map(self._is_ready, self._lanes.values())):
                    batch = self._batch(limit, now_ns())
                    self._changed.notify_all()
                    if batch:
                        return batch
                else:
                    self._to_take.wait()
            return []

    def came_out(self, feed: Key) -> None:
        """The engine has done with the first of a feed's frames that are in it."""
        with self._changed:
            if feed in self._lanes:
                self._come_out(self._lanes[feed])
                self._tell()

    def done(self, feed: Key) -> None:
        """A frame that was taken has left the encoder."""
        with self._changed:
            if feed in self._lanes:
                lane = self._lanes[feed]
                lane.in_flight -= 1
                while len(lane.in_engine) > lane.in_flight:
                    self._come_out(lane)
                self._tell()

    def drain(self, feed: Key) -> None:
        """Return when nothing of a feed waits here, or is in the engine or the encoder."""
        with self._changed:
            lane = self._lanes[feed]
            self._changed.wait_for(lambda: is_idle(lane))

    def close(self) -> None:
        """No more frames; those that wait can still be taken."""
        with self._changed:
            self._closed = True
            self._tell()

    def abandon(self, feed: Key | None = None) -> None:
        """Drop what waits, and all that is still to come, of one feed or of all."""
        with self._changed:
            for lane in self._lanes.values() if feed is None else [self._lanes[feed]]:
                self._abandon(lane)
            self._tell()

    def _tell(self) -> None:
        """Wake whoever may find what it waits for."""
        self._changed.notify_all()
        if self._closed or any(lane.waiting for lane in self._lanes.values()):
            self._to_take.notify()

    def _abandon(self, lane: Lane) -> None:
        lane.closed = True
        while lane.waiting:
            lane.waiting.popleft()
            lane.on_drop("stopped")

    def _finished(self) -> bool:
        return self._closed and not any(lane.waiting for lane in self._lanes.values())

    def _is_full(self, lane: Lane, frame: Frame) -> bool:
        """Whether a live lane must drop its oldest frame before it can take in this one."""
        if len(lane.waiting) < self.LANE_LENGTH:
            return False
        return len(lane.waiting) >= self.BURST or frame.arrived_ns - lane.waiting[0].arrived_ns >= self.BURST_NS

    def _has_room(self, depth: int) -> bool:
        """Whether fewer than `depth` batches are in the engine.

        While a feed's encoder is busy nobody sees its next frame come out: that one does not count.
        """
        if len(self._turns) < depth:
            return True
        awaited = (lane.in_engine for lane in self._lanes.values() if len(lane.in_engine) == lane.in_flight)
        return len(self._turns.intersection(chain.from_iterable(awaited))) < depth

    def _come_out(self, lane: Lane) -> None:
        if lane.in_engine:
            self._turns.discard(lane.in_engine.popleft())

    def _is_ready(self, lane: Lane) -> bool:
        return bool(lane.waiting) and lane.in_flight < self.IN_FLIGHT

    def _batch(self, limit: int, now_ns: int) -> list[tuple[Key, Frame]]:
        batch: list[tuple[Key, Frame]] = []
        turn = Turn()
        for lane in self._lanes.values():
            self._drop_late(lane, now_ns)
        ready = [(feed, lane) for feed, lane in self._lanes.items() if self._is_ready(lane)]
        for feed, lane in sorted(ready, key=lambda item: item[1].served):
            if len(batch) == limit:
                break
            if batch and size(lane.waiting[0]) != size(batch[0][1]):
                continue
            frame = lane.waiting.popleft()
            batch.append((feed, frame))
            lane.in_flight += 1
            lane.in_engine.append(turn)
            lane.served += frame.width * frame.height
        if batch:
            self._turns.add(turn)
        return batch

    @staticmethod
    def _drop_late(lane: Lane, now_ns: int) -> None:
        while lane.live and lane.waiting and is_late(lane.waiting[0], lane.age_budget_ns, now_ns):
            lane.waiting.popleft()
            lane.on_drop("late")


def is_idle(lane: Lane) -> bool:
    """Whether a lane wants nothing of the engine."""
    return not (lane.waiting or lane.in_flight)


def is_late(frame: Frame, age_budget_ns: int, now_ns: int) -> bool:
    """Whether a frame is older than its feed allows, and than it may be since it could not be had sooner.

    Beyond that it has as long again, but no longer than the budget: a feed that holds little back has the budget alone.
    """
    age_ns = now_ns - frame.arrived_ns
    return age_ns > age_budget_ns and age_ns > frame.held_ns + min(frame.held_ns, age_budget_ns)


def size(frame: Frame) -> tuple[int, int]:
    """Width and height, which all frames of a batch share."""
    return frame.width, frame.height


def enhance(
    engine: Door, frames: Sequence[Frame], recalls: Sequence[Recall] = (), planes: Sequence[Planes] | None = None
) -> list[Slot]:
    """Start one batch: a submitted slot for each frame, to be waited for, read and released by the caller.

    `recalls` are those of the frames' feeds; without any each picture stands alone. `planes` are those of the frames,
    where the caller has them already.
    """
    slots: list[Slot] = []
    try:
        for frame, views in zip(frames, planes or map(Frame.planes, frames), strict=True):
            slots.append(engine.acquire(frame.width, frame.height))
            fill(slots[-1], frame, views)
        for recall, slot, frame in zip(recalls, slots, frames, strict=False):
            recall.lend(slot, frame)
        engine.submit(slots)
    except BaseException:
        for slot in slots:
            slot.release()
        raise
    return slots


def fill(slot: Slot, frame: Frame, planes: Planes) -> None:
    """Write a frame's planes into a slot: the only copy of a picture between decoder and engine."""
    y, *chroma = planes
    slot.y[:] = y
    if chroma:  # of a picture that has none, the engine ignores what is there
        slot.uv[0], slot.uv[1] = chroma
    slot.colour = frame.colour
