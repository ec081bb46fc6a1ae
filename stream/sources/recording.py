"""Recordings as sources: files, and folders with one recording after another."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from urllib.parse import unquote, urlsplit

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream

from stream.errors import SourceUnsupported
from stream.frame import SourcePacket
from stream.settings import FeedSettings
from stream.sources.pace import LONGEST_GAP
from stream.sources.segment import Segment, data_streams

SUFFIXES = {".264", ".265", ".avi", ".h264", ".h265", ".hevc", ".m2ts", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4"}
SUFFIXES |= {".mpeg", ".mpg", ".mts", ".ts", ".webm"}
"""Suffixes of the files that are played from a folder."""

CLOCKS_SET_SINCE = 2000
"""Year. A recorder whose clock was never set writes an earlier one, such as 1904 or 1970, into its files."""

NAMED_TIME = re.compile(r"-(\d{8}T\d{6}(?:\.\d{3})?Z)(?:-\d+)?$")
"""The end of a file name that says when the recording began, as `nightbridge record` writes it."""

NANOSECONDS = 1_000_000_000
LONGEST_RECORDING = 366 * 86_400 * NANOSECONDS

log = logging.getLogger(__name__)


class RecordedSegment(Segment):
    """A recording, with capture times by the recorder's clock if the file or its name says when it began.

    It may be read from an access unit in its middle. Access units are counted from 0 in the order of the file.
    """

    def __init__(self, file: Path, container: InputContainer, stop: threading.Event) -> None:
        began_ns = creation_ns(container.metadata)
        if began_ns is None:
            began_ns = named_ns(file)
        start_ns = (container.start_time or 0) * 1000
        super().__init__(
            str(file),
            container,
            stop,
            recorded=True,
            clock="arrival" if began_ns is None else "recording",
            capture_ns=capture_now if began_ns is None else recorder_clock(began_ns, start_ns),
        )
        self.file = file
        self.first = 0
        """The access unit to begin with; packets before it are not given out."""
        self.units = 0
        """Access units read so far."""
        self.cut_off = 0
        """Those of them that are not to be shown: they only lead up to the start of an edit."""
        self.keys: list[int] = []
        """Numbers of the intact key frames that were given out."""
        self.pauses: set[int] = set()
        """Numbers of the access units before which, for `LONGEST_GAP`, no picture came but sound or data did."""
        self.bytes_read = 0
        """Of the file, up to the latest access unit."""
        self._shown = math.inf  # time of the latest access unit, in seconds
        self._heard = math.inf, -math.inf  # begin and end of the latest sound or data without a gap, in seconds

    def packets(self) -> Iterator[SourcePacket]:
        """See `Segment.packets`."""
        for source in super().packets():
            if source.kind == "video":
                self._count(source.packet)
            if self.units > self.first or not self.first:
                yield source

    def demuxed(self) -> Iterator[tuple[Packet[Stream], int]]:
        """See `Segment.demuxed`."""
        sound = self._container.streams.audio
        for packet in self._container.demux(self.video, *data_streams(self._container, self.video), *sound):
            if packet.stream is self.video:
                self.bytes_read = max(self.bytes_read, packet.pos or 0)
            elif packet.pts is not None:
                heard = float(packet.pts * packet.time_base)
                begin, end = self._heard
                self._heard = (begin, max(end, heard)) if abs(heard - end) <= LONGEST_GAP else (heard, heard)
            if packet.stream.type != "audio":
                yield packet, time.time_ns()

    def _count(self, packet: Packet[Stream]) -> None:
        if packet.pts is not None:
            before, self._shown = self._shown, float(packet.pts * packet.time_base)
            begin, end = self._heard
            if max(begin - before, self._shown - end) <= LONGEST_GAP < self._shown - before:
                self.pauses.add(self.units)
        if packet.is_keyframe and not packet.is_corrupt and self.units >= self.first:
            self.keys.append(self.units)
        self.units += 1
        self.cut_off += packet.is_discard


def open_recordings(feed: FeedSettings, stop: threading.Event) -> Generator[Segment]:
    """A segment for the file at `feed.url`, or for each media file of that folder in the order of their names.

    Raises `SourceUnsupported` for a file that cannot be read to its end. In a folder, such a file is logged and the
    next one follows; a folder raises only if none of its files can be opened.
    """
    path = local_path(feed.url)
    files = find_recordings([path])
    if path.is_dir():
        yield from play(str(path), files, feed, stop)
    else:
        yield from open_file(path, feed, stop)


def play(name: str, files: Iterable[Path], feed: FeedSettings, stop: threading.Event) -> Generator[RecordedSegment]:
    """A segment for each of the files; those that cannot be read are logged.

    Raises `SourceUnsupported`, with `name` for all of them, if none can be opened.
    """
    opened = seen = 0
    for seen, file in enumerate(files, 1):  # noqa: B007
        try:
            for segment in open_file(file, feed, stop):
                opened += 1
                yield segment
        except SourceUnsupported as error:
            log.warning("%s", error)
        if stop.is_set():
            return
    if not opened:
        raise SourceUnsupported(f"{name}: none of its {seen} media files can be read", reason="no video")


def open_file(file: Path, feed: FeedSettings, stop: threading.Event) -> Generator[RecordedSegment]:
    """The one segment of a file; raises `SourceUnsupported` if it cannot be read to its end."""
    with open_recording(file, stop, (feed.open_timeout, feed.read_timeout)) as segment:
        yield segment
        if segment.failure:
            raise SourceUnsupported(f"{file}: {segment.failure}", reason="no video")


@contextmanager
def open_recording(
    file: Path, stop: threading.Event, timeouts: tuple[float, float] | None = None
) -> Iterator[RecordedSegment]:
    """The one segment of a file, open inside the block; `timeouts` are for opening and reading, in seconds.

    Raises `SourceUnsupported` for a file that cannot be opened, or has no video.
    """
    with open_container(file, timeouts) as container:
        yield RecordedSegment(file, container, stop)


def open_container(file: Path, timeouts: tuple[float, float] | None = None) -> InputContainer:
    """Open a file, which must not make FFmpeg open anything else; raises `SourceUnsupported`."""
    require_file(file)
    try:
        return av.open(
            str(file.absolute()),
            "r",
            options={"protocol_whitelist": "file"},
            metadata_errors="replace",
            timeout=timeouts,
        )
    except av.FFmpegError as error:
        raise SourceUnsupported(f"{file}: {error.strerror}", reason="no video") from None


def find_recordings(paths: Iterable[Path]) -> list[Path]:
    """Each file, and for each folder its media files in the order of their names; no file twice.

    Raises `SourceUnsupported` for a path that does not exist and for a folder without media files.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        with os_errors_as_unsupported(path):
            files = sorted(file for file in path.iterdir() if is_recording(file)) if path.is_dir() else [path]
        if not files:
            raise SourceUnsupported(f"{path}: the folder holds no media files", reason="no video")
        for file in files:
            require_file(file)
            found.setdefault(file.resolve(), file)
    return list(found.values())


