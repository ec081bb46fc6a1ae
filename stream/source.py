"""The way in of a feed: packets from an address, a file or a folder, in continuous segments."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Self

from stream.address import redact
from stream.errors import SourceUnsupported
from stream.settings import FeedSettings
from stream.sources.recording import open_recordings
from stream.sources.remote import RemoteOpener
from stream.sources.segment import Segment, SourceInfo
from stream.sources.udp import open_udp

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
        """One segment after another: for a file or a live feed one, and one more whenever a live feed's streams change;
        for a folder one for each file.

        Asking for a segment opens it and closes the one before it. A segment's packets simply end; asking for
        the next one tells why, where that was too early: raises `SourceLost` where trying again can help, and
        `SourceUnsupported` where it cannot.
        """
        return self._segments


def open_source(feed: FeedSettings, stop: threading.Event | None = None, opener: Opener | None = None) -> Source:
    """The source at `feed.url`; nothing is opened before its first segment is asked for.

    `stop`, which any thread may set, makes packets and segments end without an error, within a second. `opener` is
    what `opener_of` gave for this feed, if it was opened before. Raises `SourceUnsupported` for a kind of address that
    is not known.
    """
    return Source((opener or opener_of(feed))(feed, stop or threading.Event()))


def opener_of(feed: FeedSettings) -> Opener:
    """What opens a feed's address, again and again, and remembers what worked: one for each feed.

    The one place that knows all kinds of addresses.
    """
    openers: dict[str, Callable[[], Opener]] = {
        "": lambda: open_recordings,
        "file": lambda: open_recordings,
        "udp": lambda: open_udp,
        "rtsp": RemoteOpener,
        "rtsps": RemoteOpener,
        "http": RemoteOpener,
        "https": RemoteOpener,
    }
    scheme = feed.url.partition("://")[0].lower() if "://" in feed.url else ""
    if scheme not in openers:
        known = ", ".join(f"{name}://" for name in openers if name)
        message = f"{redact(feed.url)}: must be a path, or begin with one of {known}"
        raise SourceUnsupported(message, reason="address")
    if scheme in ("", "file") and feed.url.lower().endswith(".sdp"):
        return RemoteOpener()
    return openers[scheme]()
