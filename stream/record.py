"""Records one feed's messages, without decoding, to files that play even if the recording process is killed."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import Literal, Self

import av
import msgspec

from stream.encode import USUAL_RATE
from stream.errors import StreamError
from stream.wire.messages import Kind, Message, Stamped

MPEG_TS = ("h264", "hevc", "mpeg2video", "mpeg4")
"""Codecs that are recorded as MPEG-TS, which can hold data beside them; others as fragmented MP4."""

MPEG_TS_DATA = ("klv", "timed_id3")
"""Data codecs that MPEG-TS holds unchanged."""

CLOCK = Fraction(1, 90_000)
"""Time base of data streams, in seconds, as in MPEG-TS."""

LONGEST_GROUP = 1_000
"""Messages of a group of pictures that are held back at most: a camera may send no key frame for hours."""

LONGEST_LEAD = 60
"""Seconds by which data may be ahead of its pictures or behind them; a time stamp further away is ignored."""

LONGEST_REORDERING = 2
"""Seconds by which reordering may move a camera's time stamps; more means that a clock was set or, if later pictures go
on as if nothing had happened, a wild stamp."""

OPTIONS = {
    "flush_packets": "1",  # what is written is in the kernel, which outlives the process
    "max_interleave_delta": "1",  # pictures don't wait for data that may never come
    "movflags": "frag_keyframe+empty_moov+default_base_moof",
}

Loss = Literal["no key frame", "no time stamp", "time jumps back", "codec not supported by the file"]
"""Why a message is in no file: the key frame that it needs is missing; it has no time stamp; its time stamp is not
later than the one before; its codec has no place in the file."""


class Recorder:
    """Writes one feed into `folder`, in segments of about `segment_seconds`. A context manager; for one thread.

    A segment begins with a key frame and is named `FEED-20261122T153000.250Z.ts` by the capture time (UTC) of its first
    picture, or `.mp4` for codecs that MPEG-TS cannot hold. Messages are written one group of pictures at a time: a
    process that is killed loses the unfinished group (MP4: and the one before it). `kind` says which pictures to
    record; data is placed beside the pictures of its time. Raises `StreamError` if nothing can be written.
    """

    def __init__(self, folder: Path, segment_seconds: float = 60.0, kind: Kind = "video") -> None:
        self.paths: list[Path] = []
        """Paths of all segments, in order; the last one may still grow."""
        self.written: Counter[Kind] = Counter()
        """Messages that are in a file, by kind."""
        self.lost: Counter[Loss] = Counter()
        self._folder = folder
        self._segment_seconds = segment_seconds
        self._kind = kind
        self._begun = False  # there was a key frame
        self._group: list[Message] = []
        self._pictures: list[Stamped] = []  # headers with `source_pts`, of the latest group that has any
        self._segment: SegmentFile | None = None

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StreamError(f"cannot record into {self._folder}: {error.strerror}") from None
        if not os.access(self._folder, os.W_OK | os.X_OK):  # else the error would only come with the first group
            raise StreamError(f"cannot record into {self._folder}: {os.strerror(errno.EACCES)}")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, message: Message) -> None:
        """Add the feed's next message; it is in a file when its group of pictures has ended."""
        header = message.header
        if message.kind not in (self._kind, "data"):
            return
        if message.kind == self._kind and (header.pts is None or header.time_base is None):
            self.lost["no time stamp"] += 1
            return
        early: list[Message] = []
        if message.kind == self._kind and header.key:
            early = self._write_group(message)
            self._begun = True
        elif not self._begun:
            self.lost["no key frame"] += 1
            return
        self._group += [message, *early]
        if len(self._group) == LONGEST_GROUP:
            self._write_group(goes_on=True)

    def close(self) -> None:
        """Write what is left and finish the last segment."""
        try:
            self._write_group()
        finally:
            self._finish_segment()

    def _write_group(self, key: Message | None = None, goes_on: bool = False) -> list[Message]:
        """Write the group, except for data that overtook the `key` frame after it, which is returned as it came.

        `goes_on`: more of the group will come.
        """
        came, self._group = self._group, []
        pictures = [message.header for message in (*came, key) if message and message.header.source_pts is not None]
        self._pictures = pictures or self._pictures
        group: list[Message] = []
        early: list[Message] = []
        for message in came:
            placed = on_feed_clock(message, self._pictures)
            lead = decode_time(placed.header) - decode_time(key.header) if key else -1
            if placed is not message and 0 <= lead <= LONGEST_LEAD:
                early.append(message)
            else:
                group.append(placed)
        if not group:
            return early
        latest = self._segment.latest if self._segment else None
        later = [decode_time(key.header)] if key else []
        group = in_decoding_order(without_wild_stamps(group, latest, later, goes_on))
        try:
            segment = self._segment_for(group)
            for message in group:
                if loss := segment.write(message):
                    self.lost[loss] += 1
                else:
                    self.written[message.kind] += 1
        except (av.FFmpegError, OSError, OverflowError, ValueError) as error:
            self._abandon_segment()
            raise StreamError(f"cannot record into {self._folder}: {reason(error)}") from error
        return early

    def _segment_for(self, group: Sequence[Message]) -> SegmentFile:
        """The file for a group; the rest of a group that is too long to be held back goes into the current one."""
        first = group[0].header
        if self._segment is not None and not first.key:
            return self._segment
        layout = Layout.of(group)
        if self._segment is None or not self._segment.takes(layout, first, self._segment_seconds):
            self._finish_segment()
            self._segment = SegmentFile(self._folder, layout, first)
            self.paths.append(self._segment.path)
        return self._segment

    def _abandon_segment(self) -> None:
        self._begun, segment = False, self._segment
        with suppress(StreamError):
            self._finish_segment()
        with suppress(OSError):
            if segment is not None and not segment.path.stat().st_size:
                segment.path.unlink()
                self.paths.remove(segment.path)

    def _finish_segment(self) -> None:
        segment, self._segment = self._segment, None
        if segment is None:
            return
        try:
            segment.close()
        except (av.FFmpegError, OSError) as error:
            raise StreamError(f"cannot finish {segment.path}: {reason(error)}") from error


