"""Signals that end a process, held back until what is being done is whole."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def held_back() -> Iterator[list[int]]:
    """Inside the block signals that end the process are only noted, in what is yielded; after the block, though it
    failed, the first does what it did before. A SIGINT after the first does so at once. A closed terminal's SIGHUP may
    come twice. Ignored signals stay ignored; threads beside the main one have none to hold back."""
    came: list[int] = []
    here = ENDING if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in here}
    heeded = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def restore() -> None:
        for number, handler in heeded.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        came.append(number)
        if signal.SIGINT in heeded:
            signal.signal(signal.SIGINT, heeded[signal.SIGINT])

    for number in heeded:
        signal.signal(number, note)
    try:
        yield came
    except Exception as error:
        if came:
            log.error("%s", error)  # or it would be lost: the signal goes on in its place
        raise
    finally:
        restore()
        if came:
            signal.raise_signal(came[0])
