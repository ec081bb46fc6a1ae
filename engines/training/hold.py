"""Holds back signals that end the process until the work at hand is complete."""

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
    """Inside the block, signals that end the process are only added to the yielded list; after it, even if it raised,
    the first one takes effect. A later SIGINT takes effect at once; a later SIGHUP does not, since a closed terminal
    may send two. Ignored signals stay ignored. Does nothing outside the main thread."""
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
            log.error("%s", error)  # else it would be lost: the signal takes its place
        raise
    finally:
        restore()
        if came:
            signal.raise_signal(came[0])
