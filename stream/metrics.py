"""What a feed has done so far: every access unit that came in is published, dropped, lost or still on its way."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

AGES_KEPT = 10_000


@dataclass(frozen=True)
class FeedFigures:
    """A feed's counts at one moment; `received == published + dropped + lost + under_way`."""

    received: int
    """Access units that came from the source."""
    published: int
    dropped: dict[str, int]
    """On purpose, by reason."""
    lost: dict[str, int]
    """By the outside world, by reason."""
    under_way: int
    ages_ms: Sequence[float] = field(repr=False)
    """Capture to published, of the latest pictures."""

    def __str__(self) -> str:
        parts = [f"{self.received} received", f"{self.published} published"]
        parts += [f"{count} dropped ({reason})" for reason, count in self.dropped.items()]
        parts += [f"{count} lost ({reason})" for reason, count in self.lost.items()]
        return ", ".join(parts)

    def age_ms(self, percentile: float) -> float | None:
        """A percentile of the ages in milliseconds; None before the first picture."""
        return float(np.percentile(self.ages_ms, percentile)) if self.ages_ms else None


class FeedMeter:
    """Counts one feed; may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._received = 0
        self._published = 0
        self._dropped: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._ages_ms: deque[float] = deque(maxlen=AGES_KEPT)

    def receive(self, count: int = 1) -> None:
        """Access units came from the source."""
        with self._lock:
            self._received += count

    def publish(self, age_ms: float) -> None:
        """An enhanced picture left for the viewers."""
        with self._lock:
            self._published += 1
            self._ages_ms.append(age_ms)

    def drop(self, reason: str) -> None:
        """A frame was thrown away on purpose."""
        with self._lock:
            self._dropped[reason] += 1

    def lose(self, reason: str, count: int = 1) -> None:
        """Access units gave no picture."""
        if count:
            with self._lock:
                self._lost[reason] += count

    def figures(self) -> FeedFigures:
        """All counts, at one moment."""
        with self._lock:
            gone = self._published + self._dropped.total() + self._lost.total()
            return FeedFigures(
                received=self._received,
                published=self._published,
                dropped=dict(self._dropped),
                lost=dict(self._lost),
                under_way=self._received - gone,
                ages_ms=list(self._ages_ms),
            )
