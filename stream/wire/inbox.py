"""Which received messages a reader is given: none after a hole before the next key frame, and never old ones.

Nothing here reads a clock or a socket: every call is told the time, in nanoseconds of a steady clock.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Literal

from stream.wire.messages import PICTURE_KINDS, Kind, Message

Reason = Literal["late", "unread", "no key frame"]
"""Why a message is dropped: it came too late; its reader took too long; it needs a picture that isn't there."""

SHORTEST_NS, LONGEST_NS = 1_000_000_000, 8_000_000_000
"""Between two requests for a key frame of one feed (the relay makes no more than one a second, either), and how long
nothing but late messages may come before the connection is to be made anew: at first, and where that does not help."""

LASTING_NS = 5_000_000_000
"""For how long pictures must come after such an attempt for it to have helped."""

LONGEST_KEY_NS = 1_000_000_000
"""How late a key frame may be for its own length; one that is later is late like any other message."""

NEVER = 2**63


class Inbox:
    """Messages that wait for their reader: none of them is more than `max_age` seconds older than it could be.

    A key frame that alone takes longer, on a link that is not backed up, and what is behind it may be as late as it was
    and a third of `max_age` more. With `max_age` None no age is too high, and whoever adds messages looks at `len()`
    first.
    """

    def __init__(self, max_age: float | None) -> None:
        self.received = 0
        self.lost = 0
        self.dropped: Counter[Reason] = Counter()
        self.states: Counter[str] = Counter()
        self._max_age_ns = None if max_age is None else int(max_age * 1e9)
        self._lateness = Lateness()
        self._before_ns = 0
        """How late the message before was."""
        self._key_took_ns = 0
        """How late the latest key frame was for its own length."""
        self._late_since_ns: int | None = None
        self._patience = Pause()
        """Before the connection is made anew."""
        self._is_read = True
        """Whether there is a reader: for one that stands still no relay is to make key frames."""
        self._tracks: dict[tuple[str, Kind], Track] = {}
        self._waiting: deque[tuple[Message, int]] = deque()
        """With the time until which each is worth reading."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, message: Message, now_ns: int) -> bool:
        """Take in what has just come; tells whether to ask the relay for a key frame of this message's topic."""
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
        in_vain = is_late and self._patience.has_grown  # the key frame would be as late
        return message.kind == "video" and self._is_read and not in_vain and track.asks(now_ns)

    def take(self, now_ns: int) -> Message | None:
        """The oldest message that is still worth reading."""
        self._drop_unread(now_ns)
        self._is_read = True
        return self._waiting.popleft()[0] if self._waiting else None

    def is_behind(self, now_ns: int) -> bool:
        """Whether nothing but late messages has come for so long that what is on its way is better thrown away."""
        return self._late_since_ns is not None and now_ns - self._late_since_ns > self._patience.ns

    def begin_anew(self, now_ns: int) -> None:
        """The connection is a new one, with nothing old on its way."""
        self._lateness = Lateness()
        self._key_took_ns = self._before_ns = 0
        self._late_since_ns = None
        self._patience.begin(now_ns)
        for track in self._tracks.values():
            track.ask(now_ns)

    def _best_before(self, message: Message, now_ns: int) -> int:
        """Until when a message that has just come is worth reading; a time that is over where it is late."""
        if self._max_age_ns is None:
            return NEVER
        late_ns = self._lateness.of(message.header.relay, message.header.published_ns, now_ns)
        if message.header.key and self._before_ns <= self._max_age_ns // 3:  # nothing was backed up before it
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
        """Drop a topic's oldest message, and of pictures all up to the next key frame."""
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
    """What came last on one topic."""

    def __init__(self, pictures: bool) -> None:
        self.pictures = pictures
        """Whether messages refer to earlier ones."""
        self._asked_ns = 0
        """When a key frame was last asked for; a new connection asks for one by itself."""
        self._pause = Pause()
        """Before one is asked for again."""
        self._broken = pictures
        """Whether the next message is of no use unless it is a key frame."""
        self._relay: str | None = None
        self._seq = -1

    def follow(self, relay: str, seq: int, now_ns: int) -> int:
        """How many messages were lost just before this one; a new relay starts anew."""
        expected, same = self._seq + 1, relay == self._relay
        self._relay, self._seq = relay, seq
        if not same or seq != expected:
            self.cut(now_ns)
        if not same:
            self._asked_ns = now_ns
        return max(0, seq - expected) if same else 0

    def cut(self, now_ns: int) -> None:
        """What comes next has lost what it refers to."""
        if self.pictures and not self._broken:
            self._broken = True
            self._pause.end(now_ns)

    def takes(self, key: bool) -> bool:
        """Whether the next message is of use; a key frame always is."""
        self._broken = self._broken and not key
        return not self._broken

    def asks(self, now_ns: int) -> bool:
        """Whether a key frame is missing and to be asked for now."""
        if not self._broken or now_ns - self._asked_ns < self._pause.ns:
            return False
        self.ask(now_ns)
        return True

    def ask(self, now_ns: int) -> None:
        """A key frame is asked for."""
        self._asked_ns = now_ns
        self._pause.begin(now_ns)


class Pause:
    """How long to wait before the next attempt to have fresh pictures again: it doubles with each one that did not help
    for long, and is the shortest again after one that did. For a link that is too thin each costs all viewers bits."""

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
        """An attempt is made."""
        self._begun_ns, self._judged = now_ns, False

    def end(self, now_ns: int) -> None:
        """Pictures have ceased to come, or to be fresh."""
        if now_ns - self._begun_ns >= LASTING_NS:
            self.ns = SHORTEST_NS
        elif not self._judged:
            self.ns = min(2 * self.ns, LONGEST_NS)
        self._judged = True


class Lateness:
    """Tells how much longer than the quickest one a message took, whatever two clocks say.

    Sender and receiver need not agree on the time: the smallest difference between coming and publishing stands
    for "at once".
    """

    DRIFT = 0.001
    """By how much two clocks may run apart, in seconds a second."""

    def __init__(self) -> None:
        self._relay: str | None = None
        self._least_ns = 0
        self._measured_ns = 0

    def of(self, relay: str, published_ns: int, now_ns: int) -> int:
        """Nanoseconds by which a message that has just come is later than it could be."""
        taken_ns = now_ns - published_ns
        usual_ns = self._least_ns + int(self.DRIFT * (now_ns - self._measured_ns))
        if relay != self._relay or taken_ns <= usual_ns:
            self._relay, self._least_ns, self._measured_ns = relay, taken_ns, now_ns
            return 0
        return taken_ns - usual_ns
