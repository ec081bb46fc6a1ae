"""Decodes messages to pictures for display, in RGB by the matrix and range that the stream names."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.codec.context import Flags
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from stream.codecs.orientation import UPRIGHT, upright
from stream.codecs.plain import FATAL, colour_of
from stream.errors import CodecError
from stream.wire.messages import Message

RgbPicture = NDArray[np.uint8]
"""(H, W, 3), 0..255."""

DECODERS = {"av1": "libdav1d"}
"""FFmpeg's decoder, if its name is not the codec's."""

AT_ONCE = ("h264", "hevc", "av1")
"""Codecs whose low-delay decoders still give pictures in order; MPEG-2's would not."""

WIDEST = Fraction(4)
"""Largest credible pixel aspect ratio; those of cameras are 2 at most."""

EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
"""Without the last two, libswscale is quicker and off by three code values."""

WIDENED = np.clip(np.rint((np.arange(256) - 16) * (255 / 219)), 0, 255).astype(np.uint8)
"""Maps limited-range luma to full range: libswscale takes grey pictures for full range whatever they say."""


class PictureDecoder:
    """Decodes the pictures of one topic as they come; for one thread."""

    def __init__(self) -> None:
        self.undecodable = 0
        """Access units that gave an error."""
        self._context: av.VideoCodecContext | None = None
        self._opened_for: tuple[str, str | None] | None = None
        self._expected = 0
        """`seq` of the next message if none is missing."""
        self._orientation = UPRIGHT
        self._reformatter = VideoReformatter()

    def decode(self, message: Message) -> list[av.VideoFrame]:
        """The pictures that are ready; a new relay or codec begins a new decoder.

        Raises `CodecError` for a codec that cannot be decoded here.
        """
        header = message.header
        if self._context is None or self._opened_for != (header.relay, header.codec):
            self._context = open_decoder(header.codec or "unknown")
            self._opened_for = (header.relay, header.codec)
        elif header.key and header.seq > self._expected:  # what follows may refer to pictures before it
            self._context.flush_buffers()
        self._expected = header.seq + 1
        if not message.payload:  # FFmpeg would take it as the end of the stream
            self.undecodable += 1
            return []
        self._orientation = header.orientation
        packet = av.Packet(message.payload)
        packet.pts = header.pts
        packet.dts = header.pts if header.dts is None else header.dts
        try:
            return self._context.decode(packet)
        except av.FFmpegError:
            self.undecodable += 1
            return []

    def rgb(self, picture: av.VideoFrame) -> RgbPicture:
        """A decoded picture in RGB by the stream's matrix and range, upright and at its display width.

        Raises `CodecError` for a format at which libswscale would abort the process.
        """
        if picture.format.name in FATAL:
            raise CodecError(f"pictures of {picture.format.name} cannot be shown")
        colour = colour_of(picture)
        aspect = (self._context and self._context.sample_aspect_ratio) or Fraction(1)
        converted = self._reformatter.reformat(
            picture,
            width=round(picture.width * min(aspect, WIDEST)),
            format="rgb24",
            src_colorspace=Colorspace.ITU709 if colour.matrix == "bt709" else Colorspace.ITU601,
            src_color_range=ColorRange.JPEG if colour.full_range else ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,
            interpolation=EXACT,
            threads=1,
        )
        rgb = converted.to_ndarray().astype(np.uint8, copy=False)
        rgb = WIDENED[rgb] if colour.grey and not colour.full_range else rgb
        return np.ascontiguousarray(upright(rgb, self._orientation))


def open_decoder(codec: str) -> av.VideoCodecContext:
    """A decoder that gives each picture as soon as its order allows. Raises `CodecError`."""
    try:
        context = av.CodecContext.create(DECODERS.get(codec, codec), "r")
    except ValueError:
        raise CodecError(f"pictures of codec {codec!r} cannot be decoded here") from None
    if not isinstance(context, av.VideoCodecContext):
        raise CodecError(f"{codec!r} is not a video codec")
    if codec in AT_ONCE:
        context.flags |= Flags.low_delay
    return context
