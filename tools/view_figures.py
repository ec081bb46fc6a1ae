"""Age, loss and rate of a feed, measured at a viewer."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tools.view_feed import words_of

if TYPE_CHECKING:
    from stream.subscribe import Subscriber
    from stream.wire.messages import Message, Stamped, Status

AGES_KEPT = 10_000

STALE_SECONDS = 2.0
"""A picture that has been shown for longer than this is not live."""

RECENT_SECONDS = 10.0
"""Period that the line covers: an average over hours would hide that the last minute is bad."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A picture that has come."""

    at: float
    """Seconds of the monotonic clock."""
    octets: int
    age_ms: float | None
    """Capture to arrival; None without a capture time."""


class Growth:
    """How much counters grew within `RECENT_SECONDS`."""

    def __init__(self) -> None:
        self._noted: deque[tuple[float, Counter[str]]] = deque()

    def note(self, counts: Mapping[str, int]) -> None:
        """Record the current counts; if any has become less, they were reset, and recording starts over."""
        noted = Counter(counts)
        if self._noted and not self._noted[-1][1] <= noted:
            self._noted.clear()
        self._noted.append((time.monotonic(), noted))
        self._forget()

    def recent(self) -> Counter[str]:
        """The growth of each counter; empty before the second note."""
        self._forget()
        return self._noted[-1][1] - self._noted[0][1] if self._noted else Counter()

    def _forget(self) -> None:
        """Drop all notes but those of `RECENT_SECONDS` and the one before them."""
        while len(self._noted) > 1 and self._noted[1][0] <= time.monotonic() - RECENT_SECONDS:
            self._noted.popleft()


@dataclass
class Figures:
    """Age, loss and rate of the pictures that have come."""

    pictures: int = 0
    octets: int = 0
    began: float = 0.0
    latest: float = 0.0
    """Arrival of the first and the latest picture, in seconds of the monotonic clock."""
    seen: float | None = None
    """The same of the latest picture that could be shown."""
    header: Stamped | None = None
    """Header of the latest picture that could be shown."""
    ages_ms: deque[float] = field(default_factory=lambda: deque(maxlen=AGES_KEPT))
    """Capture to arrival, of the latest pictures."""
    status: Status | None = None
    """The latest status from the relay; None before the first."""
    _recent: deque[Arrival] = field(default_factory=deque, init=False, repr=False)
    _lost: Growth = field(default_factory=Growth, init=False, repr=False)
    """Between the relay and this viewer."""
    _undecodable: Growth = field(default_factory=Growth, init=False, repr=False)
    _dropped_there: Growth = field(default_factory=Growth, init=False, repr=False)
    _lost_there: Growth = field(default_factory=Growth, init=False, repr=False)
    """In the relay and before it, by reason."""

    def __post_init__(self) -> None:
        self._lost.note({"lost": 0})
        self.note_undecodable(0)

    def add(self, message: Message, is_seen: bool = True) -> None:
        """Count a picture that has just come; `is_seen` is False if it could not be decoded."""
        self.latest = time.monotonic()
        if not self.pictures:
            self.began = self.latest
        self.pictures += 1
        self.octets += len(message.payload)
        if is_seen:
            self.seen, self.header = self.latest, message.header
        capture_ns = message.header.capture_ns
        age_ms = None if capture_ns is None else (time.time_ns() - capture_ns) / 1e6
        if age_ms is not None:
            self.ages_ms.append(age_ms)
        self._recent.append(Arrival(self.latest, len(message.payload), age_ms))
        self._forget()

    def add_status(self, status: Status | None) -> None:
        """Record the latest status from the relay, if it is new."""
        if status is None or status is self.status:
            return
        self.status = status
        self._dropped_there.note(status.dropped)
        self._lost_there.note(status.lost)

    def note_undecodable(self, undecodable: int) -> None:
        """Record how many pictures could not be decoded so far."""
        self._undecodable.note({"undecodable": undecodable})

    def silence(self) -> float:
        """Seconds since the latest picture that could be shown; 0 before the first."""
        return 0.0 if self.seen is None else time.monotonic() - self.seen

    def is_stale(self) -> bool:
        """Whether the latest picture came too long ago to count as live."""
        return self.silence() > STALE_SECONDS

    def values(self, subscriber: Subscriber) -> dict[str, object]:
        """All figures; ages are None without capture times, rates with fewer than two pictures."""
        seconds, lost = self.latest - self.began, subscriber.lost
        return {
            "feed": self.header.feed if self.header else None,
            "pictures": self.pictures,
            "seconds": seconds,
            "rate_fps": (self.pictures - 1) / seconds if seconds else None,
            "bit_rate": 8 * self.octets / seconds if seconds else None,
            "age_p50_ms": percentile(self.ages_ms, 50),
            "age_p95_ms": percentile(self.ages_ms, 95),
            "capture_clock": self.header.capture_clock if self.header else None,
            "lost": lost,
            "loss_percent": 100 * lost / max(1, lost + subscriber.received),
            "dropped": subscriber.dropped,
            "states": subscriber.states,
        }

    def line(self, subscriber: Subscriber) -> str:
        """The main figures of the latest `RECENT_SECONDS` on one line, or for how long no picture has come."""
        self._lost.note({"lost": subscriber.lost})
        lost = f"lost {self._lost.recent().total()}"
        if self.seen is None:
            parts = ["no picture yet"]
        elif self.is_stale():
            parts = [f"no picture for {self.silence():.0f} s", lost]
        else:
            parts = [*self._pace(), lost]
        if undecodable := self._undecodable.recent().total():
            parts.append(f"{undecodable} cannot be decoded")
        return "; ".join([*parts, *self._drops(), *([trouble] if (trouble := self.trouble()) else [])])

    def trouble(self) -> str | None:
        """Why the feed is not live, or sends nothing although it is, by the latest status; None if all is well, or
        without a status."""
        status = self.status
        return None if status is None or (status.state == "live" and status.reason is None) else words_of(status)

    def _pace(self) -> Iterator[str]:
        """Age, rate and bit rate; needs a picture. Rates are taken over at least one second."""
        self._forget()
        ages = [each.age_ms for each in self._recent if each.age_ms is not None]
        if ages:
            yield f"age p50 {percentile(ages, 50):.0f} ms, p95 {percentile(ages, 95):.0f} ms"
        intervals = max(self._recent[-1].at - self._recent[0].at, 1.0)
        yield f"{(len(self._recent) - 1) / intervals:.1f} pictures/s"
        seconds = min(max(time.monotonic() - self.began, 1.0), RECENT_SECONDS)
        yield f"{8e-3 * sum(each.octets for each in self._recent) / seconds:.0f} kbit/s"

    def _drops(self) -> Iterator[str]:
        """What the relay dropped and lost, with the reasons, the most frequent first."""
        for verb, growth in (("dropped", self._dropped_there), ("lost", self._lost_there)):
            if recent := growth.recent():
                reasons = ", ".join(reason for reason, _ in recent.most_common())
                yield f"the relay {verb} {recent.total()} ({reasons})"

    def _forget(self) -> None:
        """Drop all pictures but those of the latest `RECENT_SECONDS`, and the last."""
        while len(self._recent) > 1 and self._recent[0].at <= time.monotonic() - RECENT_SECONDS:
            self._recent.popleft()


def percentile(values: Iterable[float], percent: float) -> float | None:
    """The value that `percent` of the values lie below; None without values."""
    import numpy as np

    known = list(values)
    return float(np.percentile(known, percent)) if known else None
