"""One feed in the relay: what it is, how it is doing, and what is logged about its problems."""

from __future__ import annotations

import logging
import math
import threading
import time
import traceback
from dataclasses import dataclass, field
from fractions import Fraction
from queue import SimpleQueue
from typing import Literal

from engines.door import Slot
from engines.errors import EngineError
from stream.enhance import Lane
from stream.errors import StreamError
from stream.frame import Frame
from stream.metrics import FeedFigures, FeedMeter
from stream.recall import Recall
from stream.settings import FeedSettings
from stream.source import Opener
from stream.sources.backoff import Backoff
from stream.timeline import Timeline

log = logging.getLogger(__name__)

LOG_INTERVAL_SECONDS = 10.0
"""Minimum time between two log lines about a feed's lost pictures: one for each would flood the log."""

LOAD_SECONDS = 60.0
"""Period over which pictures are counted to judge whether the machine keeps up."""
LOAD_SHARE = 0.05
"""Share of a feed's pictures: if more are dropped for lack of time, the machine does not keep up."""
LOAD_FEWEST = 10
"""Up to this many dropped pictures prove nothing, however few came: a source's first ones may be late when it opens."""

LATELY_SECONDS = 10.0
"""A live feed that has published no picture for this long, or for twice its `read_timeout` if longer, gives none."""

FeedState = Literal["connecting", "live", "ended", "failed"]

CodecStage = Literal["decoder", "encoder"]

LEVELS: dict[FeedState, int] = {
    "connecting": logging.WARNING,
    "live": logging.INFO,
    "ended": logging.INFO,
    "failed": logging.ERROR,
}


