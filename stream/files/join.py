"""Joins enhanced pictures with a recording's own sound, data, subtitles and chapters in one file."""

from __future__ import annotations

import heapq
import io
import logging
import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from operator import itemgetter
from pathlib import Path
from typing import cast

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.format import ContainerFormat
from av.packet import Packet
from av.stream import Discard, Stream
from av.video.stream import VideoStream

from stream.encode import USUAL_RATE
from stream.errors import CodecError
from stream.files.fileclock import CopyClock, Jumps, Span
from stream.files.parts import Parts
from stream.sources.pace import LONGEST_GAP
from stream.sources.recording import open_container, open_recording
from stream.sources.segment import describe as source_info
from stream.sources.segment import label, video_stream

log = logging.getLogger(__name__)

ENCODER = "libx264"
"""FFmpeg's name of the encoder of the enhanced pictures."""

X264_REORDER = 2
"""The largest reordering delay, in pictures: that of x264 with B-frames that refer to B-frames."""

IN_ORDER = {"asf", "avi"}
"""FFmpeg's names of the containers that store only decoding times; pictures must be shown at these times, too."""

SHIFT = 1 << 40
"""Ticks that are added to all times in parts, whose container shifts negative ones as it likes."""

NAMES = {"audio": "sound"}
"""What messages call a type of stream."""

OF_THE_OLD_FILE = {"encoder", "major_brand", "minor_version", "compatible_brands", "duration"}
"""Metadata that is not copied: a new file has its own."""

OF_A_PHONE = "com.apple.quicktime."
"""Prefix of metadata names that MP4 and MOV hold only if FFmpeg is told to write all names as they are."""

OF_A_STREAM = {"creation_time", "handler_name", "language", "timecode", "title"}
"""Metadata of a stream that is kept."""

HOLDS_ORIENTATION = {"3g2", "3gp", "f4v", "ipod", "ismv", "matroska", "mov", "mp4"}
"""FFmpeg's names of the containers that store how pictures are turned and mirrored; `ipod` is .m4v."""

CONTAINERS = HOLDS_ORIENTATION | {"asf", "avi", "flv", "mpegts", "nut"}
"""Those that can hold H.264 as the parts do; FFmpeg writes it into others too, but nothing can read them."""

ENDINGS = {ending: name for name in CONTAINERS for ending in ContainerFormat(name, "w").extensions}
"""The container that each file ending stands for."""

USUAL_LAYOUTS = dict(enumerate(("mono", "stereo", "2.1", "4.0", "5.0", "5.1", "6.1", "7.1"), 1))
"""By number of channels, for sound that does not say which they are, as in AVI; MP4 needs to know."""

UNREADABLE_IN_TS = {".ts", ".m2ts", ".mts"}
"""Endings of MPEG-TS, into which FFmpeg writes any codec, unknown ones as unnamed data."""
SOUND_OF_TS = {"aac", "aac_latm", "ac3", "dca", "eac3", "mp1", "mp2", "mp3", "opus", "s302m", "truehd"}
"""Sound codecs that MPEG-TS has names for, as FFmpeg's decoders are called."""

HELD_BACK = 3
"""Number of pictures that may come later in a recording than sound and data of their time: FFmpeg's MPEG-TS demuxer
holds back two."""
MOST_WAITING = 10_000
"""The most packets of sound and data that wait for pictures at once: some minutes of sound."""

Timed = tuple[float, "Packet[Stream]"]
"""A packet, after the second at which it is to be decoded."""


@dataclass(frozen=True)
class Companions:
    """What a recording holds besides its pictures."""

    kept: list[int]
    """Indices of the streams that the new file can hold."""
    left_out: list[str]
    """Why others are not kept, for people."""


def container_of(target: Path) -> str:
    """FFmpeg's name of the container that a file's ending stands for; raises `CodecError` if none can be used."""
    try:
        return ENDINGS[target.suffix[1:].lower()]
    except KeyError:
        raise CodecError(f"a video file cannot end in {target.suffix!r}; try .mp4 or .mkv") from None


def companions(source: Path, target: Path) -> Companions:
    """What else of `source` a file like `target` can hold, tried out in memory. Raises `SourceUnsupported`."""
    found = Companions([], [])
    with open_container(source) as reader:
        video = video_stream(str(source), reader)
        for stream in reader.streams:
            if stream is video or stream.discard is Discard.all:
                continue
            if stream.type == "data" and "timecode" in stream.metadata:  # copied with the video's metadata
                continue
            if reason := refusal(target, stream):
                found.left_out.append(f"the {NAMES.get(stream.type, stream.type)} is left out: {reason}")
            else:
                found.kept.append(stream.index)
    return found


