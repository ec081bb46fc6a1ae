"""Decides which received messages a reader is given: none between a gap and the next key frame, and never stale ones.

Nothing here reads a clock or a socket: every call is passed the time, in nanoseconds of a monotonic clock.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Literal

from stream.wire.messages import PICTURE_KINDS, Kind, Message

Reason = Literal["late", "unread", "no key frame"]
"""Why a message is dropped: it came too late; its reader took too long; it needs a picture that isn't there."""

SHORTEST_NS, LONGEST_NS = 1_000_000_000, 8_000_000_000
"""Shortest and longest pause between two requests for a key frame of one feed (the relay makes at most one a second),
and before a connection that brings only late messages is made anew; it grows while attempts do not help."""

LASTING_NS = 5_000_000_000
"""For how long pictures must come after such an attempt for it to count as a success."""

LONGEST_KEY_NS = 1_000_000_000
"""How late a key frame may be because of its size; one that is later is late like any other message."""

NEVER = 2**63


class Inbox:
    """Messages that wait for their reader, none of them delayed by more than `max_age` seconds.

    If a key frame alone takes longer, on a link without a backlog, it and what follows may be as late as it was plus a
    third of `max_age`. With `max_age` None nothing is too old, and whoever adds messages checks `len()` first.
    """

    def __init__(self, max_age: float | None) -> None:
        self.received = 0
        self.lost = 0
        self.dropped: Counter[Reason] = Counter()
        self.states: Counter[str] = Counter()
        self._max_age_ns = None if max_age is None else int(max_age * 1e9)
        self._lateness = Lateness()
        self._before_ns = 0
        """How late the previous message was."""
        self._key_took_ns = 0
        """How late the latest key frame was because of its size."""
        self._late_since_ns: int | None = None
        self._patience = Pause()
        """Before the connection is made anew."""
        self._is_read = True
        """Whether the reader takes messages: no key frame is requested for one that stands still."""
        self._tracks: dict[tuple[str, Kind], Track] = {}
        self._waiting: deque[tuple[Message, int]] = deque()
        """Each with the time until which it is worth reading."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, message: Message, now_ns: int) -> bool:
        """Add a message that has just arrived; True if the relay is to be asked for a key frame on its topic."""
        header = message.header
        self.received += 1
        if message.kind == "video" and header.state is not None:
            self.states[header.state] += 1
        track = self._tracks.setdefault(address(message), Track(message.kind in PICTURE_KINDS))
        self.lost += track.follow(header.relay, header.seq, now_ns)
        if header.gop == 0:
            track.cut(now_ns)
        best_before_ns = self._best_before(message, now_ns)
        if is_late := best_before_ns < now_ns:
            self.dropped["late"] += 1
            track.cut(now_ns)
        elif not track.takes(header.key):
            self.dropped["no key frame"] += 1
        else:
            self._waiting.append((message, best_before_ns))
        self._drop_unread(now_ns)
        in_vain = is_late and self._patience.has_grown  # a key frame would be just as late
        return message.kind == "video" and self._is_read and not in_vain and track.asks(now_ns)

    def take(self, now_ns: int) -> Message | None:
        """The oldest message that is still worth reading."""
        self._drop_unread(now_ns)
        self._is_read = True
        return self._waiting.popleft()[0] if self._waiting else None

    def is_behind(self, now_ns: int) -> bool:
        """Whether only late messages have come for so long that the backlog is better thrown away."""
        return self._late_since_ns is not None and now_ns - self._late_since_ns > self._patience.ns

    def begin_anew(self, now_ns: int) -> None:
        """Note that the connection is new, with no backlog."""
        self._lateness = Lateness()
        self._key_took_ns = self._before_ns = 0
        self._late_since_ns = None
        self._patience.begin(now_ns)
        for track in self._tracks.values():
            track.ask(now_ns)

    def _best_before(self, message: Message, now_ns: int) -> int:
        """Until when a message that has just arrived is worth reading; in the past if it is late."""
        if self._max_age_ns is None:
            return NEVER
        late_ns = self._lateness.of(message.header.relay, message.header.published_ns, now_ns)
        if message.header.key and self._before_ns <= self._max_age_ns // 3:  # no backlog before it
            self._key_took_ns = late_ns if late_ns <= LONGEST_KEY_NS else 0
        elif late_ns <= self._max_age_ns // 3:
            self._key_took_ns = 0
        self._before_ns = late_ns
        allowed_ns = max(self._max_age_ns, self._key_took_ns + self._max_age_ns // 3)
        if late_ns <= allowed_ns:
            self._late_since_ns = None
        elif self._late_since_ns is None:
            self._late_since_ns = now_ns
            self._patience.end(now_ns)
        return now_ns + allowed_ns - late_ns

    def _drop_unread(self, now_ns: int) -> None:
        while self._waiting and self._waiting[0][1] < now_ns:
            self._drop_group(address(self._waiting[0][0]), now_ns)
            self._is_read = False

    def _drop_group(self, topic: tuple[str, Kind], now_ns: int) -> None:
        """Drop a topic's oldest message; of pictures, all up to the next key frame."""
        track = self._tracks[topic]
        kept: deque[tuple[Message, int]] = deque()
        first, keep = True, False
        for message, best_before_ns in self._waiting:
            if address(message) == topic and not keep:
                keep = not first and (message.header.key or not track.pictures)
                first = False
                if not keep:
                    self.dropped["unread"] += 1
                    continue
            kept.append((message, best_before_ns))
        if not keep:
            track.cut(now_ns)
        self._waiting = kept


