"""Age, loss and rate of a feed, as a viewer finds them."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stream.subscribe import Subscriber
    from stream.wire import Message, Stamped

AGES_KEPT = 10_000

STALE_SECONDS = 2.0
"""A picture that has stood this long is not live any more."""


@dataclass
class Figures:
    """Age, loss and rate of the pictures that have come."""

    pictures: int = 0
    octets: int = 0
    began: float = 0.0
    latest: float = 0.0
    """Of the first and the latest picture, in seconds of the monotonic clock."""
    header: Stamped | None = None
    """Of the latest picture."""
    ages_ms: deque[float] = field(default_factory=lambda: deque(maxlen=AGES_KEPT))
    """Capture to now, of the latest pictures."""

    def add(self, message: Message) -> None:
        """Count a picture that has just come."""
        self.latest = time.monotonic()
        if not self.pictures:
            self.began = self.latest
        self.pictures += 1
        self.octets += len(message.payload)
        self.header = message.header
        if message.header.capture_ns is not None:
            self.ages_ms.append((time.time_ns() - message.header.capture_ns) / 1e6)

    def silence(self) -> float:
        """Seconds since the latest picture came; 0 before the first."""
        return time.monotonic() - self.latest if self.pictures else 0.0

    def is_stale(self) -> bool:
        """Whether the latest picture has stood too long to be taken for live."""
        return self.silence() > STALE_SECONDS

    def values(self, subscriber: Subscriber) -> dict[str, object]:
        """All figures; ages are None where no clock told, rates where there was one picture only."""
        seconds, lost = self.latest - self.began, subscriber.lost
        return {
            "feed": self.header.feed if self.header else None,
            "pictures": self.pictures,
            "seconds": seconds,
            "rate_fps": (self.pictures - 1) / seconds if seconds else None,
            "bit_rate": 8 * self.octets / seconds if seconds else None,
            "age_p50_ms": self.age_ms(50),
            "age_p95_ms": self.age_ms(95),
            "capture_clock": self.header.capture_clock if self.header else None,
            "lost": lost,
            "loss_percent": 100 * lost / max(1, lost + subscriber.received),
            "dropped": subscriber.dropped,
            "states": subscriber.states,
        }

    def age_ms(self, percentile: float) -> float | None:
        """A percentile of the ages."""
        import numpy as np

        return float(np.percentile(self.ages_ms, percentile)) if self.ages_ms else None

    def line(self, subscriber: Subscriber) -> str:
        """The main figures on one line, or for how long no picture has come."""
        if not self.pictures:
            return "no picture yet"
        if self.is_stale():
            return f"no picture for {self.silence():.0f} s; lost {subscriber.lost}"
        age, late = self.age_ms(50) or 0, self.age_ms(95) or 0
        seconds = max(self.latest - self.began, 1.0)  # less is no rate
        return (
            f"age p50 {age:.0f} ms, p95 {late:.0f} ms; {(self.pictures - 1) / seconds:.1f} pictures/s; "
            f"{8e-3 * self.octets / seconds:.0f} kbit/s; lost {subscriber.lost}"
        )
