"""What a viewer hears of one feed: its pictures, and what the relay says of it."""

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
"""The longest that a message is waited for before the window and the clock are looked at."""

QUIET_SECONDS = 5.0
"""After which it is told that nothing has come yet."""

MOST_A_TURN = 8
"""Messages between two looks at the window, on a machine that cannot keep up."""

LISTING_SECONDS = 2.5
"""The longest that a list of the feeds is waited for before any feed is taken: relays send one about once a second."""

UNHEARD = ": is the relay running there, and does it have that feed?"
"""What goes on a sentence where nothing at all is heard."""

STATUS_SECONDS = 1.0
"""Without a picture, after which the relay is asked how the feed is doing."""


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
        """The next `seconds` of it, but no more than half of what is left."""
        return Span(self.stop, min(seconds, (self._end - time.monotonic()) / 2))


@dataclass(frozen=True)
class Wanted:
    """What to look at, and where."""

    endpoint: str
    feed: str
    kind: Kind
    keys: ViewerKeys | None

    def __str__(self) -> str:
        return f"feed {self.feed} at {self.endpoint}"


class Reception:
    """The pictures of a feed, and what its relay says of it. A context manager, for one thread.

    Both have a connection of their own: beside messages as small as these, pictures would look late on a thin link. The
    second one begins when a picture has come, or does not come: a replay that waits for a viewer begins with whoever
    wants anything of its feed, and by then the pictures must have been asked for.
    """

    def __init__(self, wanted: Wanted) -> None:
        from stream.subscribe import Subscriber

        self.wanted = wanted
        self.pictures = Subscriber(wanted.endpoint, wanted.feed, (wanted.kind,), keys=wanted.keys)
        self.status: Status | None = None
        """What the relay said last; None where it has said nothing."""
        self._feeds: dict[str, Status] | None = None
        """The same of all its feeds."""
        self._statuses: Subscriber | None = None
        self._asked: tuple[Kind, ...] = ()
        """What the second connection asks for."""
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        self._opened.enter_context(self.pictures)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def turns(self, span: Span) -> Iterator[list[Message]]:
        """The pictures that have come, see `turns`; between two turns `status` is brought up to date."""
        ask_at = time.monotonic() + STATUS_SECONDS
        for messages in turns(self.pictures, span, str(self.wanted), self._says):
            yield messages
            if self.pictures.received or time.monotonic() >= ask_at:
                self._hear()

    def missing(self, span: Span, undecodable: int = 0) -> StreamError:
        """That no picture came, or none that could be decoded, and what the relay says to that."""
        came = f"{undecodable} came that cannot be decoded" if undecodable else None
        words = (f"no picture of {self.wanted}{span}", came, self._says(), self.pictures.trouble)
        return StreamError("; ".join(filter(None, words)))

    def _says(self) -> str | None:
        return relay_says(self.wanted, self.status, self._feeds, has_come=self.pictures.received > 0)

    def _hear(self) -> None:
        """Take in what the relay has said, however long ago: what it said last holds.

        Of all feeds it is asked until something of this one comes: the list of many takes room on a thin link.
        """
        from stream.subscribe import Subscriber
        from stream.wire.messages import decode_feeds, decode_status

        kinds: tuple[Kind, ...] = ("status",) if self.pictures.received else ("status", "feeds")
        if self._statuses is None or kinds != self._asked:
            if self._statuses is not None:
                self._statuses.close()
            wanted, self._asked = self.wanted, kinds
            statuses = Subscriber(wanted.endpoint, wanted.feed, kinds, max_age=None, keys=wanted.keys)
            self._statuses = self._opened.enter_context(statuses)
        while (message := self._statuses.receive(0)) is not None:
            if message.kind == "feeds":
                self._feeds = decode_feeds(message.payload)
            else:
                self.status = decode_status(message.payload)


def words_of(status: Status) -> str:
    """How a feed is doing, for people."""
    return status.state if status.reason is None else f"{status.state}: {status.reason}"


def relay_says(wanted: Wanted, status: Status | None, feeds: Mapping[str, Status] | None, has_come: bool) -> str | None:
    """What the relay says of a feed of which nothing comes, by its status, or else by the list of all feeds; None where
    there is neither. `has_come`: something of it has come before."""
    status = status or (feeds or {}).get(wanted.feed)
    if status is not None:
        is_published = has_come or wanted.kind != "source" or status.state != "live"
        unsure = "" if is_published else ", and may not publish the camera's own pictures (publish_source)"
        return f"the relay says: {words_of(status)}{unsure}"
    if feeds is not None:
        return f"the relay has no feed {wanted.feed}; it has {', '.join(sorted(feeds)) or 'none'}"
    return None


def why_silent(why: str | None) -> str:
    """Why nothing comes, to go on a sentence; None where nobody has told."""
    return f"; {why}" if why else UNHEARD


def first_feed(endpoint: str, kind: Kind, keys: ViewerKeys | None, span: Span) -> str:
    """The first feed of a relay, a live one if there is any. Raises `StreamError` where there is none.

    Where the relay does not tell of its feeds it is the first that is heard; so it is of the cameras' own pictures,
    which not every feed has. Listening to all of them costs the relay a key frame of each, and the link all they send.
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
    """How the feeds of a relay do, by their names, as soon as it tells of them. Raises `StreamError` where it does
    not."""
    from stream.subscribe import Subscriber
    from stream.wire.messages import ALL_FEEDS, decode_feeds

    with Subscriber(endpoint, ALL_FEEDS, ("feeds",), keys=keys) as subscriber:
        for messages in turns(subscriber, span, f"any feed at {endpoint}"):
            if messages:
                return decode_feeds(messages[-1].payload)
    missing = f"no relay tells of its feeds at {endpoint}{span}"
    raise StreamError("; ".join(filter(None, (missing, subscriber.trouble))))


def turns(
    subscriber: Subscriber, span: Span, what: str, says: Callable[[], str | None] = lambda: None
) -> Iterator[list[Message]]:
    """What has come, a few messages at a time, and nothing as often as nothing comes, until the span is over.

    Where nothing of `what` has come for a while at the beginning, that is told, with what the relay `says`: ZeroMQ goes
    on trying to connect for ever, and does not say why it fails.
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
            log.warning("nothing of %s yet%s", what, why_silent(subscriber.trouble or says()))
        yield messages
