"""What a viewer receives of one feed: its pictures, and its status as reported by the relay."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Self

from stream.errors import StreamError

if TYPE_CHECKING:
    from stream.subscribe import Subscriber, ViewerKeys
    from stream.wire.messages import Kind, Message, Status

log = logging.getLogger(__name__)

TURN_SECONDS = 0.05
"""The longest wait for a message before the window and the clock are checked."""

QUIET_SECONDS = 5.0
"""Time without any message, at the start, after which a warning is logged."""

MOST_A_TURN = 8
"""Most messages between two checks of the window, on a machine that cannot keep up."""

LISTING_SECONDS = 2.5
"""The longest wait for the list of feeds before any feed is taken: relays send it about once a second."""

UNHEARD = ": is the relay running there, and does it have that feed?"
"""The end of a message if nothing at all is received."""

STATUS_SECONDS = 1.0
"""Time without a picture after which the relay is asked for the feed's status."""


class Span:
    """The time from now until `stop` is set or `seconds` are over."""

    def __init__(self, stop: Event, seconds: float | None) -> None:
        self.seconds = seconds
        self.stop = stop
        self._end = math.inf if seconds is None else time.monotonic() + seconds

    def __str__(self) -> str:
        return "" if self.seconds is None or self.stop.is_set() else f" within {self.seconds:g} s"

    def is_over(self) -> bool:
        """Whether it is time to end."""
        return self.stop.is_set() or time.monotonic() >= self._end

    def beginning(self, seconds: float) -> Span:
        """A span of the next `seconds`, but of half of what is left at most."""
        return Span(self.stop, min(seconds, (self._end - time.monotonic()) / 2))


@dataclass(frozen=True)
class FeedAddress:
    """What to look at, and where."""

    endpoint: str
    feed: str
    kind: Kind
    keys: ViewerKeys | None

    def __str__(self) -> str:
        return f"feed {self.feed} at {self.endpoint}"


class Reception:
    """The pictures of a feed, and its status. A context manager, for one thread.

    Each has a connection of its own: beside such small messages, pictures would seem late on a thin link. The status
    connection opens when the first picture has come, or has not come for `STATUS_SECONDS`: a replay that waits for a
    viewer starts at any subscription to its feed, and by then the pictures must be subscribed to.
    """

    def __init__(self, address: FeedAddress) -> None:
        from stream.subscribe import Subscriber

        self.address = address
        self.pictures = Subscriber(address.endpoint, address.feed, (address.kind,), keys=address.keys)
        self.status: Status | None = None
        """The latest status from the relay; None before the first."""
        self._feeds: dict[str, Status] | None = None
        """The latest list of all feeds, likewise."""
        self._statuses: Subscriber | None = None
        self._asked: tuple[Kind, ...] = ()
        """Kinds that the status connection subscribes to."""
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        self._opened.enter_context(self.pictures)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def messages(self, span: Span) -> Iterator[list[Message]]:
        """The pictures that have come, see `turns`; `status` is updated in between."""
        ask_at = time.monotonic() + STATUS_SECONDS
        for messages in turns(self.pictures, span, str(self.address), self._says):
            yield messages
            if self.pictures.received or time.monotonic() >= ask_at:
                self._read_statuses()

    def missing(self, span: Span, undecodable: int = 0) -> StreamError:
        """The error that no picture came, or none that can be decoded, with what the relay says about it."""
        came = f"{undecodable} came that cannot be decoded" if undecodable else None
        words = (f"no picture of {self.address}{span}", came, self._says(), self.pictures.trouble)
        return StreamError("; ".join(filter(None, words)))

    def _says(self) -> str | None:
        return relay_says(self.address, self.status, self._feeds, has_come=self.pictures.received > 0)

    def _read_statuses(self) -> None:
        """Read the relay's statuses, of any age: the latest one holds.

        The list of all feeds is subscribed to only until this feed's first picture: it can be long for a thin link.
        """
        from stream.subscribe import Subscriber
        from stream.wire.messages import decode_feeds, decode_status

        kinds: tuple[Kind, ...] = ("status",) if self.pictures.received else ("status", "feeds")
        if self._statuses is None or kinds != self._asked:
            if self._statuses is not None:
                self._statuses.close()
            address, self._asked = self.address, kinds
            statuses = Subscriber(address.endpoint, address.feed, kinds, max_age=None, keys=address.keys)
            self._statuses = self._opened.enter_context(statuses)
        while (message := self._statuses.receive(0)) is not None:
            if message.kind == "feeds":
                self._feeds = decode_feeds(message.payload)
            else:
                self.status = decode_status(message.payload)


