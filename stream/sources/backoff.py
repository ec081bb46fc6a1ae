"""How long to wait before a lost source is opened again."""

from __future__ import annotations

import random

SHORTEST, LONGEST = 0.5, 30.0
"""Seconds between two attempts."""

HEALTHY_SECONDS = 30.0
"""After a source has lived for so long, the pause is the shortest again, as after a first failure."""


class Backoff:
    """Pauses that double from half a second to thirty, and vary by a third so that many feeds spread out. Pure."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)  # noqa: S311 (no secret)
        self._failures = 0

    def pause(self, lived: float) -> float:
        """Seconds to wait after a source that gave packets for `lived` seconds (0: it could not be opened)."""
        if lived >= HEALTHY_SECONDS:
            self._failures = 0
        middle = min(LONGEST, SHORTEST * 2 ** min(self._failures, 16))
        self._failures += 1
        return self._random.uniform(max(SHORTEST, middle * 2 / 3), min(LONGEST, middle * 4 / 3))