def refusal(target: Path, stream: Stream) -> str | None:
    """Why a file like `target` cannot hold a stream; None if it can."""
    if stream.type == "video":
        return "the file has a video already"
    suffix = target.suffix.lower()
    if suffix in UNREADABLE_IN_TS and stream.type == "audio":
        name = stream.codec_context.name.removesuffix("float").removesuffix("_fixed")
        if name not in SOUND_OF_TS and not (suffix == ".m2ts" and name == "pcm_bluray"):
            return f"no player can play {label(stream)} in {target.suffix}"
    try:
        try_out(target, stream)
    except av.FFmpegError:  # some of which are ValueErrors, too
        return f"{target.suffix} cannot hold {label(stream)}"
    except ValueError as error:  # "'webm' format does not support 'aac' codec"
        return str(error)
    return None


def try_out(target: Path, stream: Stream) -> None:
    """Begin a file like `target` in memory, with enhanced video and `stream`; raises what FFmpeg or PyAV objects to."""
    with av.open(io.BytesIO(), "w", format=container_of(target)) as writer:
        writer.add_stream(ENCODER, rate=25, width=64, height=64)
        writer.add_stream_from_template(stream)
        writer.start_encoding()


def join(source: Path, parts: Parts, target: Path, kept: list[int]) -> None:
    """Write all parts and the streams `kept` of `source`, in sync, to `target`."""
    container = container_of(target)
    with (
        open_container(source) as reader,
        av.open(str(target.absolute()), "w", format=container, container_options=muxer_options(reader)) as writer,
    ):
        video = video_stream(str(source), reader)
        metadata = {key: value for key, value in reader.metadata.items() if key.lower() not in OF_THE_OLD_FILE}
        writer.metadata.update(metadata)
        writer.set_chapters(reader.chapters())
        pictures = add_pictures(parts, writer, video)
        time_base, rate = video.time_base or Fraction(1), source_info(reader, video).rate or USUAL_RATE
        pictures.codec_context.framerate = rate
        if container == "avi" and are_even(parts, time_base, rate):
            pictures.time_base = 1 / rate  # AVI states its tick rate as frame rate: else 600 per second
        copies = {index: add_copy(writer, reader.streams[index]) for index in kept}
        start = Fraction((video.start_time or 0) * time_base)
        jumps = Jumps([(unit, jump * time_base) for part in parts.done for unit, jump in part.jumps], start)
        units = unit_stamps(source) if any(part.jumps for part in parts.done) else []
        own = (packets_in_order if container in IN_ORDER else packets_of_parts)(parts, pictures, time_base)
        writer.start_encoding()  # settles the time bases of the new file
        damaged = 0
        merged = heapq.merge(own, copied_packets(reader, video, copies, jumps, units), key=itemgetter(0))
        packets = (packet for _, packet in merged)
        for packet in from_zero(packets) if container == "avi" else packets:
            try:
                writer.mux(packet)
            except av.InvalidDataError:  # a copied packet: those of the parts come from our encoder
                damaged += 1
        if damaged:
            log.warning("%s: damaged packets of sound or data left out: %d", source, damaged)
    with open_container(target) as made:
        held = {key.lower() for key in made.metadata}
    if lost := ", ".join(key for key in metadata if key.lower() not in held):
        log.warning("the metadata %s is left out", lost)


def muxer_options(reader: InputContainer) -> dict[str, str]:
    """Options that make MP4 and MOV keep what an iPhone says about its recording, instead of the usual tags.

    The usual tags are worth more than what other phones say: in MOV even the place of filming is one.
    """
    return {"movflags": "use_metadata_tags"} if any(key.startswith(OF_A_PHONE) for key in reader.metadata) else {}


def add_pictures(parts: Parts, writer: OutputContainer, video: VideoStream) -> VideoStream:
    """Add a stream for the pictures in the parts, which are all alike."""
    with av.open(str(parts.paths()[0].absolute())) as part:
        stream = writer.add_stream_from_template(part.streams.video[0])
    describe(stream, video)
    if parts.layout and parts.layout.display_matrix:
        if writer.format.name in HOLDS_ORIENTATION:
            stream.set_display_matrix(parts.layout.display_matrix)
        else:
            suffix = Path(writer.name).suffix
            log.warning("the %s is left out: %s cannot hold it", turn(parts.layout.display_matrix), suffix)
    return stream


