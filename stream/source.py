"""The source of a feed: packets from an address, a file or a folder, in continuous segments."""

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
"""Yields the segments of a feed, ends soon after the event is set, and raises `SourceError` if it ends early."""


class Source:
    """The source of one feed: a context manager for one thread. Leaving it closes what is open."""

    def __init__(self, segments: Generator[Segment]) -> None:
        self._segments = segments

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._segments.close()

    def segments(self) -> Iterator[Segment]:
        """The segments in order: one for a file; one for a live feed, and another whenever its streams change; one for
        each file of a folder.

        Asking for a segment opens it and closes the one before it. A segment's packets simply end; if they ended early,
        asking for the next segment raises `SourceLost` if trying again can help, and `SourceUnsupported` if it cannot.
        """
        return self._segments


def open_source(feed: FeedSettings, stop: threading.Event | None = None, opener: Opener | None = None) -> Source:
    """The source at `feed.url`; nothing is opened before its first segment is asked for.

    `stop`, which any thread may set, makes packets and segments end without an error, within a second. `opener` is what
    `opener_of` gave for this feed, to be reused when the source is reopened. Raises `SourceUnsupported` for an unknown
    kind of address.
    """
    return Source((opener or opener_of(feed))(feed, stop or threading.Event()))


def opener_of(feed: FeedSettings) -> Opener:
    """The opener for a feed's address; it remembers what worked, so reuse it to reopen, but for this feed only.

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