def address(message: Message) -> tuple[str, Kind]:
    """Feed and kind: what a topic is made of."""
    return message.header.feed, message.kind


class Track:
    """The latest state of one topic."""

    def __init__(self, pictures: bool) -> None:
        self.pictures = pictures
        """Whether messages refer to earlier ones."""
        self._asked_ns = 0
        """When a key frame was last asked for; a new connection asks for one by itself."""
        self._pause = Pause()
        """Before one is asked for again."""
        self._broken = pictures
        """Whether the next message is useless unless it is a key frame."""
        self._relay: str | None = None
        self._seq = -1

    def follow(self, relay: str, seq: int, now_ns: int) -> int:
        """Note a message's `seq`; returns how many were lost just before it. A new relay starts anew."""
        expected, same = self._seq + 1, relay == self._relay
        self._relay, self._seq = relay, seq
        if not same or seq != expected:
            self.cut(now_ns)
        if not same:
            self._asked_ns = now_ns
        return max(0, seq - expected) if same else 0

    def cut(self, now_ns: int) -> None:
        """Note that what the next messages refer to is missing."""
        if self.pictures and not self._broken:
            self._broken = True
            self._pause.end(now_ns)

    def takes(self, key: bool) -> bool:
        """Whether the next message is of use; a key frame always is."""
        self._broken = self._broken and not key
        return not self._broken

    def asks(self, now_ns: int) -> bool:
        """Whether to ask for a missing key frame now, which is noted."""
        if not self._broken or now_ns - self._asked_ns < self._pause.ns:
            return False
        self.ask(now_ns)
        return True

    def ask(self, now_ns: int) -> None:
        """Note that a key frame is asked for."""
        self._asked_ns = now_ns
        self._pause.begin(now_ns)


class Pause:
    """The pause before the next attempt to get fresh pictures: doubled by each attempt that did not help for long,
    reset by one that did. On a link that is too thin, each attempt costs all viewers bandwidth."""

    def __init__(self) -> None:
        self.ns = SHORTEST_NS
        self._begun_ns = -LASTING_NS
        self._judged = True
        """Whether it is known how long the latest attempt has helped."""

    @property
    def has_grown(self) -> bool:
        """Whether the latest attempts were in vain."""
        return self.ns > SHORTEST_NS

    def begin(self, now_ns: int) -> None:
        """Note that an attempt is made."""
        self._begun_ns, self._judged = now_ns, False

    def end(self, now_ns: int) -> None:
        """Note that pictures have stopped coming, or being fresh."""
        if now_ns - self._begun_ns >= LASTING_NS:
            self.ns = SHORTEST_NS
        elif not self._judged:
            self.ns = min(2 * self.ns, LONGEST_NS)
        self._judged = True


class Lateness:
    """Measures how much longer a message took than the quickest one, without synchronised clocks.

    The smallest difference between arrival and publishing counts as no delay.
    """

    DRIFT = 0.001
    """Assumed drift between the two clocks, in seconds per second."""

    def __init__(self) -> None:
        self._relay: str | None = None
        self._least_ns = 0
        self._measured_ns = 0

    def of(self, relay: str, published_ns: int, now_ns: int) -> int:
        """Nanoseconds that a message that has just arrived took longer than the quickest one."""
        taken_ns = now_ns - published_ns
        usual_ns = self._least_ns + int(self.DRIFT * (now_ns - self._measured_ns))
        if relay != self._relay or taken_ns <= usual_ns:
            self._relay, self._least_ns, self._measured_ns = relay, taken_ns, now_ns
            return 0
        return taken_ns - usual_ns
