"""The queue between the thread that reads a source and the thread that uses the packets, bounded by age and size."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from av.packet import Packet
from av.stream import Stream

LARGEST_BACKLOG = 64_000_000
"""Bytes; beyond that, packets are dropped whatever their age."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A packet, its kind and when it was read; stays valid after its container is closed."""

    packet: Packet[Stream]
    is_video: bool
    """Whether it is an access unit."""
    received_ns: int
    """UTC, nanoseconds since 1970."""
    at: float
    """The same in seconds of a monotonic clock."""


class Backlog:
    """A queue that never refuses: packets that wait too long are dropped, up to a key frame. Pure, without a lock."""

    def __init__(self, age_budget: float) -> None:
        """`age_budget` is how long the oldest packet may have waited when another comes, in seconds."""
        self.dropped = 0
        """Access units that were dropped."""
        self.bytes = 0
        self._age_budget = age_budget
        self._arrivals: deque[Arrival] = deque()
        self._skipping = False  # until a key frame comes

    def __len__(self) -> int:
        return len(self._arrivals)

    def add(self, arrival: Arrival) -> None:
        """Add a packet, and drop the oldest ones if they are too old or too large together."""
        if arrival.is_video and self._skipping:
            if not arrival.packet.is_keyframe:
                self.dropped += 1
                return
            self._skipping = False
        self._arrivals.append(arrival)
        self.bytes += arrival.packet.size
        while len(self) > 1 and (arrival.at - self._arrivals[0].at > self._age_budget or self.bytes > LARGEST_BACKLOG):
            self._drop_group()

    def take(self) -> Arrival | None:
        """Remove and return the oldest packet; None if there is none."""
        if not self._arrivals:
            return None
        arrival = self._arrivals.popleft()
        self.bytes -= arrival.packet.size
        return arrival

    def clear(self) -> None:
        """Forget all."""
        self._arrivals.clear()
        self.bytes = 0

    def _drop_group(self) -> None:
        """Drop the oldest packets up to the next key frame; if there is none, all, and further ones until it comes."""
        while (arrival := self.take()) is not None:
            self.dropped += arrival.is_video
            self._skipping = self._skipping or arrival.is_video
            if self._arrivals and self._arrivals[0].is_video and self._arrivals[0].packet.is_keyframe:
                self._skipping = False
                return
