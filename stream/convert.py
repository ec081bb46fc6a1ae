"""A recording to a file: its pictures enhanced, its sound as it was."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream

from engines.door import SCALE, Engine
from stream.decode import Decoder
from stream.encode import COLOUR_CODES, as_frame
from stream.enhance import enhance
from stream.errors import CodecError, SourceUnsupported
from stream.frame import Frame, SourcePacket

log = logging.getLogger(__name__)

ENCODER, OPTIONS = "libx264", {"preset": "veryfast", "crf": "20"}
"""A file has no thin link before it, so its quality is constant."""


def convert(engine: Engine, source: Path, target: Path, report: Callable[[int, int | None], None]) -> int:
    """Enhance every picture of `source` into `target`, whose suffix says the container; returns how many.

    `target` appears when it is complete; an old one is replaced then. Sound is copied where the container can
    hold it, and else left out with a warning. `report` is told the pictures so far, and how many the file says it
    has. Raises `SourceUnsupported` and `CodecError`.
    """
    part = target.with_name(f".part-{target.name}")
    try:
        with open_recording(source) as reader, open_target(part) as writer:
            count = convert_streams(engine, reader, writer, report)
        part.replace(target)
    except av.FFmpegError as error:
        raise CodecError(f"{source}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    return count


def convert_streams(
    engine: Engine, reader: InputContainer, writer: OutputContainer, report: Callable[[int, int | None], None]
) -> int:
    """All packets of an opened recording into an opened target."""
    source = reader.streams.video[0]
    target = add_video(writer, source.average_rate or Fraction(25))
    copies = copy_sound(reader, writer)
    decoder = Decoder(source)
    early: list[Packet[Stream]] = []  # sound before the first picture: a container wants to know all streams first
    count = 0

    def write(frames: list[Frame]) -> None:
        nonlocal count
        for frame in frames:
            if count == 0:
                describe(target, frame)
                writer.mux(early)
            elif (SCALE * frame.width, SCALE * frame.height) != (target.width, target.height):
                raise SourceUnsupported(
                    f"{reader.name}: its pictures change their size, to {frame.width}x{frame.height}; a file holds one"
                )
            write_enhanced(engine, frame, writer, target)
            count += 1
            report(count, source.frames or None)

    for packet in reader.demux(source, *(stream for stream in reader.streams.audio if stream.index in copies)):
        if packet.stream.index in copies and packet.dts is not None:
            packet.stream = copies[packet.stream.index]
            if count == 0:
                early.append(packet)
            else:
                writer.mux(packet)
        elif packet.size:
            now = time.time_ns()
            write(decoder.decode(SourcePacket(packet, "video", now, now, "arrival")))
    write(decoder.flush())
    if count == 0:
        raise SourceUnsupported(f"{reader.name}: no picture in it can be decoded")
    writer.mux(target.encode(None))
    return count


def copy_sound(reader: InputContainer, writer: OutputContainer) -> dict[int, AudioStream]:
    """A stream in the target for each that is sound, by its index in the source."""
    copies = {}
    for stream in reader.streams.audio:
        try:
            copies[stream.index] = writer.add_stream_from_template(stream)
        except ValueError as error:  # "'webm' format does not support 'aac' codec"
            log.warning("the sound is left out: %s", error)
    return copies


def write_enhanced(engine: Engine, frame: Frame, writer: OutputContainer, target: VideoStream) -> None:
    """One picture through the engine and the encoder, which keeps a copy of its own."""
    (slot,) = enhance(engine, [frame])
    try:
        slot.wait()
        picture = as_frame(slot.y_out, slot.uv_out[0], slot.uv_out[1], target.width, target.height)
        picture.pts, picture.time_base = frame.pts, frame.time_base
        writer.mux(target.encode(picture))
    finally:
        slot.release()


def add_video(writer: OutputContainer, rate: Fraction) -> VideoStream:
    """A stream for the enhanced pictures; see `describe`."""
    try:
        return cast("VideoStream", writer.add_stream(ENCODER, rate=rate, options=OPTIONS))
    except ValueError:
        raise unfit(Path(writer.name)) from None


def describe(target: VideoStream, frame: Frame) -> None:
    """Prepare a stream for the enhanced pictures of a recording whose first frame is this."""
    target.width, target.height, target.pix_fmt = SCALE * frame.width, SCALE * frame.height, "yuv420p"
    context = target.codec_context
    context.time_base = frame.time_base
    context.colorspace, context.color_primaries, context.color_trc = COLOUR_CODES[frame.colour.matrix]
    context.color_range = ColorRange.JPEG if frame.colour.full_range else ColorRange.MPEG


def open_recording(path: Path) -> InputContainer:
    """An opened file with video in it."""
    try:
        reader = av.open(path, "r", options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except av.FFmpegError as error:
        raise SourceUnsupported(f"{path}: {error.strerror}") from None
    if not reader.streams.video:
        reader.close()
        raise SourceUnsupported(f"{path}: no video in it")
    return reader


def open_target(path: Path) -> OutputContainer:
    """The container that the suffix of `path` says."""
    try:
        return av.open(path, "w")
    except ValueError:
        raise unfit(path) from None


def unfit(path: Path) -> CodecError:
    """The error of a suffix whose container holds no video, or none of ours."""
    return CodecError(f"a video file cannot end in {path.suffix!r}; try .mp4 or .mkv")
