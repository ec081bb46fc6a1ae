"""A night camera: a clip by day, as a small sensor sees it in the dark, encoded at a low bit rate, sent in real time.

clip ─► frames at the camera's rate ─► half the size ─► darken ─► encode ─► MPEG-TS ─► datagrams
                                                                   └──► RTP ─────► whoever asks by RTSP
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, TypeVar, cast, get_args

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from engines.data.darken import Night, darken
from stream.errors import CodecError, SourceUnsupported
from stream.simulator.datagrams import Datagrams, udp_address
from stream.simulator.rtsp_camera import RtspCamera, rtsp_address
from stream.sources.segment import video_stream

Picture = NDArray[np.uint8]
Codec = Literal["h264", "hevc", "mpeg4"]
Thing = TypeVar("Thing")

KEY_SECONDS = 2
"""Between two key frames."""
SMALLEST, LARGEST = 16, 4096
"""Sides of a sent picture, in pixels."""
LOWEST_BIT_RATE = 10_000
"""Bit/s."""
LONGEST = 1_000_000_000
"""Seconds of video, if they are limited."""
LARGEST_WAIT = 0.1
"""Seconds that a camera sleeps before it checks whether it was stopped."""

ENCODERS: dict[Codec, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"preset": "veryfast", "tune": "zerolatency", "sc_threshold": "0"}),
    "hevc": (
        "libx265",
        {"preset": "ultrafast", "tune": "zerolatency", "x265-params": "pools=none:scenecut=0:log-level=none"},
    ),
    "mpeg4": ("mpeg4", {"sc_threshold": "1000000000"}),
}
"""FFmpeg's name and options; key frames come at fixed intervals only, as from a simple camera."""
MPEG4_TICKS = 65_535
"""The most ticks per second that MPEG-4 can count time in."""
LARGEST_BUFFER = 2**31 - 1
"""Bits of an encoder's rate control buffer; more than any picture has."""


@dataclass
class Sent:
    """What a camera has done so far."""

    pictures: int = 0
    seconds: float = 0.0
    """Of video."""
    encoded: int = 0
    """Bytes that the encoder made."""
    datagrams: int = 0
    """Sent or lost; of an RTSP camera, RTP packets while somebody watched."""
    lost: int = 0
    """Those of them that the simulated link lost."""

    @property
    def bit_rate(self) -> float:
        """Of the encoded video, in bit/s."""
        return 8 * self.encoded / self.seconds if self.seconds else 0.0


