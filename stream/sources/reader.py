"""A container that FFmpeg fetches over the network, opened, read and closed in a thread of its own.

FFmpeg can block while it looks up a name, opens or reads. The thread keeps that away from the feed, which must be able
to stop within a second. A reader that is stuck is left behind, and ends when FFmpeg's time-out expires.
"""

from __future__ import annotations

import errno
import math
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import cast

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Stream

from stream.codecs.ffmpeg_log import captured_log
from stream.sources.backlog import Arrival, Backlog
from stream.sources.failures import (
    BROKEN_OFF,
    ENDED,
    NO_LOOKUP,
    NOT_CHECKED,
    OTHER_CODEC,
    OTHER_PARAMETERS,
    Failure,
    failure_of,
    lookup_failure,
    no_video_for,
    silence,
    tls_failure,
)
from stream.sources.rtp import RtpLosses
from stream.sources.segment import (
    MPEGTS_SIDE_DATA,
    best_video,
    data_streams,
    fixed_parameters,
    has_become_another,
    new_parameters,
)

POLL_SECONDS = 0.1
"""The longest that a stopped feed still waits for a packet."""
PARTING_SECONDS = 0.4
"""The longest that a feed waits for its reader to end before it leaves the reader behind."""
KEYLESS_SECONDS = 60.0
"""Time without a key frame after which the video counts as changed, which FFmpeg does not always notice."""
PATIENT_SHARE = 0.8
"""FFmpeg's read time-out as a share of `Way.silence`. When it expires, FFmpeg gives out the last access unit, which it
holds back until more data comes: this leaves time to show it."""
AHEAD_BYTES = 8_000_000
"""The most that a reader of a recording reads ahead of its feed."""


@dataclass(frozen=True)
class Way:
    """One way to open a source."""

    name: str
    """Identifies a way that worked."""
    file: str | bytes = field(repr=False)
    """An address, credentials included, or the content of a file."""
    open_timeout: float
    """Seconds; FFmpeg may take as long again to find out what the streams are."""
    read_timeout: float
    """Seconds without an access unit after which FFmpeg gives up. After the first one it is `PATIENT_SHARE` of
    `silence`, if that is more."""
    silence: float
    """Seconds without video after which the source is lost."""
    options: dict[str, str] = field(default_factory=dict)
    """For FFmpeg."""
    format: str | None = None
    host: tuple[str, int] | None = None
    """Name and port; None if there is nothing to look up."""
    tls: bool = False
    ca_file: Path | None = None
    """Certificates that must vouch for the other end of TLS; None: no check."""
    polls: bool = False
    """Whether FFmpeg can go on reading after `read_timeout` has expired, as with RTP over UDP. Before the first access
    unit, such a reader is never stuck for longer than that."""

    @property
    def patience(self) -> float:
        """Seconds after which a reader without any packet is left behind: slightly later than it should end."""
        return self.open_timeout + (self.open_timeout + self.read_timeout if self.polls else 0) + POLL_SECONDS


