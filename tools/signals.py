"""Ending a command from outside, or telling it something."""

from __future__ import annotations

import _thread
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import FrameType


class Terminated(BaseException):
    """SIGTERM came."""


@contextmanager
def clearing_up_at_sigterm() -> Iterator[None]:
    """Inside the block SIGTERM leaves every block that is open, as SIGINT does, and then ends the process as ever."""

    def leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise Terminated

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def stopped_by_signals(stop: Callable[[], None]) -> AbstractContextManager[None]:
    """Inside the block SIGINT and SIGTERM call `stop` and nothing else, in a thread of its own."""
    return answering({signal.SIGINT: stop, signal.SIGTERM: stop})


@contextmanager
def answering(calls: Mapping[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    """Inside the block each of these signals makes its call and nothing else, in a thread of its own.

    A handler runs in the middle of whatever the main thread does: if that held a lock which the call needs, both would
    wait for ever.
    """

    def answer(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        _thread.start_new_thread(calls[signal.Signals(number)], ())

    before = {number: signal.signal(number, answer) for number in calls}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
