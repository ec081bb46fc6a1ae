"""One continuous stretch of a source: an opened container with one video stream, given out as packets."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import av
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Stream
from av.video.stream import VideoStream
from msgspec.structs import replace

from stream.errors import SourceUnsupported
from stream.frame import CaptureClock, SourcePacket
from stream.sources.fields import FieldPairs, rewritten
from stream.sources.parameter_sets import START_CODE, ParameterSets

log = logging.getLogger(__name__)

LENGTH_PREFIXED = 1
"""First byte of parameter sets (avcC, hvcC) whose stream has length prefixes instead of start codes."""
ONLY_FOR = {
    "h264": "h264_redundant_pps",
    "hevc": "hevc_mp4toannexb",
    "mpeg2video": "mpeg2_metadata",
    "mpeg4": "mpeg4_unpack_bframes",
}
"""By codec, a filter that opens for no other codec: nothing else in PyAV shows that a stream's codec has changed."""
MPEGTS_SIDE_DATA: Final = "mpegts_stream_id"
"""Side data of each access unit from FFmpeg's MPEG-TS demuxer, also where its HLS or RTP demuxer uses that."""
FASTEST = 1_000
"""Frames per second; a higher rate is only that of a clock, such as 90 kHz."""


@dataclass(frozen=True)
class SourceInfo:
    """What is known of a segment before its first packet; None: the source does not say."""

    container: str
    codec: str
    width: int | None
    """None, among others, for a live feed that is joined long before its next key frame."""
    height: int | None
    pix_fmt: str | None
    rate: Fraction | None
    """Frames per second, on average."""
    bit_rate: int | None
    """Bit/s of the video, or of the whole container if only that is known."""
    data: tuple[str, ...]
    """Codecs of the data streams, such as `klv`."""
    ignored: tuple[str, ...]
    """Streams that give no packets here, such as `audio mp2`."""