@dataclass
class NightCamera:
    """A camera that `run` plays in the caller's thread, until the clip is over or any thread calls `stop`.

    Wrong values raise `ValueError` on construction, before anything is opened.
    """

    clip: Path
    """A video by day."""
    url: str
    """`udp://HOST:PORT`, unicast or multicast, to send to; or `rtsp://HOST:PORT/PATH`, to serve at."""
    night: Night = field(default_factory=Night)
    size: tuple[int, int] | None = None
    """Width and height of the sent pictures, even numbers; None: half of the clip's."""
    rate: Fraction | None = None
    """Pictures per second; None: the clip's."""
    bit_rate: int = 300_000
    """Of the encoded video, in bit/s; MPEG-TS adds about a tenth, RTP less."""
    codec: Codec = "h264"
    loop: bool = False
    """Begin the clip again when it is over."""
    seconds: float | None = None
    """The most video to send, in seconds; None: no limit."""
    loss: float = 0.0
    """Share of the datagrams that are lost, 0 to 1."""
    seed: int = 0
    """Of the noise and of the loss: the same seed sends the same bytes."""
    sent: Sent = field(default_factory=Sent, init=False)
    _stopped: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        host, *_ = rtsp_address(self.url) if is_rtsp(self.url) else udp_address(self.url)
        try:
            host.encode("idna")  # as a lookup does
        except UnicodeError:
            raise ValueError(f"url {self.url!r}; must have a host whose parts have 1 to 63 letters") from None
        if self.codec not in ENCODERS:
            raise ValueError(f"codec {self.codec!r}; must be one of {', '.join(get_args(Codec))}")
        if self.size is not None and any(not SMALLEST <= side <= LARGEST or side % 2 for side in self.size):
            allowed = f"both sides must be even, from {SMALLEST} to {LARGEST}"
            raise ValueError(f"size {self.size[0]}x{self.size[1]}; {allowed}")
        if self.rate is not None and not 0 < self.rate <= 240:
            raise ValueError(f"rate {self.rate}; must be above 0, at most 240 pictures a second")
        if self.bit_rate < LOWEST_BIT_RATE:
            raise ValueError(f"bit rate {self.bit_rate}; must be at least {LOWEST_BIT_RATE} bit/s")
        if self.seconds is not None and not 0 < self.seconds <= LONGEST:
            raise ValueError(f"seconds {self.seconds}; must be above 0, at most {LONGEST}")
        if not 0 <= self.loss <= 1:
            raise ValueError(f"loss {self.loss}; must be a share from 0 to 1")

    def stop(self) -> None:
        """Make `run` end within `LARGEST_WAIT` plus the work for one picture; safe in a signal handler."""
        self._stopped = True

    def run(self, report: Callable[[Sent], None] | None = None) -> Sent:
        """Send all pictures and return what was sent; `report` is called after each one.

        Raises `SourceUnsupported` for a clip that cannot be decoded, `CodecError` for an encoder that fails or is
        missing, and `SourceLost` if the network refuses.
        """
        with Clip(self.clip) as clip, self._link(rate := rate_of(self.codec, self.rate or clip.rate)) as link:
            size = self.size or clip.half_size()
            frames = at_rate(clip.frames(self.loop), clip.rate, rate)
            pictures = simulate_night((shrunk(frame, size) for frame in frames), self.night, self.seed)
            count = None if self.seconds is None else max(1, round(self.seconds * rate))
            with Transport(link, size, rate, self.codec, self.bit_rate) as transport:
                for sent in self._send(islice(pictures, count), rate, transport):
                    if report is not None:
                        report(sent)
        return self.sent

    def _link(self, rate: Fraction) -> Datagrams | RtspCamera:
        if is_rtsp(self.url):
            return RtspCamera(self.url, self.codec, rate, self.loss, self.seed)
        return Datagrams(self.url, self.loss, self.seed)

    def _send(self, pictures: Iterable[Picture], rate: Fraction, transport: Transport) -> Iterator[Sent]:
        """Send each picture when its time has come; yields what was sent so far after each one."""
        start: float | None = None
        for number, picture in enumerate(pictures):
            start = time.monotonic() if start is None else start
            if not self._wait_until(start + float(number / rate)):
                return
            self.sent.encoded += transport.send(picture, number)
            self.sent.pictures, self.sent.seconds = number + 1, float((number + 1) / rate)
            self.sent.datagrams, self.sent.lost = transport.link.count, transport.link.lost
            yield self.sent

    def _wait_until(self, due: float) -> bool:
        """True when the monotonic clock shows `due`, False when stopped before."""
        while not self._stopped and (left := due - time.monotonic()) > 0:
            time.sleep(min(left, LARGEST_WAIT))
        return not self._stopped


def is_rtsp(url: str) -> bool:
    """Whether a camera at this address serves its pictures on request, rather than sending them."""
    return url.startswith("rtsp://")


def rate_of(codec: Codec, wanted: Fraction) -> Fraction:
    """The rate nearest to the wanted one that a codec can express."""
    return 1 / (1 / wanted).limit_denominator(MPEG4_TICKS) if codec == "mpeg4" else wanted


def simulate_night(pictures: Iterable[Picture], night: Night, seed: int) -> Iterator[Picture]:
    """Each picture, (H, W, 3) uint8 RGB by day, as the sensor sees it by night; the same for the same seed."""
    random = np.random.Generator(np.random.SFC64(seed))
    for picture in pictures:
        yield darken(picture, night, random)


def at_rate(things: Iterable[Thing], rate: Fraction, wanted: Fraction) -> Iterator[Thing]:
    """Resample things that come `rate` times a second to `wanted` times: some come twice, or some never."""
    seen = 0
    for number, thing in enumerate(things, 1):
        while seen * rate < number * wanted:
            yield thing
            seen += 1