def words_of(status: Status) -> str:
    """The state of a feed and its reason, for people."""
    return status.state if status.reason is None else f"{status.state}: {status.reason}"


def relay_says(
    address: FeedAddress, status: Status | None, feeds: Mapping[str, Status] | None, has_come: bool
) -> str | None:
    """What the relay says about a feed of which nothing comes, from its status, else from the list of all feeds; None
    without either. `has_come`: whether anything came before."""
    status = status or (feeds or {}).get(address.feed)
    if status is not None:
        is_published = has_come or address.kind != "source" or status.state != "live"
        unsure = "" if is_published else ", and may not publish the camera's own pictures (publish_source)"
        return f"the relay says: {words_of(status)}{unsure}"
    if feeds is not None:
        return f"the relay has no feed {address.feed}; it has {', '.join(sorted(feeds)) or 'none'}"
    return None


def why_silent(why: str | None) -> str:
    """Why nothing comes, as the end of a message; `why` is None if that is not known."""
    return f"; {why}" if why else UNHEARD


def first_feed(endpoint: str, kind: Kind, keys: ViewerKeys | None, span: Span) -> str:
    """The first feed of a relay, a live one if there is any. Raises `StreamError` if there is none.

    If the relay does not list its feeds, this is the first feed of which a picture comes; so it is for the cameras' own
    pictures, which not every feed has. Subscribing to all costs the relay a key frame each, and the link all they send.
    """
    from stream.subscribe import Subscriber

    if kind == "video":
        with suppress(StreamError):
            if feeds := listed_feeds(endpoint, keys, span.beginning(LISTING_SECONDS)):
                return min(feeds, key=lambda name: feeds[name].state != "live")
    with Subscriber(endpoint, None, (kind,), keys=keys) as subscriber:
        for messages in turns(subscriber, span, f"any feed at {endpoint}"):
            if messages:
                return messages[0].header.feed
    raise StreamError("; ".join(filter(None, (f"no feed at {endpoint}{span}", subscriber.trouble))))


def listed_feeds(endpoint: str, keys: ViewerKeys | None, span: Span) -> dict[str, Status]:
    """The statuses of a relay's feeds by name, as soon as it lists them. Raises `StreamError` if it does not."""
    from stream.subscribe import Subscriber
    from stream.wire.messages import ALL_FEEDS, decode_feeds

    with Subscriber(endpoint, ALL_FEEDS, ("feeds",), keys=keys) as subscriber:
        for messages in turns(subscriber, span, f"any feed at {endpoint}"):
            if messages:
                return decode_feeds(messages[-1].payload)
    missing = f"no list of feeds came from a relay at {endpoint}{span}"
    raise StreamError("; ".join(filter(None, (missing, subscriber.trouble))))


def turns(
    subscriber: Subscriber, span: Span, what: str, says: Callable[[], str | None] = lambda: None
) -> Iterator[list[Message]]:
    """The messages that have come, a few at a time, or none after `TURN_SECONDS` without any, until the span is over.

    If nothing of `what` comes within `QUIET_SECONDS`, a warning says so, with what the relay `says` about it: ZeroMQ
    tries to connect for ever, and does not say why it fails.
    """
    quiet_until = time.monotonic() + QUIET_SECONDS
    while not span.is_over():
        messages = []
        message = subscriber.receive(TURN_SECONDS)
        while message is not None:
            messages.append(message)
            message = subscriber.receive(0) if len(messages) < MOST_A_TURN else None
        if messages:
            quiet_until = math.inf
        elif time.monotonic() >= quiet_until:
            quiet_until = math.inf
            log.warning("nothing received from %s yet%s", what, why_silent(subscriber.trouble or says()))
        yield messages
