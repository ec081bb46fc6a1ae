"""Pictures as they come out of a feed's decoder: after libx264 or libx265 and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import av
import numpy as np
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream
from numpy.typing import NDArray

from engines.colour import Colour, to_planes, to_rgb
from engines.data.lol import Picture

CODED_COLOUR = Colour(matrix="bt601", full_range=False)
"""The usual colour of small cameras."""
PIXELS = "yuv420p"
KEY_SECONDS = 2

Codec = Literal["h264", "hevc"]
ENCODERS: dict[Codec, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"preset": "veryfast", "tune": "zerolatency", "sc_threshold": "0"}),
    "hevc": (
        "libx265",
        {
            "preset": "superfast",
            "tune": "zerolatency",
            "x265-params": "log-level=error:pools=none:frame-threads=1:scenecut=0",
        },
    ),
}
"""Names and options: one thread, no delay, key frames at fixed intervals only, nothing printed."""


@dataclass(frozen=True)
class Coded:
    """A decoded picture and its encoded size."""

    y: NDArray[np.uint8]
    """(H, W)."""
    uv: NDArray[np.uint8]
    """(2, H/2, W/2)."""
    octets: int
    """Size of the encoded picture."""

    def rgb(self) -> Picture:
        """(H, W, 3) uint8."""
        return to_rgb(self.y, self.uv, CODED_COLOUR)

    def as_taken(self) -> Picture:
        """(H, W, 3) uint8 as an engine reads it, without interpolation of chroma."""
        return to_rgb(self.y, self.uv, CODED_COLOUR, interpolated=False)


def at_bit_rate(pictures: Iterable[Picture], bit_rate: int, rate: Fraction, codec: Codec = "h264") -> Iterator[Coded]:
    """Each picture of a video as it arrives: `rate` a second, at most `bit_rate` bit/s over half a second."""
    limits = {"maxrate": str(bit_rate), "bufsize": str(bit_rate // 2)}
    return _through(pictures, rate, limits, codec, bit_rate)


def at_rate_factor(picture: Picture, crf: int, codec: Codec = "h264") -> Picture:
    """One picture, encoded as a key frame with this constant rate factor; larger factors damage more."""
    (coded,) = _through([picture], Fraction(25), {"crf": str(crf)}, codec)
    return coded.rgb()


def _through(
    pictures: Iterable[Picture], rate: Fraction, options: dict[str, str], codec: Codec, bit_rate: int | None = None
) -> Iterator[Coded]:
    """Pass (H, W, 3) uint8 RGB pictures with even sides through an encoder and a decoder, one by one, without delay."""
    encoder: VideoCodecContext | None = None
    decoder = av.CodecContext.create(codec, "r")
    assert isinstance(decoder, VideoCodecContext)
    decoder.thread_count = 1
    for number, picture in enumerate(pictures):
        if encoder is None:
            encoder = _encoder(picture, rate, options, codec, bit_rate)
        frame = _frame(picture)
        frame.pts = number
        for packet in encoder.encode(frame):
            yield from _decoded(decoder, packet)
    if encoder is not None:
        for packet in encoder.encode(None):
            yield from _decoded(decoder, packet)


def _decoded(decoder: VideoCodecContext, packet: Packet[VideoStream]) -> Iterator[Coded]:
    for frame in decoder.decode(packet):
        codes = frame.to_ndarray(format=PIXELS).astype(np.uint8, copy=False)  # (1.5 H, W)
        yield Coded(codes[: frame.height], _chroma(codes, frame.height, frame.width), packet.size)


def _chroma(codes: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    return codes[height:].reshape(2, height // 2, width // 2)


def _encoder(
    picture: Picture, rate: Fraction, options: dict[str, str], codec: Codec, bit_rate: int | None
) -> VideoCodecContext:
    name, own = ENCODERS[codec]
    encoder = av.CodecContext.create(name, "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.height, encoder.width = picture.shape[:2]
    encoder.pix_fmt, encoder.framerate, encoder.time_base = PIXELS, rate, 1 / rate
    encoder.gop_size, encoder.max_b_frames, encoder.thread_count = max(1, round(KEY_SECONDS * rate)), 0, 1
    if bit_rate is not None:
        encoder.bit_rate = bit_rate
    encoder.options = own | options
    return encoder


def _frame(picture: Picture) -> av.VideoFrame:
    height, width = picture.shape[:2]
    y, uv = to_planes(picture, CODED_COLOUR)
    codes = np.concatenate((y, uv.reshape(height // 2, width)))
    return av.VideoFrame.from_ndarray(codes, format=PIXELS)
