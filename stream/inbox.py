"""Which received messages a reader is given: none after a hole before the next key frame, and never old ones.

Nothing here reads a clock or a socket: every call is told the time, in nanoseconds of a steady clock.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Literal

from stream.wire import PICTURE_KINDS, Kind, Message

Reason = Literal["late", "unread", "no key frame"]
"""Why a message is dropped: it came too late; its reader took too long; it needs a picture that isn't there."""


class Inbox:
    """Messages that wait for their reader; holds what came in within `max_age` seconds, never more."""

    def __init__(self, max_age: float) -> None:
        self.received = 0
        self.lost = 0
        self.dropped: Counter[Reason] = Counter()
        self.states: Counter[str] = Counter()
        self._max_age_ns = int(max_age * 1e9)
        self._lateness = Lateness(self._max_age_ns)
        self._tracks: dict[tuple[str, Kind], Track] = {}
        self._waiting: deque[tuple[Message, int]] = deque()

    def add(self, message: Message, now_ns: int) -> None:
        """Take in what has just come."""
        header = message.header
        self.received += 1
        if message.kind == "video" and header.state is not None:
            self.states[header.state] += 1
        track = self._tracks.setdefault(address(message), Track(message.kind in PICTURE_KINDS))
        self.lost += track.follow(header.relay, header.seq)
        if self._lateness.is_late(header.relay, header.published_ns, now_ns):
            self.dropped["late"] += 1
            track.cut()
        elif not track.takes(header.key):
            self.dropped["no key frame"] += 1
        else:
            self._waiting.append((message, now_ns))
        self._drop_unread(now_ns)

    def take(self, now_ns: int) -> Message | None:
        """The oldest message that is still worth reading."""
        self._drop_unread(now_ns)
        return self._waiting.popleft()[0] if self._waiting else None

    def _drop_unread(self, now_ns: int) -> None:
        while self._waiting and now_ns - self._waiting[0][1] > self._max_age_ns:
            self._drop_group(address(self._waiting[0][0]))

    def _drop_group(self, topic: tuple[str, Kind]) -> None:
        """Drop a topic's oldest message, and of pictures all up to the next key frame."""
        track = self._tracks[topic]
        kept: deque[tuple[Message, int]] = deque()
        first, keep = True, False
        for message, came_ns in self._waiting:
            if address(message) == topic and not keep:
                keep = not first and (message.header.key or not track.pictures)
                first = False
                if not keep:
                    self.dropped["unread"] += 1
                    continue
            kept.append((message, came_ns))
        if not keep:
            track.cut()
        self._waiting = kept


def address(message: Message) -> tuple[str, Kind]:
    """Feed and kind: what a topic is made of."""
    return message.header.feed, message.kind


class Track:
    """What came last on one topic."""

    def __init__(self, pictures: bool) -> None:
        self.pictures = pictures
        """Whether messages refer to earlier ones."""
        self._broken = pictures
        """Whether the next message is of no use unless it is a key frame."""
        self._relay: str | None = None
        self._seq = -1

    def follow(self, relay: str, seq: int) -> int:
        """How many messages were lost just before this one; a new relay starts anew."""
        expected, same = self._seq + 1, relay == self._relay
        self._relay, self._seq = relay, seq
        if not same or seq != expected:
            self.cut()
        return max(0, seq - expected) if same else 0

    def cut(self) -> None:
        """What comes next has lost what it refers to."""
        self._broken = self.pictures

    def takes(self, key: bool) -> bool:
        """Whether the next message is of use; a key frame always is."""
        self._broken = self._broken and not key
        return not self._broken


class Lateness:
    """Tells messages that took much longer than the quickest ones, whatever two clocks say.

    Sender and receiver need not agree on the time: the smallest difference between coming and publishing stands
    for "at once". Where everything has been late for `PATIENCE_NS` it is the link or a clock that has changed, and
    that difference is measured anew.
    """

    PATIENCE_NS = 2_000_000_000
    DRIFT = 0.001
    """By how much two clocks may run apart, in seconds a second."""

    def __init__(self, limit_ns: int) -> None:
        self._limit_ns = limit_ns
        self._relay: str | None = None
        self._least_ns = 0
        self._measured_ns = 0
        self._late_since_ns: int | None = None

    def is_late(self, relay: str, published_ns: int, now_ns: int) -> bool:
        """Whether a message that has just come is more than the limit later than it could be."""
        taken_ns = now_ns - published_ns
        usual_ns = self._least_ns + int(self.DRIFT * (now_ns - self._measured_ns))
        if relay != self._relay or taken_ns <= usual_ns:
            self._relay = relay
            return self._measure(taken_ns, now_ns)
        if taken_ns - usual_ns <= self._limit_ns:
            self._late_since_ns = None
            return False
        if self._late_since_ns is None:
            self._late_since_ns = now_ns
        if now_ns - self._late_since_ns > self.PATIENCE_NS:
            return self._measure(taken_ns, now_ns)
        return True

    def _measure(self, taken_ns: int, now_ns: int) -> bool:
        self._least_ns, self._measured_ns, self._late_since_ns = taken_ns, now_ns, None
        return False
