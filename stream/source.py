"""The way in of a feed: packets from an address, a file or a folder, in continuous segments."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Self

from stream.errors import SourceUnsupported
from stream.recording import open_recordings
from stream.segment import Segment, SourceInfo
from stream.settings import FeedSettings, redact
from stream.udp import open_udp

__all__ = ["Opener", "Segment", "Source", "SourceInfo", "open_source", "opener_of"]

Opener = Callable[[FeedSettings, threading.Event], Generator[Segment]]
"""Gives the segments of a feed, ends soon after the event is set, and raises `SourceError` for an early end."""


class Source:
    """The way in of one feed: a context manager for one thread; `close` may be called from any."""

    def __init__(self, feed: FeedSettings, opener: Opener) -> None:
        self._stop = threading.Event()
        self._segments = opener(feed, self._stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self._segments.close()

    def segments(self) -> Iterator[Segment]:
        """One segment after another: one for a live feed or a file, one for each file of a folder.

        Asking for a segment opens it and closes the one before it. A segment's packets simply end; asking for
        the next one tells why, where that was too early: raises `SourceLost` where trying again can help, and
        `SourceUnsupported` where it cannot.
        """
        return self._segments

    def close(self) -> None:
        """Make packets and segments end without an error, within a second."""
        self._stop.set()


def open_source(feed: FeedSettings) -> Source:
    """The source at `feed.url`; nothing is opened before its first segment is asked for.

    Raises `SourceUnsupported` for a kind of address that is not known.
    """
    return Source(feed, opener_of(feed.url))


def opener_of(url: str) -> Opener:
    """What opens addresses of this kind: the one place that knows all of them."""
    openers: dict[str, Opener] = {"": open_recordings, "file": open_recordings, "udp": open_udp}
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if scheme not in openers:
        known = ", ".join(f"{name}://" for name in openers if name)
        raise SourceUnsupported(f"{redact(url)}: must be a path, or begin with one of {known}")
    return openers[scheme]
