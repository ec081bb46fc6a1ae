"""Passes frames of all feeds to the engine: the freshest of each feed, in batches, and only as many as keep it busy."""

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
"""Identifies a feed."""


class Turn:
    """A batch that was taken."""


@dataclass(eq=False)
class Lane:
    """One feed's queue in front of the engine."""

    live: bool
    """Whether a full lane drops its oldest frame; otherwise `put` waits."""
    age_budget_ns: int
    on_drop: Callable[[DropReason], None]
    waiting: deque[Frame] = field(default_factory=deque)
    in_flight: int = 0
    """Frames taken whose slots are not yet given back."""
    in_engine: deque[Turn] = field(default_factory=deque)
    """The batches of frames taken that, as far as is known, the engine has not finished."""
    served: int = 0
    """Pixels given to the engine; adjusted after idle time, so that an idle lane earns no priority."""
    closed: bool = False
    """Whether new frames are dropped."""


class Gather(Generic[Key]):
    """Where frames wait for the engine: a short lane for each feed, read by one thread.

    A lane holds `LANE_LENGTH` frames, or the `BURST` latest of those that arrived within `BURST_NS`, and has at most
    `IN_FLIGHT` more in the engine and the encoder, which bounds the memory of a feed. A slow feed or encoder fills only
    its own lane. The engine is given only as much as keeps it busy: frames wait here instead, where the freshest is
    taken. When the engine is overloaded, the lane that was given the fewest pixels goes first, so that large pictures
    cost the feed that sends them.
    """

    LANE_LENGTH = 2
    BURST, BURST_NS = 12, 60_000_000
    IN_FLIGHT = 2

    def __init__(self) -> None:
        self._lanes: dict[Key, Lane] = {}
        self._turns: set[Turn] = set()
        """The batches of which no frame is known to have come out of the engine."""
        lock = threading.Lock()
        self._to_take = threading.Condition(lock)
        """Notified only if `take` may find something, not for every picture that comes out."""
        self._changed = threading.Condition(lock)
        """Notified of what all other threads wait for."""
        self._closed = False

    def open_lane(self, feed: Key, lane: Lane) -> None:
        """Add a feed's lane."""
        with self._changed:
            self._lanes[feed] = lane

    def close_lane(self, feed: Key) -> None:
        """Remove a feed's lane; see `drain`."""
        with self._changed:
            lane = self._lanes.pop(feed)
            self._abandon(lane)
            self._turns.difference_update(lane.in_engine)
            self._wake()

    def put(self, feed: Key, frame: Frame) -> None:
        """Add a frame. Live: never blocks; a full lane drops its oldest frames. Else: waits for room."""
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
        """Up to `limit` frames of one size, one per feed; waits for the first frame only, and while the engine has
        `depth` batches.

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
        """Note that the engine has finished the first of a feed's frames in it."""
        with self._changed:
            if feed in self._lanes:
                self._come_out(self._lanes[feed])
                self._wake()

    def done(self, feed: Key) -> None:
        """Note that a frame that was taken has left the encoder."""
        with self._changed:
            if feed in self._lanes:
                lane = self._lanes[feed]
                lane.in_flight -= 1
                while len(lane.in_engine) > lane.in_flight:
                    self._come_out(lane)
                self._wake()

    def drain(self, feed: Key) -> None:
        """Wait until no frame of a feed is here, in the engine or in the encoder."""
        with self._changed:
            lane = self._lanes[feed]
            self._changed.wait_for(lambda: is_idle(lane))

    def close(self) -> None:
        """Take no more frames; those that wait can still be taken out."""
        with self._changed:
            self._closed = True
            self._wake()

    def abandon(self, feed: Key | None = None) -> None:
        """Drop all waiting and all further frames, of one feed or of all."""
        with self._changed:
            for lane in self._lanes.values() if feed is None else [self._lanes[feed]]:
                self._abandon(lane)
            self._wake()

    def _wake(self) -> None:
        """Wake the threads that may find what they wait for."""
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

        While a feed's encoder is busy, nobody notices that its next frame has come out, so that frame does not count.
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
    """Whether a lane has no frame waiting or in flight."""
    return not (lane.waiting or lane.in_flight)


def is_late(frame: Frame, age_budget_ns: int, now_ns: int) -> bool:
    """Whether a frame is older than both its feed's age budget and its unavoidable delay (`held_ns`) allow.

    Beyond that delay a frame may take as long again, but no longer than the budget; with a short delay the budget alone
    counts.
    """
    age_ns = now_ns - frame.arrived_ns
    return age_ns > age_budget_ns and age_ns > frame.held_ns + min(frame.held_ns, age_budget_ns)


def size(frame: Frame) -> tuple[int, int]:
    """Width and height, which all frames of a batch share."""
    return frame.width, frame.height


def enhance(
    engine: Door, frames: Sequence[Frame], recalls: Sequence[Recall] = (), planes: Sequence[Planes] | None = None
) -> list[Slot]:
    """Submit one batch; returns a slot for each frame, which the caller waits for, reads and releases.

    `recalls` belong to the frames' feeds; without them each picture stands alone. `planes` are the frames' planes, if
    the caller already has them.
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
    if chroma:  # a grey picture has none, and the engine ignores what is there
        slot.uv[0], slot.uv[1] = chroma
    slot.colour = frame.colour
