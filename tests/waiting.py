"""Waiting in tests: for an event, with a deadline, never for luck."""

from __future__ import annotations

import time
from collections.abc import Callable

DEADLINE = 10.0
"""Seconds that anything may take on a busy machine."""


def wait_until(happened: Callable[[], object], what: str) -> None:
    """Return as soon as `happened()` is true; fails, naming `what`, when it never is."""
    end = time.monotonic() + DEADLINE
    while not happened():
        assert time.monotonic() < end, f"{what} did not happen within {DEADLINE} s"
        time.sleep(0.002)
