"""Writes enhanced pictures to part files, which `stream.files.convert` joins at the end."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import av
from av.container import OutputContainer
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream

from engines.door import Slot
from stream.codecs.plain import messages_of
from stream.encode import COLOUR_CODES, USUAL_RATE, as_frame
from stream.files.fileclock import FileClock
from stream.files.join import ENCODER, IN_ORDER, SHIFT, container_of
from stream.files.parts import Layout, Part, Parts
from stream.files.recolour import recoloured
from stream.frame import Frame
from stream.sources.recording import RecordedSegment

log = logging.getLogger(__name__)

OPTIONS = {"preset": "veryfast", "crf": "20"}
"""No thin link limits a file's bit rate, so the quality is constant."""

RECEIVED = {"mpeg", "mpegts"}
"""FFmpeg's names of the containers that hold a stream as it was received: there, a long gap in all streams means that a
clock was set. In others it is an intended pause."""

STAMPED = b"MISP"
"""Prefix of messages inside a picture that give its time by MISB ST 0604."""

MAX_REORDER = 16
"""Number of access units between a picture's places in decoding and display order: the most that H.264 and HEVC allow.
A pause this near to a leap in the display times explains it."""

PART_PICTURES = 125
"""Pictures in a part file: the most that a kill can cost. Each part begins with a key frame."""


def options_for(target: Path) -> dict[str, str]:
    """Encoder options for the parts of a file; raises `CodecError`, see `container_of`."""
    return OPTIONS | ({"bf": "0"} if container_of(target) in IN_ORDER else {})


class PartWriter:
    """Encodes enhanced pictures into parts. A context manager; leaving it abandons the unfinished part.

    For one thread at a time. After a call that raised, later ones write nothing.
    """

    def __init__(self, parts: Parts, segment: RecordedSegment, options: dict[str, str]) -> None:
        """`options` are for the encoder, see `options_for`."""
        self._parts = parts
        self._options = options
        self._video = segment.video
        self._rate = segment.rate or USUAL_RATE
        self._pauses = segment.pauses
        self._received = segment.video.container.format.name in RECEIVED
        self.clock = FileClock(cast("Fraction", segment.video.time_base), self._rate)
        self._pictures = 0
        self._key = 0
        self._unit, self._jump = (parts.done[-1].unit, parts.done[-1].jump) if parts.done else (0, 0)
        self._jumps: list[tuple[int, int]] = []
        self._container: OutputContainer | None = None
        self._failed = False
        self._left_out: set[str] = set()  # kinds that were logged

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._container is not None:
            self._container.close()

    def write(self, frame: Frame, slot: Slot, key: int) -> int:
        """Wait for the engine, encode its picture and give the slot back; returns the number of pictures so far.

        `frame.received_ns` holds the number of its access unit; decoding must begin at `key` to resume after it.
        """
        try:
            if not self._failed:
                slot.wait()
                self._write(frame, slot, key)
        except BaseException:
            self._failed = True
            raise
        finally:
            slot.release()
        return self._parts.pictures + self._pictures

    def finish(self) -> None:
        """Make a part of what was written, if there is anything."""
        container = self._container
        if container is None or self._failed:
            return
        container.mux(self._stream.encode(None))
        container.close()
        self._container = None
        self._parts.add(
            Part(
                pictures=self._pictures,
                size=self._parts.growing.stat().st_size,
                unit=self._unit,
                key=self._key,
                placed=self.clock.placed,
                last=self.clock.last,
                jump=self.clock.jump,
                jumps=self._jumps,
            )
        )
        self._pictures, self._jumps = 0, []

    def _write(self, frame: Frame, slot: Slot, key: int) -> None:
        layout = self._parts.layout
        assert layout is not None
        container = self._container or self._begin(layout, frame.time_base)
        y, uv, colour = slot.y_out, slot.uv_out, replace(frame.colour, grey=False)
        if colour != layout.colour:
            y, uv = recoloured(y, uv, colour, layout.colour)
        picture = as_frame(y, uv[0], uv[1], layout.width, layout.height)
        self._log_left_out(frame.picture)
        unit = frame.received_ns
        near = range(min(self._unit, unit) - MAX_REORDER, max(self._unit, unit) + MAX_REORDER + 1)
        pause = not self._received or not self._pauses.isdisjoint(near)
        picture.pts, picture.time_base = self.clock.place(frame.pts, pause=pause) + SHIFT, frame.time_base
        container.mux(self._stream.encode(picture))
        self._unit, self._key = unit, key
        if self.clock.jump != self._jump:
            self._jump = self.clock.jump
            self._jumps.append((self._unit, self._jump))
        self._pictures += 1
        if self._pictures == PART_PICTURES:
            self.finish()

    def _log_left_out(self, picture: VideoFrame) -> None:
        """Warn once about each kind of message inside the recording's pictures that the new ones lack."""
        messages = messages_of(picture)
        kinds = {"closed captions" for message in messages if message.type is Type.A53_CC}
        own = [message for message in messages if message.type is Type.SEI_UNREGISTERED]
        kinds |= {"time stamps of MISB ST 0604" for message in own if bytes(message).startswith(STAMPED)}
        for kind in sorted(kinds - self._left_out):
            log.warning("the %s inside the pictures are left out", kind)
        self._left_out |= kinds

    def _begin(self, layout: Layout, time_base: Fraction) -> OutputContainer:
        """Begin the next part, which can hold any time exactly, whatever the new file can hold."""
        self._container = av.open(os.fspath(self._parts.growing.absolute()), "w")
        self._stream = cast("VideoStream", self._container.add_stream(ENCODER, rate=self._rate, options=self._options))
        self._stream.width, self._stream.height, self._stream.pix_fmt = layout.width, layout.height, "yuv420p"
        context = self._stream.codec_context
        context.flags |= av.codec.context.Flags.global_header
        context.time_base = time_base
        context.sample_aspect_ratio = self._video.sample_aspect_ratio or Fraction(0)
        context.colorspace, context.color_primaries, context.color_trc = COLOUR_CODES[layout.matrix]
        context.color_range = ColorRange.JPEG if layout.full_range else ColorRange.MPEG
        return self._container
