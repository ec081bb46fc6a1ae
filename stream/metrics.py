"""Counts of a feed: every access unit that came in is published, dropped, lost or still under way."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

Stage = Literal["decode", "enhance", "encode"]
DropReason = Literal["behind", "overload", "late", "stopped"]
LossReason = Literal["undecodable", "engine", "encoder"]

STAGES: Mapping[DropReason | LossReason, Stage] = {
    "behind": "decode",
    "undecodable": "decode",
    "overload": "enhance",
    "late": "enhance",
    "stopped": "enhance",
    "engine": "enhance",
    "encoder": "encode",
}
"""The stage at which access units are dropped or lost, by reason.

`behind`: the decoder was slower than the camera; `undecodable`: they gave no picture; `overload`: newer pictures came
before the engine was free; `late`: past the age budget; `stopped`: at the end of the feed; `engine` and `encoder`:
these failed.
"""
DROPS: tuple[DropReason, ...] = get_args(DropReason)
LOSSES: tuple[LossReason, ...] = get_args(LossReason)

AGES_KEPT = 10_000

AGE_BOUNDS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
"""Upper bounds in seconds of the histogram's buckets."""


@dataclass(frozen=True)
class AgeHistogram:
    """How old published pictures were, since the feed began."""

    bounds: tuple[float, ...]
    """Upper bounds of the buckets, in seconds."""
    counts: tuple[int, ...]
    """Pictures in each bucket, and last those above all bounds."""
    sum: float
    """Of all ages, in seconds."""


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
    ages: AgeHistogram = field(repr=False)
    reconnects: dict[str, int]
    """How often the source was given up and opened again, by reason."""
    timestamp_repairs: int
    """Pictures whose time stamps were not credible."""
    waiting: int
    """Pictures that wait for the engine."""
    in_engine: int
    """Pictures in the engine or the encoder."""

    def __str__(self) -> str:
        parts = [f"{self.received} received", f"{self.published} published"]
        parts += [f"{count} dropped ({reason})" for reason, count in self.dropped.items()]
        parts += [f"{count} lost ({reason})" for reason, count in self.lost.items()]
        if self.reconnects:
            parts.append(f"{sum(self.reconnects.values())} reconnects")
        return ", ".join(parts)

    def age_ms(self, percentile: float) -> float | None:
        """A percentile of the latest ages in milliseconds; None before the first picture."""
        return float(np.percentile(self.ages_ms, percentile)) if self.ages_ms else None


class FeedMeter:
    """Counts one feed; may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._received = 0
        self._published = 0
        self._dropped: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._reconnects: Counter[str] = Counter()
        self._ages_ms: deque[float] = deque(maxlen=AGES_KEPT)
        self._age_counts = [0] * (len(AGE_BOUNDS) + 1)
        self._age_sum = 0.0

    def receive(self, count: int = 1) -> None:
        """Count access units that came from the source."""
        with self._lock:
            self._received += count

    def publish(self, age_ms: float) -> None:
        """Count a published picture; an age below 0, from a camera whose clock is ahead, counts as 0."""
        age_ms = max(0.0, age_ms)
        with self._lock:
            self._published += 1
            self._ages_ms.append(age_ms)
            self._age_counts[bisect_left(AGE_BOUNDS, age_ms / 1000)] += 1
            self._age_sum += age_ms / 1000

    def drop(self, reason: DropReason, count: int = 1) -> None:
        """Count access units, or their frames, that were dropped on purpose."""
        if count:
            with self._lock:
                self._dropped[reason] += count

    def lose(self, reason: LossReason, count: int = 1) -> None:
        """Count access units that gave no picture."""
        if count:
            with self._lock:
                self._lost[reason] += count

    def reconnect(self, reason: str) -> None:
        """Count a source that was given up, to be reopened."""
        with self._lock:
            self._reconnects[reason] += 1

    def figures(self, waiting: int = 0, in_engine: int = 0, timestamp_repairs: int = 0) -> FeedFigures:
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
                ages=AgeHistogram(AGE_BOUNDS, tuple(self._age_counts), self._age_sum),
                reconnects=dict(self._reconnects),
                timestamp_repairs=timestamp_repairs,
                waiting=waiting,
                in_engine=in_engine,
            )
