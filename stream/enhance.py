"""Frames of all feeds into the engine: the freshest of each feed, in batches, and never more than it can carry."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from engines.door import Engine, Slot
from stream.frame import Frame

NEUTRAL_CHROMA = 128

DropReason = Literal["overload", "late", "stopped"]
"""`overload`: newer frames came before the engine was free; `late`: past the age budget; `stopped`: at the end."""


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


class Gather:
    """Where frames wait for the engine: a short lane for each feed, read by one thread.

    A lane holds `LANE_LENGTH` frames and has at most `IN_FLIGHT` more in the engine and the encoder, which bounds
    the memory of a feed. A slow feed or encoder fills only its own lane.
    """

    LANE_LENGTH = 2
    IN_FLIGHT = 2

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}
        self._changed = threading.Condition()
        self._closed = False
        self.abandoned = False
        """Whether what is under way is to be dropped, too."""

    def open_lane(self, feed: str, lane: Lane) -> None:
        """Make a place for a feed."""
        with self._changed:
            self._lanes[feed] = lane

    def put(self, feed: str, frame: Frame) -> None:
        """Add a frame. Live: never blocks, a full lane drops its oldest frame. Else: waits for room."""
        with self._changed:
            lane = self._lanes[feed]
            if not lane.live:
                self._changed.wait_for(lambda: len(lane.waiting) < self.LANE_LENGTH or self._closed)
            if self._closed:
                lane.on_drop("stopped")
                return
            if len(lane.waiting) >= self.LANE_LENGTH:
                lane.waiting.popleft()
                lane.on_drop("overload")
            lane.waiting.append(frame)
            self._changed.notify_all()

    def take(self, limit: int, now_ns: Callable[[], int]) -> list[tuple[str, Frame]]:
        """Up to `limit` frames of one size, one of each feed; waits for the first, for no other.

        Frames of live feeds past their age budget are dropped. Returns [] once closed and empty.
        """
        with self._changed:
            while True:
                self._changed.wait_for(lambda: any(map(self._is_ready, self._lanes.values())) or self._finished())
                batch = self._batch(limit, now_ns())
                if batch or self._finished():
                    self._changed.notify_all()
                    return batch

    def done(self, feed: str) -> None:
        """A frame that was taken has left the encoder."""
        with self._changed:
            self._lanes[feed].in_flight -= 1
            self._changed.notify_all()

    def drain(self, feed: str) -> None:
        """Return when nothing of a feed waits here, or is in the engine or the encoder."""
        with self._changed:
            lane = self._lanes[feed]
            self._changed.wait_for(lambda: not lane.waiting and not lane.in_flight)

    def close(self) -> None:
        """No more frames; those that wait can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Close, and drop what waits: nobody will take it."""
        with self._changed:
            self._closed = self.abandoned = True
            for lane in self._lanes.values():
                while lane.waiting:
                    lane.waiting.popleft()
                    lane.on_drop("stopped")
            self._changed.notify_all()

    def _finished(self) -> bool:
        return self._closed and not any(lane.waiting for lane in self._lanes.values())

    def _is_ready(self, lane: Lane) -> bool:
        return bool(lane.waiting) and lane.in_flight < self.IN_FLIGHT

    def _batch(self, limit: int, now_ns: int) -> list[tuple[str, Frame]]:
        batch: list[tuple[str, Frame]] = []
        for feed, lane in list(self._lanes.items()):
            self._drop_late(lane, now_ns)
            if not self._is_ready(lane) or len(batch) == limit:
                continue
            if batch and size(lane.waiting[0]) != size(batch[0][1]):
                continue
            batch.append((feed, lane.waiting.popleft()))
            lane.in_flight += 1
            self._lanes[feed] = self._lanes.pop(feed)  # whoever was served goes to the end of the line
        return batch

    @staticmethod
    def _drop_late(lane: Lane, now_ns: int) -> None:
        while lane.live and lane.waiting and now_ns - lane.waiting[0].received_ns > lane.age_budget_ns:
            lane.waiting.popleft()
            lane.on_drop("late")


def size(frame: Frame) -> tuple[int, int]:
    """Width and height, which all frames of a batch share."""
    return frame.width, frame.height


def enhance(engine: Engine, frames: list[Frame]) -> list[Slot]:
    """Start one batch: a submitted slot for each frame, to be waited for, read and released by the caller."""
    slots: list[Slot] = []
    try:
        for frame in frames:
            slots.append(engine.acquire(frame.width, frame.height))
            fill(slots[-1], frame)
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
    if chroma:
        slot.uv[0], slot.uv[1] = chroma
    else:
        slot.uv[:] = NEUTRAL_CHROMA
    slot.colour = frame.colour
