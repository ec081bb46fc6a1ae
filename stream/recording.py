"""Recordings as sources: a file, or a folder with one recording after another."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from urllib.parse import unquote, urlsplit

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream

from stream.errors import SourceUnsupported
from stream.frame import CaptureClock
from stream.segment import Segment
from stream.settings import FeedSettings

SUFFIXES = {".264", ".265", ".avi", ".h264", ".h265", ".hevc", ".m2ts", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4"}
SUFFIXES |= {".mpeg", ".mpg", ".mts", ".ts", ".webm"}
"""Of the files that are played from a folder."""

CLOCKS_SET_SINCE = 2000
"""A recorder whose clock was never set writes a year such as 1904 or 1970 into its files."""

NANOSECONDS = 1_000_000_000

log = logging.getLogger(__name__)


def open_recordings(feed: FeedSettings, stop: threading.Event) -> Generator[Segment]:
    """A segment for the file at `feed.url`, or for each media file of that folder in the order of their names.

    Raises `SourceUnsupported` for a file that cannot be read to its end. In a folder that is logged, and the next
    file follows; only a folder in which no file can be opened raises it.
    """
    path = local_path(feed.url)
    if not path.is_dir():
        yield from open_recording(path, feed, stop)
        return
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    opened = 0
    for file in files:
        try:
            for segment in open_recording(file, feed, stop):
                opened += 1
                yield segment
        except SourceUnsupported as error:
            log.warning("%s", error)
        if stop.is_set():
            return
    if not opened:
        raise SourceUnsupported(f"{path}: no recording that can be read, in {len(files)} media files")


def open_recording(file: Path, feed: FeedSettings, stop: threading.Event) -> Generator[Segment]:
    """The one segment of a file; raises `SourceUnsupported` where it cannot be read to its end."""
    if not file.is_file():
        raise SourceUnsupported(f"{file}: no such file or folder")
    try:
        container = av.open(
            str(file.absolute()),
            "r",
            metadata_errors="replace",
            timeout=(feed.open_timeout, feed.read_timeout),
        )
    except av.FFmpegError as error:
        raise SourceUnsupported(f"{file}: {error.strerror}") from None
    with container:
        segment = recorded_segment(str(file), container, stop)
        yield segment
        if segment.failure:
            raise SourceUnsupported(f"{file}: {segment.failure}")


def recorded_segment(name: str, container: InputContainer, stop: threading.Event) -> Segment:
    """The segment of an opened file, by the recorder's clock where the file tells it."""
    began_ns = creation_ns(container.metadata)
    clock: CaptureClock = "arrival" if began_ns is None else "recording"
    capture_ns = now if began_ns is None else recorder_clock(began_ns - (container.start_time or 0) * 1000)
    return Segment(name, container, stop, recorded=True, clock=clock, capture_ns=capture_ns)


def now(_: Packet[Stream]) -> int:
    """UTC, nanoseconds since 1970: what is known of a packet without a recorder's clock."""
    return time.time_ns()


def recorder_clock(zero_ns: int) -> Callable[[Packet[Stream]], int]:
    """When what is in a packet was recorded, where time stamp 0 means `zero_ns` (UTC, nanoseconds since 1970)."""

    def capture_ns(packet: Packet[Stream]) -> int:
        ticks = packet.pts if packet.pts is not None else packet.dts or 0
        return zero_ns + int(ticks * NANOSECONDS * Fraction(packet.time_base))

    return capture_ns


def creation_ns(metadata: dict[str, str]) -> int | None:
    """When a recording began, as its file says it: UTC, nanoseconds since 1970; None where it does not."""
    try:
        began = datetime.fromisoformat(metadata.get("creation_time", ""))
    except ValueError:
        return None
    if began.year < CLOCKS_SET_SINCE:
        return None
    began = began.replace(tzinfo=began.tzinfo or UTC)
    since_1970 = began - datetime(1970, 1, 1, tzinfo=UTC)
    return (since_1970.days * 86_400 + since_1970.seconds) * NANOSECONDS + since_1970.microseconds * 1000


def local_path(url: str) -> Path:
    """The path that a plain path or a file:// address names."""
    return Path(unquote(urlsplit(url).path)) if url.lower().startswith("file://") else Path(url)