def shrunk(frame: av.VideoFrame, size: tuple[int, int]) -> Picture:
    """The frame at this width and height, averaged over areas, as (H, W, 3) uint8 RGB."""
    small = frame.reformat(*size, format="rgb24", interpolation="AREA")
    return small.to_ndarray().astype(np.uint8, copy=False)


class Clip:
    """A video file to take frames from; raises `SourceUnsupported` if it has none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open()
        self.rate = Fraction(self._stream.average_rate or 25)
        """Pictures per second."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    def _open(self) -> None:
        try:
            self._container = av.open(self._path.absolute(), metadata_errors="replace")
        except av.FFmpegError as error:
            raise SourceUnsupported(f"{self._path}: {error.strerror}") from error
        try:
            self._stream = video_stream(str(self._path), self._container)
        except SourceUnsupported:
            self._container.close()
            raise

    def _begin_again(self) -> None:
        try:
            self._container.seek(0)
        except av.FFmpegError:  # a raw .h264 has no times to seek by
            self._container.close()
            self._open()

    def half_size(self) -> tuple[int, int]:
        """Half of its width and height, rounded down to even numbers."""
        width, height = self._stream.width, self._stream.height
        if min(width, height) < 2 * SMALLEST:
            raise SourceUnsupported(f"{self._path}: {width}x{height} is too small to be halved")
        return width // 4 * 2, height // 4 * 2

    def frames(self, loop: bool) -> Iterator[av.VideoFrame]:
        """Every frame in order, once or for ever."""
        while True:
            frame = None
            try:
                for frame in self._container.decode(self._stream):
                    yield frame
                if loop:
                    self._begin_again()
            except av.FFmpegError as error:
                raise SourceUnsupported(f"{self._path}: {error.strerror}") from error
            if frame is None:
                raise SourceUnsupported(f"{self._path}: no picture in it can be decoded")
            if not loop:
                return


class Link(Protocol):
    """A file for a muxer to write packets into, which carries them away."""

    count: int
    """Packets written."""
    lost: int
    """Those of them that were not sent."""

    @property
    def muxer(self) -> str:
        """FFmpeg's name of the muxer."""

    @property
    def options(self) -> Mapping[str, str]:
        """Options of the muxer."""

    @property
    def largest(self) -> int:
        """The most bytes in a packet."""

    def write(self, data: bytes) -> int:
        """Send one packet, or lose it; returns the number of bytes either way."""


class Transport:
    """An encoder and a muxer that write each picture into a link at once."""

    def __init__(self, link: Link, size: tuple[int, int], rate: Fraction, codec: Codec, bit_rate: int) -> None:
        self.link = link
        name, options = ENCODERS[codec]
        bit_rate = min(bit_rate, int(LARGEST_BUFFER * rate))
        buffer = max(bit_rate // 2, ceil(bit_rate / rate))  # one picture at least
        limits = {"maxrate": str(bit_rate), "bufsize": str(buffer)}
        self._out = av.open(
            link, "w", format=link.muxer, buffer_size=link.largest, options={"flush_packets": "1"} | dict(link.options)
        )
        try:
            stream = self._out.add_stream(name, rate=rate, options=options | limits)
        except ValueError as error:
            raise CodecError(f"this FFmpeg has no encoder {name} for {codec}") from error
        self._stream = cast("av.VideoStream", stream)
        self._stream.width, self._stream.height, self._stream.pix_fmt = *size, "yuv420p"
        context = self._stream.codec_context
        context.time_base, context.gop_size = 1 / rate, max(1, round(KEY_SECONDS * rate))
        context.bit_rate, context.max_b_frames, context.thread_count = bit_rate, 0, 1
        context.colorspace, context.color_range = Colorspace.ITU601, ColorRange.MPEG

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._out.close()
        except av.FFmpegError:
            if error is None:
                raise

    def send(self, picture: Picture, number: int) -> int:
        """Encode and send an (H, W, 3) uint8 RGB picture; returns the number of bytes that the encoder made."""
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG
        )
        frame.pts, frame.time_base = number, self._stream.codec_context.time_base
        try:
            packets = self._stream.encode(frame)
        except av.FFmpegError as error:
            raise CodecError(f"{self._stream.codec_context.name}: {error.strerror}") from error
        self._out.mux(packets)
        return sum(packet.size for packet in packets)