def turn(display_matrix: Sequence[int]) -> str:
    """What a display matrix does to pictures, in words."""
    right, down, _, below_right, below_down, *_ = display_matrix
    degrees = round(math.degrees(math.atan2(down, right))) % 360
    mirroring = "mirroring and " if right * below_down < down * below_right else ""
    return f"{mirroring}rotation by {degrees} degrees clockwise"


def add_copy(writer: OutputContainer, stream: Stream) -> Stream:
    """Add a stream for packets that are copied as they are."""
    copy = writer.add_stream_from_template(stream)
    describe(copy, stream)
    if isinstance(copy, AudioStream) and copy.layout.name == f"{copy.channels} channels":
        copy.codec_context.layout = USUAL_LAYOUTS.get(copy.channels, copy.layout)
    return copy


def describe(stream: Stream, like: Stream) -> None:
    """Copy the metadata and the disposition of a stream."""
    for key, value in like.metadata.items():
        if key.lower() in OF_A_STREAM:
            stream.metadata[key] = value
    stream.disposition = like.disposition


def pictures_of(path: Path, time_base: Fraction) -> list[Packet[Stream]]:
    """The packets of a part in decoding order, with the times when they are shown, in ticks of `time_base`."""
    with av.open(str(path.absolute())) as part:
        packets = [packet for packet in part.demux(part.streams[0]) if packet.size]
    for packet in packets:
        packet.pts = round((packet.pts or 0) * packet.time_base / time_base) - SHIFT
        packet.duration = round((packet.duration or 0) * packet.time_base / time_base)
        packet.time_base = time_base
    return packets


def are_even(parts: Parts, time_base: Fraction, rate: Fraction) -> bool:
    """Whether each picture is shown a whole number of periods 1 / `rate` after the first, to within a tenth of one."""
    times = [packet.pts or 0 for path in parts.paths() for packet in pictures_of(path, time_base)]
    numbers = ((time - times[0]) * time_base * rate for time in times)
    return all(abs(number - round(number)) <= 0.1 for number in numbers)


def packets_in_order(parts: Parts, stream: Stream, time_base: Fraction) -> Iterator[Timed]:
    """All pictures, decoded in the order they are shown, in ticks of the file, where no two may have the same time."""
    file_base = cast("Fraction", stream.time_base)
    ticks = time_base / file_base
    first: int | None = None
    start = last = 0
    for path in parts.paths():
        for packet in pictures_of(path, time_base):
            time = packet.pts or 0
            if first is None:
                first, start = time, round(time * ticks)
                last = start - 1
            last = max(start + round((time - first) * ticks), last + 1)
            packet.pts = packet.dts = last
            packet.duration = round((packet.duration or 0) * ticks)
            packet.time_base, packet.stream = file_base, stream
            yield float(last * file_base), packet


def packets_of_parts(parts: Parts, stream: Stream, time_base: Fraction) -> Iterator[Timed]:
    """All pictures, in ticks of `time_base`, with decoding times that increase across all parts."""
    before: list[int] = []
    for path in parts.paths():
        packets = pictures_of(path, time_base)
        times = sorted(packet.pts or 0 for packet in packets)
        step = times[1] - times[0] if len(times) > 1 else 1
        before = before or [times[0] - number * step for number in range(X264_REORDER, 0, -1)]
        for packet, dts in zip(packets, before + times, strict=False):
            packet.dts, packet.stream = dts, stream
            yield float(dts * time_base), packet
        before = (before + times)[-X264_REORDER:]


def from_zero(packets: Iterator[Packet[Stream]]) -> Iterator[Packet[Stream]]:
    """Packets with times counted from that of the first: in AVI each stream begins when the file does."""
    start: Fraction | None = None
    for packet in packets:
        start = (packet.dts or 0) * packet.time_base if start is None else start
        shift = round(start / packet.time_base)
        packet.pts, packet.dts = (packet.pts or 0) - shift, (packet.dts or 0) - shift
        yield packet


def unit_stamps(source: Path) -> list[int | None]:
    """Decoding time of each access unit of a recording, in the order that numbers them in its parts."""
    with open_recording(source, threading.Event()) as segment:
        return [stamp_of(packet.packet) for packet in segment.packets() if packet.kind == "video"]


