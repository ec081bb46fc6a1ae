"""Decodes access units to frames, one for one; those without a picture are counted, damaged ones are marked."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import replace
from errno import EINVAL, ERANGE
from fractions import Fraction
from hashlib import sha256
from statistics import median_low

import av
from av.packet import Packet
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream

from stream.codecs.damage import Damage
from stream.codecs.ffmpeg_log import captured_log, has_line_starting_with
from stream.codecs.h264 import ReferenceCheck, is_idr
from stream.codecs.hardware import copy_parameters, is_on_gpu, nvdec, trouble
from stream.codecs.orientation import UPRIGHT, orientation_of, swaps_sides
from stream.codecs.plain import PlainPictures, colour_of, display_matrix, is_neutral
from stream.errors import CodecError
from stream.frame import AccessUnit, Frame, SourcePacket, State, memory_for
from stream.settings import DecoderChoice

DAMAGE = {
    "h264": ("error while decoding MB",),
    "mjpeg": ("overread ", "error count: ", "error y=", "mjpeg_decode_dc: bad vlc"),
}
"""By codec: how FFmpeg's log lines about damage inside a picture begin."""
LONGEST_DELAY = 32
"""A picture that has not come out after so many access units never will: decoders reorder 16 at most."""
STEPS_KEPT = 9
"""Remembered intervals between arrivals of access units; their median is the usual one."""
HELD_BACK = 3
"""Usual intervals for which a demuxer holds back an access unit: FFmpeg's MPEG-TS demuxer two, and one more for large
access units that arrive slowly."""
PADDING = 1 << 18
"""Pixels that FFmpeg may count beyond twice those shown, since it adds borders to a picture."""
GPU_FAILURES = (av.ExternalError, av.MemoryError)
"""What NVDEC raises when the GPU itself fails; damaged pictures raise other errors."""
NO_MATRIX = 2
"""Unspecified matrix coefficients (ITU-T H.273)."""


class PictureTooLarge(CodecError):
    """A picture larger than its feed's memory allows; nothing of it was decoded."""