@dataclass(frozen=True)
class Layout:
    """What stays the same throughout a segment."""

    relay: str
    codec: str
    width: int
    height: int
    time_base: Fraction
    data: frozenset[str]
    """Codecs of the data that is kept."""

    @classmethod
    def of(cls, group: Sequence[Message]) -> Layout:
        """The layout of a group, which begins with a picture."""
        header = group[0].header
        codec = header.codec or "unknown"
        data = {message.header.codec or "unknown" for message in group if message.kind == "data"}
        return cls(
            relay=header.relay,
            codec=codec,
            width=header.width or 0,
            height=header.height or 0,
            time_base=header.time_base or CLOCK,
            data=frozenset(data.intersection(MPEG_TS_DATA) if codec in MPEG_TS else ()),
        )


class SegmentFile:
    """One file while it grows. Raises `av.FFmpegError`, `OSError`, and `ValueError` for a codec it cannot hold."""

    def __init__(self, folder: Path, layout: Layout, first: Stamped) -> None:
        container, suffix = ("mpegts", ".ts") if layout.codec in MPEG_TS else ("mp4", ".mp4")
        began = datetime.fromtimestamp((first.capture_ns or first.published_ns) // 1000 / 1e6, UTC)
        self.path = new_file(folder, first.feed, began, suffix)
        self._layout = layout
        self._start = decode_time(first)
        self.latest = self._start - 1 / USUAL_RATE
        """Decoding time of the last picture written."""
        try:
            self._container = av.open(str(self.path.absolute()), "w", format=container, container_options=OPTIONS)
            self._container.metadata.update({"title": first.feed, "creation_time": began.isoformat()})
            size = {"width": layout.width, "height": layout.height}
            self._video = self._container.add_mux_stream(layout.codec, time_base=layout.time_base, **size)
            self._data = {codec: self._container.add_data_stream(codec) for codec in sorted(layout.data)}
        except BaseException:
            self.path.unlink()
            raise
        self._latest_data = dict.fromkeys(self._data, self._start)

    def takes(self, layout: Layout, first: Stamped, segment_seconds: float) -> bool:
        """Whether a group with this layout and first header also belongs in this file."""
        return (
            replace(layout, data=self._layout.data) == self._layout
            and layout.data <= self._layout.data
            and self.latest < decode_time(first) < self._start + Fraction(segment_seconds)
        )

    def write(self, message: Message) -> Loss | None:
        """Add one message; returns the reason if it cannot be added."""
        return self._write_data(message) if message.kind == "data" else self._write_picture(message)

    def close(self) -> None:
        """Finish the file."""
        self._container.close()

    def _write_picture(self, message: Message) -> Loss | None:
        header = message.header
        time = decode_time(header)
        if time <= self.latest:
            return "time jumps back"
        packet = av.Packet(message.payload)
        packet.is_keyframe = header.key
        packet.time_base = self._layout.time_base
        packet.duration = round((time - self.latest) / packet.time_base)  # matters if no picture follows
        self.latest = time
        packet.dts = round((time - self._start) / packet.time_base)
        packet.pts = packet.dts + (0 if header.dts is None else max(0, (header.pts or 0) - header.dts))
        packet.stream = self._video
        self._container.mux(packet)
        return None

    def _write_data(self, message: Message) -> Loss | None:
        codec = message.header.codec or ""
        if codec not in self._data:
            return "codec not supported by the file"
        time = decode_time(message.header)
        if message.header.pts is None or abs(time - self.latest) > LONGEST_LEAD:
            time = self.latest
        self._latest_data[codec] = max(time, self._latest_data[codec])
        packet = av.Packet(message.payload)
        packet.time_base = CLOCK
        packet.pts = packet.dts = round((self._latest_data[codec] - self._start) / CLOCK)
        packet.stream = self._data[codec]
        self._container.mux(packet)
        return None


def decode_time(header: Stamped) -> Fraction:
    """Decoding time of a message, in seconds on the clock of its feed."""
    ticks = header.pts if header.dts is None else header.dts
    return (ticks or 0) * (header.time_base or CLOCK)


def without_wild_stamps(
    group: Sequence[Message], latest: Fraction | None, later: Sequence[Fraction], goes_on: bool
) -> list[Message]:
    """The group with stamps far ahead of both the `latest` picture and a following one replaced by even steps.

    Otherwise all that follow would seem to jump back. A lasting jump is kept. `later` are times of pictures after the
    group; if it `goes_on` none is known, and its last picture may be wild, too.
    """
    times = [*(decode_time(message.header) for message in group if message.kind != "data"), *later]
    if latest is None and len(times) > 1:
        latest = times[1] - 2 / USUAL_RATE  # so that the very first one is judged, too
    placed: list[Message] = []
    for message in group:
        if message.kind != "data":
            time, *times = times
            if latest is not None and time - latest > LONGEST_REORDERING:
                step = step_to(times, latest, time) or (1 / USUAL_RATE if goes_on and not times else None)
                message = message if step is None else moved(message, latest + step - time)
                time = decode_time(message.header)
            latest = time if latest is None or message.header.key else max(latest, time)
        placed.append(message)
    return placed


def step_to(following: Sequence[Fraction], latest: Fraction, wild: Fraction) -> Fraction | None:
    """The even step from the `latest` time, across `wild` ones, to the first that continues it; None if none does."""
    for number, time in enumerate(following, 2):
        if latest < time < wild - LONGEST_REORDERING:
            return (time - latest) / number
    return None


def moved(message: Message, seconds: Fraction) -> Message:
    """The picture moved by `seconds`, rounded down to its ticks."""
    header = message.header
    ticks = floor(seconds / (header.time_base or CLOCK))
    pts, dts = ((None if stamp is None else stamp + ticks) for stamp in (header.pts, header.dts))
    return replace(message, header=msgspec.structs.replace(header, pts=pts, dts=dts))


def in_decoding_order(group: Sequence[Message]) -> list[Message]:
    """The group with increasing decoding times.

    Cameras often send none for a picture that is shown after later ones, and over RTP never do; it is then decoded just
    before the next one.
    """
    ordered: list[Message] = []
    following: Fraction | None = None
    for message in reversed(group):
        if message.kind == "source":
            time, base = decode_time(message.header), message.header.time_base or CLOCK
            if following is not None and 0 <= time - following <= LONGEST_REORDERING:
                dts = ceil(following / base) - 1
                message = replace(message, header=msgspec.structs.replace(message.header, dts=dts))
                time = dts * base
            following = time
        ordered.append(message)
    return ordered[::-1]


def on_feed_clock(message: Message, pictures: Sequence[Stamped]) -> Message:
    """Data moved from its source's clock to the feed's, as the nearest picture was; any other message unchanged.

    Data without a time stamp is placed beside the picture that arrived with it.
    """
    data = message.header
    if message.kind != "data" or not pictures or (data.pts is None and data.received_ns is None):
        return message
    near = min(pictures, key=lambda picture: apart(data, picture))
    time = (near.pts or 0) * (near.time_base or CLOCK)
    if data.pts is not None:
        time += data.pts * (data.time_base or CLOCK) - (near.source_pts or 0) * (near.time_base or CLOCK)
    pts = round(time / CLOCK)
    return replace(message, header=msgspec.structs.replace(data, pts=pts, dts=None, time_base=CLOCK))


def apart(data: Stamped, picture: Stamped) -> float:
    """Seconds between data and a picture: by time stamps, if the data has one, plus by arrival, since stamps may
    repeat."""
    bases = float(data.time_base or CLOCK), float(picture.time_base or CLOCK)
    stamps = 0.0 if data.pts is None else data.pts * bases[0] - (picture.source_pts or 0) * bases[1]
    return abs(stamps) + abs((data.received_ns or 0) - (picture.received_ns or 0)) / 1e9


def new_file(folder: Path, feed: str, began: datetime, suffix: str) -> Path:
    """Create an empty file that did not exist before. Raises `OSError`."""
    name = f"{feed}-{began:%Y%m%dT%H%M%S}.{began.microsecond // 1000:03d}Z"
    path, number = folder / f"{name}{suffix}", 1
    while True:
        try:
            path.touch(exist_ok=False)
            return path
        except FileExistsError:
            number += 1
            path = folder / f"{name}-{number}{suffix}"


def reason(error: Exception) -> str:
    """The message of an error, without its number."""
    return (isinstance(error, OSError) and error.strerror) or str(error)