def require_file(file: Path) -> None:
    """Raise `SourceUnsupported` if there is no such file, or access to it is denied."""
    with os_errors_as_unsupported(file):
        if not file.is_file():
            raise SourceUnsupported(f"{file}: no such file or folder", reason="not found")


@contextmanager
def os_errors_as_unsupported(path: Path) -> Iterator[None]:
    """Turn the system's errors about a path, such as denied access, into `SourceUnsupported`."""
    try:
        yield
    except OSError as error:
        raise SourceUnsupported(f"{path}: {error.strerror}", reason="not found") from None


def is_recording(file: Path) -> bool:
    """Whether a file of a folder is played; hidden ones are not."""
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def capture_now(_: Packet[Stream]) -> int:
    """UTC, nanoseconds since 1970: the capture time of a packet without a recorder's clock."""
    return time.time_ns()


def recorder_clock(began_ns: int, start_ns: int) -> Callable[[Packet[Stream]], int]:
    """A function that gives a packet's capture time; time stamp `start_ns` means `began_ns` (UTC, since 1970).

    A time stamp beyond `LONGEST_RECORDING` is ignored: its packet gets the capture time of the one before.
    """
    last_ns = began_ns

    def capture_ns(packet: Packet[Stream]) -> int:
        nonlocal last_ns
        ticks = packet.pts if packet.pts is not None else packet.dts
        if ticks is not None:
            since_start = int(ticks * NANOSECONDS * Fraction(packet.time_base)) - start_ns
            if abs(since_start) <= LONGEST_RECORDING:
                last_ns = began_ns + since_start
        return last_ns

    return capture_ns


def creation_ns(metadata: dict[str, str]) -> int | None:
    """When a recording began according to its metadata: UTC, nanoseconds since 1970; None if it does not say."""
    return utc_ns(metadata.get("creation_time", ""))


def named_ns(file: Path) -> int | None:
    """When a recording began according to its name, since MPEG-TS cannot store it; see `creation_ns`."""
    named = NAMED_TIME.search(file.stem)
    return utc_ns(named[1]) if named else None


def utc_ns(text: str) -> int | None:
    """An ISO 8601 time in nanoseconds since 1970; None if it is none, or the clock was never set."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.year < CLOCKS_SET_SINCE:
        return None
    since_1970 = moment.replace(tzinfo=moment.tzinfo or UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since_1970.days * 86_400 + since_1970.seconds) * NANOSECONDS + since_1970.microseconds * 1000


def local_path(url: str) -> Path:
    """The path that a plain path or a file:// address names."""
    return Path(unquote(urlsplit(url).path)) if url.lower().startswith("file://") else Path(url)