class Decoder:
    """Decodes one segment of a source, on one CPU core or on a GPU; for one thread.

    Decoding begins with the first intact key frame. A damaged picture is `concealed`, and those after it are `tainted`
    until the picture is refreshed. Every access unit comes out as a frame or is counted in `lost`, by `flush` at the
    latest. What a GPU cannot decode, or fails on, is decoded on the CPU.
    """

    def __init__(
        self,
        video: VideoStream,
        largest: int | None = None,
        choice: DecoderChoice = "software",
        *,
        upright: bool = True,
    ) -> None:
        """`video` must have no other decoder; pictures of more than `largest` pixels are refused.

        Frames are turned and mirrored upright as the source says, or left as filmed with `upright` False. Raises
        `CodecError` if the codec cannot be opened, and `PictureTooLarge`.
        """
        self.lost = 0
        """Access units that gave no picture, including those before the first key frame."""
        self.orientation = UPRIGHT
        """How to turn and mirror the latest clean picture upright, as the source says."""
        self._choice = choice
        self._trouble: str | None = None
        self._upright = upright
        self._video = video
        self._software = video.codec_context
        self._first_aspect = self._software.sample_aspect_ratio
        self._largest = largest
        self._context = self._open(self._chosen(video))
        self._references = ReferenceCheck(self._context.extradata or b"") if self._context.name == "h264" else None
        self._pictures = PlainPictures(fields_apart=self._software.name == "hevc")
        self._damage = Damage()
        self._inside: set[int] = set()
        self._count = 0
        self._started = False
        self._spoilt = False  # FFmpeg keeps something of a damaged picture
        self._mixes = False  # and adds it to the next one
        self._next_pts = 0
        self._grey = False
        self._steps_ns: deque[int] = deque(maxlen=STEPS_KEPT)
        self._arrived_ns: int | None = None  # of the latest access unit, like the next one
        self._received_ns = 0
        self._usual = UPRIGHT  # if a key frame gives none; a new context forgets the container's

    @property
    def name(self) -> str:
        """FFmpeg's name of the decoder, and `on NVDEC` if the GPU does the work; known once a frame has come."""
        return f"{self._context.name} on NVDEC" if is_on_gpu(self._context) else self._context.name

    @property
    def trouble(self) -> str | None:
        """Human-readable reason why the GPU has failed, or does not decode although the settings say `nvdec`.

        Whether NVDEC supports the pictures is known once a frame has come.
        """
        if self._trouble is None and self._choice == "nvdec" and not is_on_gpu(self._context):
            return "NVDEC does not support pictures of this kind or size"
        return self._trouble

    @property
    def filmed_size(self) -> tuple[int, int]:
        """Width and height of the latest picture, as filmed; zeros if they are unknown."""
        return self._context.width, self._context.height

    @property
    def deinterlaces(self) -> bool:
        """Whether an interlaced picture has come; from then on the delay is one picture longer."""
        return self._pictures.interlaced

    def decode(self, source: SourcePacket) -> list[Frame]:
        """The frames that this access unit completes, in presentation order.

        Damage raises no error: it shows in the frames' `state` and in `lost`. Raises `PictureTooLarge`.
        """
        packet = source.packet
        self._note_arrival(source)
        self._started = self._started or (packet.is_keyframe and not packet.is_corrupt)
        if not self._started:
            self.lost += 1
            return []
        anew = self._spoilt and self._begins_alone(packet)
        mixed = self._mixes and packet.is_keyframe and not anew
        unit = self._enter(source, damaged=packet.is_corrupt or mixed)
        packet.opaque = unit
        before = self._begin_anew() if anew else []
        try:
            return before + self._decode(packet)
        except PictureTooLarge:
            self.lost += len(before)
            raise

    def flush(self) -> list[Frame]:
        """The last frames; nothing can be decoded after it."""
        frames: list[Frame] = []
        with suppress(PictureTooLarge):
            frames += self._decode(None)
        with suppress(av.FFmpegError):
            frames += self._leave(self._pictures.flush())
        for number in list(self._inside):
            self._lose(number)
        return frames

    def _chosen(self, video: VideoStream) -> VideoCodecContext:
        """The GPU decoder if it is wanted and available, else the CPU decoder."""
        if self._choice == "software":
            return self._software
        try:
            return nvdec(video)
        except CodecError as error:
            self._trouble = str(error) if self._choice == "nvdec" else None
            return self._software

    def _open(self, context: VideoCodecContext) -> VideoCodecContext:
        context.thread_count = 1  # with parallel slices FFmpeg hides damage
        context.copy_opaque = True
        context.flags |= int(av.codec.context.Flags.unaligned)  # without this, FFmpeg crops too little on the left
        self._refuse_large(context)
        if self._largest is not None:
            context.options["max_pixels"] = str(2 * self._largest + PADDING)  # checked before memory is allocated
        try:
            context.open(strict=False)
        except av.FFmpegError as error:
            raise CodecError(f"the decoder {context.name} cannot be opened: {error.strerror}") from None
        return context

    def _leave_gpu(self, error: av.FFmpegError) -> None:
        """Continue on the CPU from the next key frame; what the GPU still held is lost."""
        self._trouble = trouble("NVDEC", error)
        self._context = self._open(self._software)
        self._started = False
        for number in list(self._inside):
            self._lose(number)

    def _note_arrival(self, source: SourcePacket) -> None:
        if self._arrived_ns is not None:
            self._steps_ns.append(max(0, source.arrived_ns - self._arrived_ns))
        self._arrived_ns, self._received_ns = source.arrived_ns, source.received_ns

    def _held_ns(self, unit: AccessUnit) -> int:
        """`Frame.held_ns`, at most what is usual for this feed: any more, by its link or this machine, is lateness."""
        later = self._count - 1 - unit.number
        usual_ns = median_low(self._steps_ns) if self._steps_ns else 0
        return max(0, min(self._received_ns - unit.arrived_ns, (later + HELD_BACK) * usual_ns))

    def _begins_alone(self, packet: Packet[Stream]) -> bool:
        """Whether a fresh decoder can begin with this access unit."""
        return is_idr(bytes(packet)) if self._context.name == "h264" else packet.is_keyframe

    def _begin_anew(self) -> list[Frame]:
        """Replace FFmpeg's decoder by a fresh one; returns the frames that the old one still held.

        Otherwise FFmpeg adds coefficients of a damaged H.264 picture (CAVLC) to the next one, even to a key frame, and
        applies a false orientation from a damaged HEVC picture to all that follow.
        """
        context = av.CodecContext.create(self._software.codec, "r")
        assert isinstance(context, VideoCodecContext)
        copy_parameters(context, self._software)
        context.width = context.height = 0  # set by the key frame
        self._open(context)
        frames: list[Frame] = []
        with suppress(PictureTooLarge):
            frames = self._decode(None)
        self._context = self._software = context
        self._spoilt = False
        self._usual = self.orientation
        return frames

    def _enter(self, source: SourcePacket, damaged: bool) -> AccessUnit:
        packet = source.packet
        if self._misses_references(packet):
            self._damage.note_damage()
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
            damaged=damaged,
            tainted=self._damage.enter(key=packet.is_keyframe, damaged=damaged),
            announces_refresh=self._references is not None and self._references.announces_refresh,
            completes_refresh_of=self._references.completes_refresh_of if self._references is not None else None,
        )
        self._inside.add(unit.number)
        self._count += 1
        self._lose(unit.number - LONGEST_DELAY)
        return unit

    def _misses_references(self, packet: Packet[Stream]) -> bool:
        """Whether whole access units are missing before this one, as far as the codec reveals it."""
        if self._references is None:
            return False
        missing = self._references.is_missing(bytes(packet), self._count if packet.is_keyframe else None)
        if self._references.sequence_changed:  # FFmpeg keeps the old colour if the new one gives none
            self._context.colorspace, self._context.color_range = NO_MATRIX, ColorRange.MPEG
        return missing

    def _lose(self, number: int) -> None:
        """Count an access unit as lost if it has not come out."""
        if number in self._inside:
            self._inside.discard(number)
            self.lost += 1

    def _decode(self, packet: Packet[Stream] | None) -> list[Frame]:
        """The frames for a packet; for None, those that FFmpeg still holds."""
        plain: list[VideoFrame] = []
        try:
            with captured_log() as lines:
                pictures = self._context.decode(packet)
            damaged = has_line_starting_with(lines, *DAMAGE.get(self._context.name, ()))
            self._mixes = damaged and self._context.name == "h264"
            if self._mixes:
                self._damage.note_damage()  # pictures that refer to this one may come out before it
                self._spoilt = True
            for picture in pictures:
                self._refuse_large(self._context)
                its_own = picture.is_corrupt or (damaged and self._context.name == "mjpeg")
                self._damage.come_out(picture, self._unit_of(picture), damaged=its_own)
                plain += self._pictures.add(picture)
        except av.FFmpegError as error:
            self._damage.note_damage()
            if packet and packet.is_keyframe and not packet.is_corrupt:
                self._refuse_large(self._context, error)
            if isinstance(error, GPU_FAILURES) and is_on_gpu(self._context):
                self._leave_gpu(error)
        return self._leave(plain)

    def _refuse_large(self, context: VideoCodecContext, error: av.FFmpegError | None = None) -> None:
        """Raise `PictureTooLarge` if the codec found too large a picture, or failed because of one."""
        width, height = context.width, context.height
        number = error.errno if error else None
        unsaid = number == ERANGE or (number == EINVAL and not width)  # some codecs forget a size that was too large
        if self._largest is None or not (unsaid or width * height > self._largest):
            return
        if unsaid:
            raise PictureTooLarge(f"its pictures are too large: the memory of its feed allows {self._largest} pixels")
        raise PictureTooLarge(f"its pictures are {width}x{height}; {memory_for(width, height)}")

    def _leave(self, pictures: list[VideoFrame]) -> list[Frame]:
        """Frames of plain pictures: one per access unit, none for what FFmpeg made up for a missing one."""
        units = ((picture, self._unit_of(picture)) for picture in pictures)
        return [self._frame(picture, unit) for picture, unit in units if unit]

    def _unit_of(self, picture: VideoFrame) -> AccessUnit | None:
        """The access unit that a picture came from; None if it is counted as lost or already has a frame."""
        unit = picture.opaque
        return unit if isinstance(unit, AccessUnit) and unit.number in self._inside else None

    def _frame(self, picture: VideoFrame, unit: AccessUnit) -> Frame:
        self._inside.discard(unit.number)
        colour = colour_of(picture)
        pts = self._next_pts if unit.pts is None else unit.pts
        self._next_pts = pts + unit.duration
        state = self._damage.leave(unit, mixed=self._pictures.interlaced)
        self._see_orientation(picture, unit, state)
        orientation = self.orientation if self._upright else UPRIGHT
        aspect = self._aspect(picture)
        return Frame(
            picture=picture,
            colour=colour if colour.grey or not self._is_grey(picture, unit) else replace(colour, grey=True),
            pts=pts,
            source_pts=unit.pts,
            time_base=unit.time_base,
            received_ns=unit.received_ns,
            capture_ns=unit.capture_ns,
            capture_clock=unit.capture_clock,
            state=state,
            source_sha256=unit.sha256,
            aspect=1 / aspect if swaps_sides(orientation) else aspect,
            orientation=orientation,
            held_ns=self._held_ns(unit),
        )

    def _aspect(self, picture: VideoFrame) -> Fraction:
        """Pixel aspect ratio (width over height): the container's, unless the codec's has changed since the start."""
        stated = self._context.sample_aspect_ratio
        if not stated or stated == self._first_aspect:
            stated = self._video.sample_aspect_ratio  # the container's, or else the codec's first one
        aspect = stated or Fraction(1)
        return aspect / 2 if picture.interlaced_frame else aspect  # a field coded alone: all others are deinterlaced

    def _see_orientation(self, picture: VideoFrame, unit: AccessUnit, state: State) -> None:
        """Only clean pictures are trusted: remains of a damaged one may look like an orientation message."""
        matrix = display_matrix(picture)
        if state != "clean":
            false = bool(matrix) and orientation_of(matrix) != self.orientation
            self._spoilt |= false and self._context.name == "hevc" and not is_on_gpu(self._context)
        elif matrix:
            self.orientation = orientation_of(matrix)
        elif unit.key:  # a codec may signal it in key frames only
            self.orientation = self._usual

    def _is_grey(self, picture: VideoFrame, unit: AccessUnit) -> bool:
        """Whether there has been no colour since the last key frame, as from an infrared camera."""
        self._grey = (unit.key or self._grey) and is_neutral(picture)
        return self._grey
