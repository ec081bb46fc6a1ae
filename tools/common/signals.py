"""Signals that end a command, or ask it for something."""

from __future__ import annotations

import _thread
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import FrameType


class Terminated(BaseException):
    """Raised for a signal that ends the process."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def heeded(*numbers: signal.Signals) -> list[signal.Signals]:
    """Those of these signals that are not ignored, as SIGHUP is under `nohup`."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def clearing_up_at_signals() -> Iterator[None]:
    """Inside the block, SIGTERM and SIGHUP leave all open blocks, as SIGINT does, and then end the process as usual.

    SIGHUP comes when the terminal is closed, often twice: later ones are ignored.
    """

    def leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        raise Terminated(number)

    before = {number: signal.signal(number, leave) for number in heeded(signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except Terminated as terminated:
        signal.signal(terminated.number, signal.SIG_DFL)
        signal.raise_signal(terminated.number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_on_signals(stop: Callable[[], None]) -> AbstractContextManager[None]:
    """Inside the block, SIGINT, SIGTERM and SIGHUP only call `stop`, in a thread of its own."""
    return answering(dict.fromkeys((signal.SIGINT, signal.SIGTERM, *heeded(signal.SIGHUP)), stop))


@contextmanager
def stop_on_signals_then_reraise(stop: Callable[[], None]) -> Iterator[None]:
    """Inside the block, SIGINT, SIGTERM and SIGHUP call `stop`, in a thread of its own; then the first is raised again.

    For work that is called by a library that would swallow exceptions from signal handlers.
    """
    came: list[signal.Signals] = []

    def end(number: signal.Signals) -> None:
        came.append(number)
        stop()

    try:
        with answering({each: partial(end, each) for each in heeded(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}):
            yield
    finally:
        if came:
            signal.raise_signal(came[0])


@contextmanager
def answering(calls: Mapping[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    """Inside the block, each of these signals only makes its call, in a thread of its own.

    A handler interrupts the main thread anywhere: if that held a lock that the call needs, there would be a deadlock.
    """

    def answer(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        _thread.start_new_thread(calls[signal.Signals(number)], ())

    before = {number: signal.signal(number, answer) for number in calls}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
