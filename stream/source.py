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
    """The way in of one feed: a context manager for one thread. Leaving it closes what is open."""

    def __init__(self, segments: Generator[Segment]) -> None:
        self._segments = segments

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._segments.close()

    def segments(self) -> Iterator[Segment]:
        """One segment after another: one for a live feed or a file, one for each file of a folder.

        Asking for a segment opens it and closes the one before it. A segment's packets simply end; asking for
        the next one tells why, where that was too early: raises `SourceLost` where trying again can help, and
        `SourceUnsupported` where it cannot.
        """
        return self._segments


def open_source(feed: FeedSettings, stop: threading.Event | None = None) -> Source:
    """The source at `feed.url`; nothing is opened before its first segment is asked for.

    `stop`, which any thread may set, makes packets and segments end without an error, within a second. Raises
    `SourceUnsupported` for a kind of address that is not known.
    """
    return Source(opener_of(feed.url)(feed, stop or threading.Event()))


def opener_of(url: str) -> Opener:
    """What opens addresses of this kind: the one place that knows all of them."""
    openers: dict[str, Opener] = {"": open_recordings, "file": open_recordings, "udp": open_udp}
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if scheme not in openers:
        known = ", ".join(f"{name}://" for name in openers if name)
        raise SourceUnsupported(f"{redact(url)}: must be a path, or begin with one of {known}")
    return openers[scheme]