@dataclass(eq=False)
class Feed:
    """One feed, shared by its stages."""

    name: str
    settings: FeedSettings
    opener: Opener | None = None
    """Opens the source every time; None: chosen by the address."""
    meter: FeedMeter = field(default_factory=FeedMeter)
    state: FeedState = "connecting"
    rate: Fraction | None = None
    """Frames a second, as the source says."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Set to end the feed: what is decoded is still enhanced, encoded, flushed and published."""
    lane: Lane = field(init=False)
    recall: Recall = field(default_factory=Recall)
    timeline: Timeline = field(default_factory=Timeline)
    backoff: Backoff = field(default_factory=Backoff)
    codecs: dict[CodecStage, str] = field(default_factory=dict)
    """Names of the decoder and the encoder, once known."""
    submitted: SimpleQueue[tuple[Frame, Slot] | None] = field(default_factory=SimpleQueue)
    """Submitted pictures in order, at most as many as a feed may have in the engine; None ends the feed."""
    _why: str | None = field(default=None, init=False, repr=False)
    """Reason for its state."""
    _trouble: str | None = field(default=None, init=False, repr=False)
    """Why pictures have been lost since the last one that was published."""
    _published: tuple[int, float] = field(default=(0, -math.inf), init=False, repr=False)
    """Count of published pictures, and when it was last seen to grow (seconds of `time.monotonic`)."""
    _logged_at: float | None = field(default=None, init=False, repr=False)
    """When lost pictures were last logged; seconds of `time.monotonic`."""
    _live_since: float | None = field(default=None, init=False, repr=False)
    """Seconds of `time.monotonic`."""
    _load_seen: tuple[float, int, int] = field(default=(0.0, 0, 0), init=False, repr=False)
    """When the load was last judged (seconds of `time.monotonic`), and what had come and been dropped by then."""
    _overloaded: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        self.lane = Lane(
            live=self.settings.mode == "live",
            age_budget_ns=int(self.settings.age_budget * 1e9),
            on_drop=self.meter.drop,
        )
        self._load_seen = (time.monotonic(), 0, 0)

    @property
    def speed(self) -> float | None:
        """Playback speed of recordings, as a multiple of their own; None: as fast as possible."""
        return self.settings.speed or (1.0 if self.settings.mode == "live" else None)

    def seconds_live(self) -> float:
        """Seconds since the source became live; 0 if it is not."""
        since = self._live_since  # read once: `set_state` may change it in another thread
        return 0.0 if since is None else time.monotonic() - since

    def figures(self) -> FeedFigures:
        """All counts at one moment; a picture published since the last call clears the reason for losses."""
        figures = self.meter.figures(len(self.lane.waiting), self.lane.in_flight, self.timeline.repairs)
        if figures.published > self._published[0]:
            self._published, self._trouble = (figures.published, time.monotonic()), None
        return figures

    @property
    def gives_pictures(self) -> bool:
        """Whether it is live and has published a picture recently, as of the last call of `figures`."""
        return self.state == "live" and time.monotonic() - self._published[1] < self._lately

    @property
    def reason(self) -> str | None:
        """Human-readable reason why it is not live, or gives no pictures although it is; holds no password."""
        known = self._why or self._trouble
        if known or self.gives_pictures or self.seconds_live() < self._lately:
            return known
        return f"no picture has been published for {self._lately:g} s"

    @property
    def _lately(self) -> float:
        return max(LATELY_SECONDS, 2 * self.settings.read_timeout)

    def set_state(self, state: FeedState, error: Exception | None = None) -> None:
        """Change to a state, because of `error` if there is one; logged unless both are unchanged."""
        why = None if error is None else reason_of(error)
        self._live_since = time.monotonic() if state == "live" else None
        if (state, why) != (self.state, self._why):
            words = state if why is None else f"{state}: {why}"
            log.log(LEVELS[state], "feed %s: %s%s", self.name, words, place_of(error))
        self.state, self._why = state, why
        if state != "ended":  # an ended feed keeps the reason why its last pictures were lost
            self._trouble = None

    def note_codec(self, stage: CodecStage, codec: str, trouble: str | None = None) -> None:
        """Note which codec is in use; a change is logged, with the trouble that led to it."""
        if self.codecs.get(stage) == codec:
            return
        self.codecs[stage] = codec
        level, why = (logging.WARNING, f", since {trouble}") if trouble else (logging.INFO, "")
        log.log(level, "feed %s: the %s is %s%s", self.name, stage, codec, why)

    def note_trouble(self, error: Exception) -> None:
        """Note why pictures are lost; logged at most once every `LOG_INTERVAL_SECONDS`."""
        now, self._trouble = time.monotonic(), reason_of(error)
        if self._logged_at is None or now - self._logged_at >= LOG_INTERVAL_SECONDS:
            self._logged_at = now
            log.error("feed %s: pictures are lost: %s%s", self.name, reason_of(error), place_of(error))

    def watch_load(self, figures: FeedFigures) -> None:
        """Log when the machine stops keeping up with this feed, and when it keeps up again; to be called often.

        A period in which nothing came changes neither.
        """
        now, came = time.monotonic(), figures.received
        dropped = sum(figures.dropped.get(reason, 0) for reason in ("overload", "late", "behind"))
        since, came_before, dropped_before = self._load_seen
        if now - since < LOAD_SECONDS:
            return
        self._load_seen = now, came, dropped
        came, dropped = came - came_before, dropped - dropped_before
        overloaded = dropped > max(LOAD_SHARE * came, LOAD_FEWEST)
        if not came or overloaded == self._overloaded:
            return
        self._overloaded = overloaded
        figure = f"{dropped} of {came} pictures were dropped within {now - since:.0f} s"
        if overloaded:
            log.warning("feed %s: this machine cannot keep up: %s", self.name, figure)
        else:
            log.info("feed %s: this machine keeps up again: %s", self.name, figure)


def reason_of(error: BaseException) -> str:
    """What went wrong, for people; for an unexpected error only its type, since its message may contain anything."""
    return f"unexpected {type(error).__name__}" if is_unexpected(error) else str(error)


def place_of(error: BaseException | None) -> str:
    """The traceback of an unexpected error, to follow its log line; empty for any other."""
    if error is None or not is_unexpected(error):
        return ""
    return "\n".join(["", *traceback.format_tb(error.__traceback__)]).rstrip()


def is_unexpected(error: BaseException) -> bool:
    """Whether an error is not one of the project's own."""
    return not isinstance(error, StreamError | EngineError)
