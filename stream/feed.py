"""One feed on its way through the relay: what it is, how it is doing, and what is told of its trouble."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from fractions import Fraction
from queue import SimpleQueue
from typing import Literal

from engines.door import Slot
from engines.errors import EngineError
from stream.errors import StreamError
from stream.frame import Frame
from stream.metrics import FeedMeter
from stream.settings import FeedSettings

log = logging.getLogger(__name__)

TELL_SECONDS = 10.0
"""The shortest time between two lines about lost pictures of one feed: a line for each would flood the log."""

FeedState = Literal["connecting", "live", "ended", "failed"]

LEVELS: dict[FeedState, int] = {
    "connecting": logging.WARNING,
    "live": logging.INFO,
    "ended": logging.INFO,
    "failed": logging.ERROR,
}


@dataclass
class Feed:
    """One feed; its stages share it."""

    name: str
    settings: FeedSettings
    meter: FeedMeter = field(default_factory=FeedMeter)
    state: FeedState = "connecting"
    reason: str | None = None
    """Why it is not live, for people; holds no password."""
    rate: Fraction | None = None
    """Frames a second, as the source says."""
    under_way: SimpleQueue[tuple[Frame, Slot] | None] = field(default_factory=SimpleQueue)
    """Submitted pictures in order, no more than a feed may have in the engine; None ends the feed."""
    _told: float | None = field(default=None, init=False, repr=False)
    """When lost pictures were last told; seconds of `time.monotonic`."""

    def turn(self, state: FeedState, error: Exception | None = None) -> None:
        """Take on a state, because of `error` if there is one; told unless both are as before."""
        reason = None if error is None else reason_of(error)
        if (state, reason) != (self.state, self.reason):
            words = state if reason is None else f"{state}: {reason}"
            log.log(LEVELS[state], "feed %s: %s", self.name, words, exc_info=unexpected(error))
        self.state, self.reason = state, reason

    def tell(self, error: Exception) -> None:
        """Log why pictures are lost, unless that was done within `TELL_SECONDS`."""
        now = time.monotonic()
        if self._told is None or now - self._told >= TELL_SECONDS:
            self._told = now
            log.error("feed %s: pictures are lost: %s", self.name, reason_of(error), exc_info=unexpected(error))


def reason_of(error: Exception) -> str:
    """What went wrong, for people; of an unexpected error its kind alone, since its words may hold anything."""
    return f"unexpected {type(error).__name__}" if unexpected(error) else str(error)


def unexpected(error: Exception | None) -> Exception | None:
    """The error itself if nothing foresees it: it is then told with its place in the program."""
    return None if isinstance(error, StreamError | EngineError) else error
