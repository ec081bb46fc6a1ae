"""Access units to frames, one for one: what gives no picture is counted, what is damaged is marked."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from hashlib import sha256

import av
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from stream.errors import CodecError
from stream.frame import CaptureClock, Frame, SourcePacket, State
from stream.plain import PlainPictures, colour_of, is_neutral

LONGEST_DELAY = 32
"""Access units after which a picture that has not come out never will: decoders reorder 16 at most."""


@dataclass(frozen=True, eq=False, slots=True)
class AccessUnit:
    """What a picture keeps of the access unit that it came from: FFmpeg carries it from packet to picture.

    It must not hold the packet, which holds it.
    """

    number: int
    """Counted in the order of decoding."""
    pts: int | None
    duration: int
    time_base: Fraction
    key: bool
    received_ns: int
    capture_ns: int
    capture_clock: CaptureClock
    sha256: bytes
    damaged: bool
    """Whether the source says that bytes of it are missing."""
    tainted: bool
    """Whether an access unit since the last key frame, in the order of decoding, was damaged."""


class Decoder:
    """Decodes one segment of a source, for one thread and on one core.

    Decoding begins with the first intact key frame. A damaged picture is `concealed`, and those after it are
    `tainted` until the next key frame. Every access unit comes out as a frame or, after `flush` at the latest,
    is counted in `lost`.
    """

    def __init__(self, video: VideoStream) -> None:
        """`video` must have no other decoder. Raises `CodecError` where its codec cannot be opened."""
        self.lost = 0
        """Access units that gave no picture, with those in front of the first key frame."""
        self._context = video.codec_context
        self._context.thread_count = 1  # with parallel slices FFmpeg hides damage
        self._context.copy_opaque = True
        try:
            self._context.open(strict=False)
        except av.FFmpegError as error:
            raise CodecError(f"the decoder {self._context.name} does not open: {error.strerror}") from None
        self._pictures = PlainPictures()
        self._inside: set[int] = set()
        self._count = 0
        self._started = False
        self._damage_in = False  # in the order of decoding, until a key frame goes in
        self._damage_out = False  # in the order of showing, until a key frame comes out
        self._refreshing = False  # a stream without key frames began to renew itself after damage
        self._next_pts = 0
        self._grey = False

    @property
    def deinterlaces(self) -> bool:
        """Whether an interlaced picture has come; from then on there is one more picture of delay."""
        return self._pictures.interlaced

    def decode(self, source: SourcePacket) -> list[Frame]:
        """The frames that this access unit completes, in the order in which they are shown.

        Damage raises nothing: it is seen in the frames' `state` and in `lost`.
        """
        packet = source.packet
        self._started = self._started or (packet.is_keyframe and not packet.is_corrupt)
        if not self._started:
            self.lost += 1
            return []
        unit = self._enter(source)
        packet.opaque = unit
        return self._decode(packet)

    def flush(self) -> list[Frame]:
        """The last frames; nothing can be decoded after it."""
        frames = self._decode(None)
        with suppress(av.FFmpegError):
            frames += self._leave(self._pictures.flush())
        for number in list(self._inside):
            self._lose(number)
        return frames

    def _enter(self, source: SourcePacket) -> AccessUnit:
        packet = source.packet
        if packet.is_keyframe:
            self._damage_in = False
        unit = AccessUnit(
            number=self._count,
            pts=packet.pts,
            duration=packet.duration or 1,
            time_base=packet.time_base,
            key=packet.is_keyframe,
            received_ns=source.received_ns,
            capture_ns=source.capture_ns,
            capture_clock=source.capture_clock,
            sha256=sha256(packet).digest(),
            damaged=packet.is_corrupt,
            tainted=self._damage_in,
        )
        self._damage_in = self._damage_in or packet.is_corrupt
        self._inside.add(unit.number)
        self._count += 1
        self._lose(unit.number - LONGEST_DELAY)
        return unit

    def _lose(self, number: int) -> None:
        """Count an access unit as lost if it has not come out."""
        if number in self._inside:
            self._inside.discard(number)
            self.lost += 1

    def _decode(self, packet: Packet[Stream] | None) -> list[Frame]:
        """Frames for a packet; for None, what FFmpeg still holds."""
        plain: list[VideoFrame] = []
        try:
            for picture in self._context.decode(packet):
                plain += self._pictures.add(picture)
        except av.FFmpegError:
            self._damage_in = True
        return self._leave(plain)

    def _leave(self, pictures: list[VideoFrame]) -> list[Frame]:
        """Frames of plain pictures: one for an access unit, none for what FFmpeg made up for a missing one."""
        units = ((picture, picture.opaque) for picture in pictures)
        return [
            self._frame(picture, unit)
            for picture, unit in units
            if isinstance(unit, AccessUnit) and unit.number in self._inside
        ]

    def _frame(self, picture: VideoFrame, unit: AccessUnit) -> Frame:
        self._inside.discard(unit.number)
        colour = colour_of(picture)
        pts = self._next_pts if unit.pts is None else unit.pts
        self._next_pts = pts + unit.duration
        return Frame(
            picture=picture,
            colour=replace(colour, grey=colour.grey or self._is_grey(picture, unit)),
            pts=pts,
            time_base=unit.time_base,
            received_ns=unit.received_ns,
            capture_ns=unit.capture_ns,
            capture_clock=unit.capture_clock,
            state=self._state(picture, unit),
            source_sha256=unit.sha256,
        )

    def _is_grey(self, picture: VideoFrame, unit: AccessUnit) -> bool:
        """Whether there was no colour since the last key frame, as from a camera that sees by infrared."""
        self._grey = (unit.key or self._grey) and is_neutral(picture)
        return self._grey

    def _state(self, picture: VideoFrame, unit: AccessUnit) -> State:
        if unit.key:
            if picture.key_frame or self._refreshing:
                self._damage_out = False
            self._refreshing = self._damage_out
        if unit.damaged or picture.is_corrupt:
            self._damage_out, self._refreshing = True, False
            return "concealed"
        self._damage_out = self._damage_out or unit.tainted
        return "tainted" if self._damage_out else "clean"