class ReadTimeout:
    """Seconds that PyAV reads anew whenever demuxing begins.

    FFmpeg applies them to each access unit, and tears one in two that takes longer. They must exceed what a large one
    takes on a thin link; but only once a first one has come is it known that more will.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __float__(self) -> float:
        return self.seconds


class Reader:
    """Starts reading when it is made; for one feed's thread, which must call `leave`.

    Packets that are not taken in time are dropped (see `Backlog`). With a recorded container, the reader waits instead.
    The container and its streams may be used until `leave`.
    """

    def __init__(self, way: Way, age_budget: float) -> None:
        self.container: InputContainer | None = None
        """The opened container; None before that, and if opening failed."""
        self.failure: Failure | None = None
        """Why there will be no more packets."""
        self.looking_up = way.host is not None
        """Whether the host's address is still being looked up."""
        self._way = way
        self._backlog = Backlog(age_budget)
        self._read_timeout = ReadTimeout(way.read_timeout)
        self._changed = threading.Condition()
        self._left = False
        self._recorded = False
        self._heard_at = self._seen_at = time.monotonic()  # when the last packet came, and the last access unit
        self._count = 0
        self._thread = threading.Thread(target=self._run, name="nightbridge-reader", daemon=True)
        self._thread.start()

    @property
    def behind(self) -> int:
        """Access units that were dropped because they were not taken in time."""
        return self._backlog.dropped

    @property
    def running(self) -> bool:
        """Whether its thread is still running."""
        return self._thread.is_alive()

    @property
    def without_video(self) -> bool:
        """Whether the opened container has no video."""
        return self.container is not None and not self.container.streams.video

    @property
    def recorded(self) -> bool:
        """Whether packets come as fast as they are taken, as from a file or a playlist."""
        return self._recorded

    def wait(self, stop: threading.Event) -> bool:
        """Wait for an access unit, or a container without video; False if neither comes in time, or `stop` is set."""
        end = time.monotonic() + self._way.patience
        with self._changed:
            while not (self._count or self.without_video or self.failure or stop.is_set()):
                if time.monotonic() > end:
                    self.failure = NO_LOOKUP if self.looking_up else silence(self._way.open_timeout)
                    return False
                self._changed.wait(POLL_SECONDS)
            return bool(self._count or self.without_video) and not stop.is_set()

    def arrivals(self, stop: threading.Event) -> Iterator[tuple[Packet[Stream], int]]:
        """Packets, each with the time it was read, until the source ends (see `failure`) or `stop` is set."""
        while not stop.is_set():
            with self._changed:
                self._changed.wait_for(lambda: len(self._backlog) or self.failure, POLL_SECONDS)
                arrival = self._backlog.take()
                if not self.failure and (arrival is None or not (arrival.is_video or self._recorded)):
                    self._watch()
                if arrival is None and self.failure:
                    return
                if self._recorded:
                    self._changed.notify_all()
            if arrival is not None:
                yield arrival.packet, arrival.received_ns

    def leave(self) -> None:
        """Ask the reader to end, and wait briefly; if still `running`, it ends and closes the container by itself."""
        with self._changed:
            self._left = True
            self._backlog.clear()
            self._changed.notify_all()
        self._thread.join(PARTING_SECONDS)

    def _watch(self) -> None:
        now, limit = time.monotonic(), self._way.silence
        if now - self._seen_at > limit:
            heard = now - self._heard_at < limit / 2
            self.failure = no_video_for(limit) if heard else silence(limit)

    def _run(self) -> None:
        with captured_log() as lines:
            self._open_and_read(RtpLosses(lines))

    def _open_and_read(self, losses: RtpLosses) -> None:
        began = time.monotonic()
        try:
            container = self._open()
        except Exception as error:
            self._end(self._why_not_open(error, time.monotonic() - began))
            return
        with container:
            try:
                self._end(self._read(container, losses))
            except Exception as error:
                cut = isinstance(error, av.FFmpegError) and error.errno == errno.EIO
                self._end(BROKEN_OFF if cut else failure_of(error, 0.0, self._way.silence))
            with self._changed:
                self._changed.wait_for(lambda: self._left)

    def _open(self) -> InputContainer:
        way = self._way
        if way.host:
            socket.getaddrinfo(*way.host, type=socket.SOCK_STREAM)  # FFmpeg does not report an unknown host
            self.looking_up = False
        return av.open(
            BytesIO(way.file) if isinstance(way.file, bytes) else way.file,
            "r",
            format=way.format,
            options=way.options,
            metadata_errors="replace",
            timeout=cast("tuple[float, float]", (way.open_timeout, self._read_timeout)),
        )

    def _why_not_open(self, error: Exception, seconds: float) -> Failure:
        if self.looking_up:
            return lookup_failure(error)
        way = self._way
        number = error.errno if isinstance(error, av.FFmpegError) else None
        if number == errno.EIO and way.tls and way.host:
            failure = tls_failure(*way.host, way.ca_file, way.open_timeout)
            if failure:
                return failure
        if number == errno.EINVAL and way.tls and way.ca_file:
            return NOT_CHECKED
        return failure_of(error, seconds, way.open_timeout)

    def _read(self, container: InputContainer, losses: RtpLosses) -> Failure:
        """Read packets until the container ends or the feed leaves; returns why, or raises FFmpeg's error."""
        wanted = choose(container)
        fixed = fixed_parameters(wanted[0]) if wanted else None
        with self._changed:
            self.container = container
            self._recorded = is_recorded(container)
            if self._recorded:
                self._backlog = Backlog(math.inf)
            self._heard_at = self._seen_at = time.monotonic()
            self._changed.notify_all()
        while wanted and not self._left:
            try:
                failure = self._take_in(container, wanted, fixed, losses)
                if failure is not None:
                    return failure
                self._read_timeout.seconds = PATIENT_SHARE * self._way.silence
            except IndexError:  # PyAV raises it at the end if a stream appeared midway
                return ENDED
            except av.ExitError:
                losses.note()
                silent = time.monotonic() - self._heard_at > self._way.silence
                if not self._way.polls or not self._count or silent:
                    raise
        return ENDED

    def _take_in(
        self, container: InputContainer, wanted: list[Stream], fixed: bytes | None, losses: RtpLosses
    ) -> Failure | None:
        """Read packets as `_read` does; None if demuxing must restart to apply a longer read time-out."""
        changeable = container.format.name in ("mpegts", "hls")
        codec = (wanted[0].name or "") if wanted[0].codec_context else ""
        key_at = time.monotonic()
        for packet in container.demux(wanted):
            if self._left:
                break
            if codec == "vp9" and packet.size and packet.stream is wanted[0]:
                packet.is_keyframe = begins_with_vp9_key(bytes(packet))
            if packet.is_keyframe and packet.stream is wanted[0]:
                key_at = time.monotonic()
                changeable = changeable or packet.has_sidedata(MPEGTS_SIDE_DATA)
                if changeable and has_become_another(wanted[0]):
                    return OTHER_CODEC
            if fixed and new_parameters(packet) not in (None, fixed):
                return OTHER_PARAMETERS
            if changeable and time.monotonic() - key_at > KEYLESS_SECONDS:
                return Failure(f"no key frame for {KEYLESS_SECONDS:g} s", "no video")
            if packet.size:
                if packet.stream is wanted[0]:
                    losses.mark(packet, codec)
                key_at += self._add(packet)
                if self._count and self._read_timeout.seconds < PATIENT_SHARE * self._way.silence:
                    return None
        return ENDED

    def _add(self, packet: Packet[Stream]) -> float:
        """Hand on a packet; returns the seconds spent waiting for room."""
        came_at = time.monotonic()
        with self._changed:
            if self._recorded:
                self._changed.wait_for(lambda: self._left or self._backlog.bytes < AHEAD_BYTES)
            if self._left:
                return 0.0
            arrival = Arrival(packet, packet.stream.type == "video", time.time_ns(), time.monotonic())
            self._heard_at = arrival.at
            if arrival.is_video:
                self._seen_at = arrival.at
                self._count += 1
            self._backlog.add(arrival)
            self._changed.notify_all()
            return arrival.at - came_at

    def _end(self, failure: Failure) -> None:
        with self._changed:
            self.failure = self.failure or failure
            self._changed.notify_all()


def begins_with_vp9_key(unit: bytes) -> bool:
    """Whether the first frame of a VP9 access unit is a key frame, which FFmpeg does not say over RTP.

    A frame begins (VP9 bitstream specification, 6.2) with the bits 10, two bits of profile, and one more for profile 3.
    The next two bits, `show_existing_frame` and `frame_type`, are both 0 in a key frame.
    """
    needs_others = 0b0110 if unit[0] & 0b0011_0000 == 0b0011_0000 else 0b1100
    return unit[0] >> 6 == 0b10 and not unit[0] & needs_others


def choose(container: InputContainer) -> list[Stream]:
    """The streams that a feed needs, none without video. The others are discarded: where it can, FFmpeg skips them."""
    video = best_video(container)
    wanted = [video, *data_streams(container, video)] if video is not None else []
    for stream in container.streams:
        if stream not in wanted:
            stream.discard = Discard.all
    return wanted


def is_recorded(container: InputContainer) -> bool:
    """Whether a container can be read faster than real time: a playlist's segments, a file of known size.

    The size that a camera sending one JPEG after another may state over HTTP means nothing; that of an SDP is the SDP's
    own.
    """
    return container.format.name == "hls" or (container.size > 0 and container.format.name not in ("mpjpeg", "sdp"))
