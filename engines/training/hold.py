"""Signals that end a process, held back until what is being done is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def held_back() -> Iterator[list[int]]:
    """Inside the block the first signal that ends the process is only noted, in what is yielded; after the block it
    does what it did before, and so does a second one at once. Ignored signals stay ignored; threads beside the main
    one have none to hold back."""
    came: list[int] = []
    here = ENDING if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in here}
    heeded = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def restore() -> None:
        for number, handler in heeded.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        came.append(number)
        restore()

    for number in heeded:
        signal.signal(number, note)
    try:
        yield came
    finally:
        restore()
    if came:
        signal.raise_signal(came[0])
