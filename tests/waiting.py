"""Waiting in tests: for an event, with a deadline, never for luck."""

from __future__ import annotations

import time
from collections.abc import Callable

DEADLINE = 60.0
"""Seconds that anything may take on a busy machine."""

CATCH_UP = 0.04
"""Seconds that a sender which was held up makes up for; more at once would be another feed than was filmed."""


def takes_less_than(seconds: float, attempt: Callable[[], float]) -> bool:
    """Whether the best of three attempts, which tell how many seconds they took, is that fast: other work on a busy
    machine hinders some, not all."""
    return any(attempt() < seconds for _ in range(3))


def wait_until(happened: Callable[[], object], what: str) -> None:
    """Return as soon as `happened()` is true; fails, naming `what`, when it never is."""
    end = time.monotonic() + DEADLINE
    while not happened():
        assert time.monotonic() < end, f"{what} did not happen within {DEADLINE} s"
        time.sleep(0.002)
