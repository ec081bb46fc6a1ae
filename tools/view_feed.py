"""What a viewer hears of one feed: its pictures, and what the relay says of it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Self

from stream.errors import StreamError

if TYPE_CHECKING:
    from stream.subscribe import Subscriber, ViewerKeys
    from stream.wire import Kind, Message, Status

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
        self._statuses: Subscriber | None = None
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
        for messages in turns(self.pictures, span, lambda: self._unheard(span)):
            yield messages
            if messages or time.monotonic() >= ask_at:
                ask_at = 0.0
                self._hear()

    def missing(self, span: Span, undecodable: int = 0) -> StreamError:
        """That no picture came, or none that could be decoded, and what the relay says to that."""
        came = f"{undecodable} came that cannot be decoded" if undecodable else None
        says = None if self.status is None else f"the relay says: {words_of(self.status)}"
        words = (f"no picture of {self.wanted}{span}", came, says, self.pictures.trouble)
        return StreamError("; ".join(filter(None, words)))

    def _unheard(self, span: Span) -> str:
        return f"nothing of {self.wanted} yet{why_silent(self.wanted, self.status, span)}"

    def _hear(self) -> None:
        """Take in what the relay has said, however long ago: what it said last holds."""
        from stream.subscribe import Subscriber
        from stream.wire import decode_status

        if self._statuses is None:
            wanted = self.wanted
            statuses = Subscriber(wanted.endpoint, wanted.feed, ("status",), max_age=None, keys=wanted.keys)
            self._statuses = self._opened.enter_context(statuses)
        while (message := self._statuses.receive(0)) is not None:
            self.status = decode_status(message.payload)


def words_of(status: Status) -> str:
    """How a feed is doing, for people."""
    return status.state if status.reason is None else f"{status.state}: {status.reason}"


def why_silent(wanted: Wanted, status: Status | None, span: Span) -> str:
    """What may be the matter where nothing of a feed comes, to go on a sentence: by its `status`, or else by the list
    of feeds, for which the relay is asked."""
    if status is None:
        try:
            feeds = listed_feeds(wanted.endpoint, wanted.keys, span.beginning(LISTING_SECONDS))
        except StreamError:  # it is the feed's own connection that counts
            feeds = None
        if feeds is None:
            return UNHEARD
        if wanted.feed not in feeds:
            return f"; the relay has no feed {wanted.feed}; it has {', '.join(sorted(feeds)) or 'none'}"
        status = feeds[wanted.feed]
    return f"; the relay says: {words_of(status)}"


def first_feed(endpoint: str, kind: Kind, keys: ViewerKeys | None, span: Span) -> str:
    """The first feed of a relay, a live one if there is any. Raises `StreamError` where there is none.

    Where the relay does not tell of its feeds it is the first that is heard; so it is of the cameras' own pictures,
    which not every feed has. Listening to all of them costs the relay a key frame of each, and the link all they send.
    """
    from stream.subscribe import Subscriber

    if kind == "video":
        feeds = listed_feeds(endpoint, keys, span.beginning(LISTING_SECONDS)) or {}
        if feeds:
            return min(feeds, key=lambda name: feeds[name].state != "live")
    with Subscriber(endpoint, None, (kind,), keys=keys) as subscriber:
        for messages in turns(subscriber, span, lambda: f"nothing of any feed at {endpoint} yet{UNHEARD}"):
            if messages:
                return messages[0].header.feed
    raise StreamError("; ".join(filter(None, (f"no feed at {endpoint}{span}", subscriber.trouble))))


def listed_feeds(endpoint: str, keys: ViewerKeys | None, span: Span) -> dict[str, Status] | None:
    """How the feeds of a relay do, by their names, as soon as it tells of them; None where it does not."""
    from stream.subscribe import Subscriber
    from stream.wire import ALL_FEEDS, decode_feeds

    with Subscriber(endpoint, ALL_FEEDS, ("feeds",), keys=keys) as subscriber:
        for messages in turns(subscriber, span, lambda: f"nothing of any feed at {endpoint} yet{UNHEARD}"):
            if messages:
                return decode_feeds(messages[-1].payload)
    return None


def turns(subscriber: Subscriber, span: Span, words: Callable[[], str]) -> Iterator[list[Message]]:
    """What has come, a few messages at a time, and nothing as often as nothing comes, until the span is over.

    Where nothing has come for a while at the beginning, that is told in these words: ZeroMQ goes on trying to connect
    for ever, and does not say why it fails.
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
            log.warning("%s", words())
        yield messages