class Segment:
    """Packets of an opened container, which the source owns. Each segment needs a decoder of its own."""

    def __init__(
        self,
        name: str,
        container: InputContainer,
        stop: threading.Event,
        *,
        recorded: bool,
        clock: CaptureClock = "arrival",
        capture_ns: Callable[[Packet[Stream]], int] | None = None,
    ) -> None:
        """`name` is for errors and the log; `capture_ns` gives a packet's capture time, None: the time it was read.

        Times are UTC, in nanoseconds since 1970. Raises `SourceUnsupported` if no video can be decoded.
        """
        self.video = video_stream(name, container)
        self.info = describe(container, self.video)
        self.recorded = recorded
        """Whether packets come as fast as they are read, rather than as a camera sends them."""
        self.clock = clock
        self.failure: str | None = None
        """Why `packets` ended too early; None if it did not."""
        self.unreadable = 0
        """Access units that gave no packet, because their length prefixes do not fit their bytes."""
        self._name = name
        self._container = container
        self._stop = stop
        self._capture_ns = capture_ns
        self._first_sets = self._sets = annex_b_sets(fixed_parameters(self.video) or b"")
        self._annex_b = annex_b_filter(name, self.video)
        stored = self.video.codec_context.extradata or b""
        self._parameters = ParameterSets(self.info.codec, stored)
        self._fields = FieldPairs(stored) if self.info.codec == "h264" else None
        self._marks_early: bool | None = None  # unknown until the first access unit
        self._mark = False  # whether the next access unit is damaged

    @property
    def rate(self) -> Fraction | None:
        """Frames per second, on average; None if the source does not say."""
        return self.info.rate

    @property
    def behind(self) -> int:
        """Access units that were dropped because the reader was too slow."""
        return 0

    def packets(self) -> Iterator[SourcePacket]:
        """Video and data packets in the order of the source, until it ends, fails (see `failure`) or is stopped.

        H.264 and HEVC come as Annex B, however they are stored. The two fields of an H.264 picture come as one packet.
        Key frames of H.264, HEVC and MPEG-4 contain their parameter sets.
        """
        try:
            for packet, received_ns in self.demuxed():
                if self._stop.is_set():
                    return
                if not packet.size:  # the demuxer marks the end of a stream so
                    continue
                source = self._source_packet(packet, received_ns)
                if source.kind == "data":
                    yield source
                elif unit := self._access_unit(packet):
                    yield from self._whole(replace(source, packet=unit))
        except IndexError:  # PyAV raises it at the end if a stream appeared midway
            pass
        except av.FFmpegError as error:
            self.failure = error.strerror or str(error)
        yield from self._whole(None)

    def _whole(self, source: SourcePacket | None) -> Iterator[SourcePacket]:
        """The pictures that an access unit, or the end (None), completes, with their parameter sets."""
        ready: Iterable[SourcePacket] = (source,) if source else ()
        if self._fields:
            ready = self._fields.add(source) if source else self._fields.flush()
        for each in ready:
            yield replace(each, packet=self._parameters.complete(each.packet))

    def demuxed(self) -> Iterator[tuple[Packet[Stream], int]]:
        """Packets of the video and data streams, each with the time it was read: UTC, nanoseconds since 1970."""
        for packet in self._container.demux(self.video, *data_streams(self._container, self.video)):
            yield packet, time.time_ns()

    def captured(self, packet: Packet[Stream], received_ns: int) -> tuple[int, CaptureClock]:
        """A packet's capture time (UTC, nanoseconds since 1970), and whose clock it comes from."""
        return self._capture_ns(packet) if self._capture_ns else received_ns, self.clock

    def _access_unit(self, packet: Packet[Stream]) -> Packet[Stream] | None:
        """The packet as Annex B, marked as corrupt if bytes are missing in it or just before it.

        None if its length prefixes do not fit its bytes. In MPEG-TS, also within RTP, FFmpeg marks one access unit too
        early; this is corrected.
        """
        if self._marks_early is None:
            self._marks_early = packet.has_sidedata(MPEGTS_SIDE_DATA)
        if self._annex_b:
            try:
                [packet] = self._annex_b.filter(packet)
            except av.FFmpegError as error:
                self._count_unreadable(error.strerror or str(error))
                return None
            if not packet.size:  # only zeros, as from a bad disk; FFmpeg would take it for the end of the stream
                self._count_unreadable("it is empty")
                return None
            packet.stream = self.video
            new_sets = new_parameters(packet)  # would make the decoder expect length prefixes; `rewritten` drops them
            if new_sets and self.info.codec == "hevc":
                self._sets = annex_b_sets(new_sets)
            if new_sets or self._sets != self._first_sets:
                unit = bytes(packet)
                packet = rewritten(packet, unit.replace(self._first_sets, self._sets, 1) if self._first_sets else unit)
        early = packet.is_corrupt and self._marks_early
        packet.is_corrupt = self._mark or (packet.is_corrupt and not early)
        self._mark = early
        return packet

    def _count_unreadable(self, why: str) -> None:
        """Count an access unit that gives no packet, and mark the next one."""
        if not self.unreadable:
            log.warning("%s: an access unit cannot be read: %s", self._name, why)
        self.unreadable += 1
        self._mark = True

    def _source_packet(self, packet: Packet[Stream], received_ns: int) -> SourcePacket:
        capture_ns, clock = self.captured(packet, received_ns)
        return SourcePacket(packet, "video" if packet.stream is self.video else "data", received_ns, capture_ns, clock)


def video_stream(name: str, container: InputContainer) -> VideoStream:
    """The best video stream; raises `SourceUnsupported` if there is none, or it cannot be decoded."""
    stream = best_video(container)
    if stream is None and not container.streams.video:
        held = ", ".join(map(label, container.streams)) or "nothing"
        raise SourceUnsupported(f"{name}: no video in it; it holds {held}", reason="no video")
    if not isinstance(stream, VideoStream) or stream.codec_context is None:
        raise SourceUnsupported(f"{name}: its video codec is not supported", reason="codec")
    return stream


def best_video(container: InputContainer) -> Stream | None:
    """The video stream to relay; None if there is none.

    With several cameras in one live stream, FFmpeg picks the one that sent most while it probed, which differs from
    time to time. Here it is the one with the lowest number (PID) of those that send something.
    """
    best = container.streams.best("video")
    if best is None or container.format.name not in ("mpegts", "rtsp", "sdp"):
        return best
    wanted = [video for video in container.streams.video if is_wanted(video)]
    sending = [video for video in wanted if video.start_time is not None]
    return min(sending or wanted, key=lambda video: video.id, default=best)