def stamp_of(packet: Packet[Stream]) -> int | None:
    """When a packet is to be decoded, in its own ticks."""
    return packet.pts if packet.dts is None else packet.dts


def copied_packets(
    reader: InputContainer, video: VideoStream, copies: dict[int, Stream], jumps: Jumps, units: Sequence[int | None]
) -> Iterator[Timed]:
    """Packets of the streams in `copies`, in the order of the recording, with times that match the pictures.

    What an edit cut off at the front, though it is still in the recording, is left out. `units` are the recording's
    `unit_stamps`, needed only if there are jumps.
    """
    waiting = Waiting(reader, copies, jumps)
    passed = 0
    for packet in played(demux(reader, video, copies), video):
        index = packet.stream.index
        if index == video.index:  # not every packet is an access unit: it may be unreadable, or a second field
            stamp = stamp_of(packet)
            is_unit = passed < len(units) and packet.size and stamp == units[passed]
            if stamp is not None and (is_unit or not units):
                jumps.pass_picture(passed, Fraction(stamp * packet.time_base))
                yield from waiting.pass_picture()
            passed += bool(is_unit)
        elif packet.size:
            yield from waiting.add(packet)
    yield from waiting.end()


class Waiting:
    """Copied packets that wait for the next pictures, which tell where the packets belong."""

    def __init__(self, reader: InputContainer, copies: dict[int, Stream], jumps: Jumps) -> None:
        self._packets: deque[tuple[Packet[Stream], Fraction, int]] = deque()  # with time and number of the last picture
        self._passed = 0
        self._copies = copies
        self._jumps = jumps
        self._clocks = {
            index: CopyClock(cast("Fraction", reader.streams[index].time_base), cast("Fraction", copy.time_base))
            for index, copy in copies.items()
        }

    def add(self, packet: Packet[Stream]) -> Iterator[Timed]:
        """Add a packet; yields the oldest one if too many wait."""
        self._packets.append((packet, self._jumps.now, self._passed))
        if len(self._packets) > MOST_WAITING:
            yield self._placed(math.inf)

    def pass_picture(self) -> Iterator[Timed]:
        """A picture has come, and `jumps` knows of it; yields the packets that came before the last few pictures."""
        self._passed += 1
        while self._packets and self._packets[0][2] <= self._passed - HELD_BACK:
            yield self._placed(self._jumps.now)

    def end(self) -> Iterator[Timed]:
        """No more pictures will come; yields all packets."""
        while self._packets:
            yield self._placed(math.inf, self._jumps.now + LONGEST_GAP)

    def _placed(self, after: Fraction | float, latest: Fraction | float | None = None) -> Timed:
        """The packet that has waited longest, placed between the picture before it and the time `after` it.

        A time stamp is judged wrong if it is far after `latest`, or after `after` if that is None.
        """
        packet, before, _ = self._packets.popleft()
        index, between = packet.stream.index, (before, after)
        following = next((other for other, *_ in self._packets if other.stream.index == index), None)
        stamps = [None if each is None else self._stamp(each, between) for each in (packet, following)]
        span = (before, after if latest is None else latest)
        packet.pts = packet.dts = self._clocks[index].place(stamps[0], packet.duration or 0, span, stamps[1])
        packet.stream = self._copies[index]
        return float(packet.dts * packet.time_base), packet

    def _stamp(self, packet: Packet[Stream], between: Span) -> int | None:
        """A packet's time in the file by its own time stamp, in its own ticks; None if it has none."""
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None:
            return None
        return stamp + round(self._jumps.of(Fraction(stamp * packet.time_base), between) / packet.time_base)


def played(packets: Iterator[Packet[Stream]], video: VideoStream) -> Iterator[Packet[Stream]]:
    """All video packets; of other streams those that are played and the one before, where decoding begins."""
    before: dict[int, Packet[Stream]] = {}
    for packet in packets:
        index = packet.stream.index
        if packet.is_discard and index != video.index:
            before[index] = packet
            continue
        if index in before:
            yield before.pop(index)
        yield packet


def demux(reader: InputContainer, video: VideoStream, copies: dict[int, Stream]) -> Iterator[Packet[Stream]]:
    """The packets of these streams, as far as the recording can be read."""
    try:
        yield from reader.demux(video, *(reader.streams[index] for index in copies))
    except IndexError:  # PyAV raises it at the end if a stream appeared midway
        return
    except av.FFmpegError:  # logged when the pictures were read
        return
