"""Ending a command from outside."""

from __future__ import annotations

import _thread
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Inside the block SIGINT and SIGTERM call `stop` and nothing else, in a thread of its own.

    A handler runs in the middle of whatever the main thread does: if that held a lock which `stop` needs, both would
    wait for ever.
    """

    def answer(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        _thread.start_new_thread(stop, ())

    before = {number: signal.signal(number, answer) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