def data_streams(container: InputContainer, video: Stream) -> list[Stream]:
    """The data streams that belong to a video stream: in a transport stream, those of its program.

    PyAV does not expose programs, but finds the best video related to a stream, which is in the same program.
    """
    best = container.streams.best("video", related=video)
    return [data for data in container.streams.data if container.streams.best("video", related=data) is best]


def is_wanted(video: VideoStream) -> bool:
    """Whether a stream can be decoded and is not discarded."""
    return video.codec_context is not None and video.discard != Discard.all


def describe(container: InputContainer, video: VideoStream) -> SourceInfo:
    """What an opened container says about one of its video streams."""
    context = video.codec_context
    rates = (video.average_rate, context.framerate, video.guessed_rate)  # the last one may be the field rate
    data = data_streams(container, video)
    return SourceInfo(
        container=container.format.name,
        codec=context.codec.canonical_name,
        width=context.width or None,
        height=context.height or None,
        pix_fmt=context.pix_fmt,
        rate=next((rate for rate in rates if rate and rate <= FASTEST), None),
        bit_rate=video.bit_rate or container.bit_rate or None,
        data=tuple(stream.name or "unknown" for stream in data),
        ignored=tuple(label(stream) for stream in container.streams if stream not in (video, *data)),
    )


def label(stream: Stream) -> str:
    """Type and codec of a stream, such as `audio mp2`; only the type if FFmpeg cannot decode it."""
    name = getattr(stream, "name", None)  # raises AttributeError without a decoder
    return f"{stream.type} {name}" if name else stream.type


def annex_b_filter(name: str, video: VideoStream) -> BitStreamFilterContext | None:
    """The filter that turns length-prefixed H.264 or HEVC into Annex B; None if there is nothing to turn.

    Raises `SourceUnsupported` if the stored parameter sets are damaged.
    """
    context = video.codec_context
    codec, parameters = context.codec.canonical_name, context.extradata or b""
    if codec not in ("h264", "hevc") or parameters[:1] != bytes([LENGTH_PREFIXED]):
        return None
    try:
        unpack = BitStreamFilterContext(f"{codec}_mp4toannexb", video)
    except av.FFmpegError as error:
        raise SourceUnsupported(f"{name}: its {codec} cannot be read: {error.strerror}", reason="codec") from None
    context.extradata = None  # the decoder will find the parameter sets in the access units
    return unpack


def new_parameters(packet: Packet[Stream]) -> bytes | None:
    """Parameter sets that come with a packet as side data; None if there are none."""
    return bytes(packet.get_sidedata("new_extradata")) if packet.has_sidedata("new_extradata") else None


def annex_b_sets(record: bytes) -> bytes:
    """HEVC parameter sets from the record that stores them apart (hvcC, ISO/IEC 14496-15, 8.3.3.1), as Annex B.

    FFmpeg's filter puts them before key frames in exactly this form, and keeps using the first ones when others come.
    """
    sets, at = bytearray(), 23
    for _ in range(int.from_bytes(record[22:23])):
        count, at = int.from_bytes(record[at + 1 : at + 3]), at + 3
        for _ in range(count):
            end = at + 2 + int.from_bytes(record[at : at + 2])
            sets += b"\0" + START_CODE + record[at + 2 : end]
            at = end
    return bytes(sets)


def fixed_parameters(video: Stream) -> bytes | None:
    """The stored parameter sets of length-prefixed HEVC, which FFmpeg keeps using when others come; else None."""
    context = video.codec_context
    if context is None or context.codec.canonical_name != "hevc":
        return None
    parameters: bytes = context.extradata or b""
    return parameters if parameters[:1] == bytes([LENGTH_PREFIXED]) else None


def has_become_another(video: Stream) -> bool:
    """Whether a stream's codec has changed since it was opened; for the thread that demuxes.

    FFmpeg's MPEG-TS demuxer follows the program map to another codec; the decoder cannot.
    """
    only = ONLY_FOR.get(video.name or "")
    if only is None:
        return False
    try:
        BitStreamFilterContext(only, video)
    except av.FFmpegError:
        return True
    return False
