"""Encodes planar pictures to access units, one out for each one in: no picture waits for the next."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import pairwise
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import msgspec
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange

from engines.colour import Colour, Matrix
from stream.codecs.hardware import NVENC, NVENC_ERRORS, nvenc_options, trouble
from stream.errors import CodecError
from stream.frame import Plane
from stream.settings import EncoderSettings

ENCODERS = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1"}
"""FFmpeg's encoder for each codec of the wire."""

USUAL_RATE = Fraction(25)
"""Frames a second, where the source doesn't say."""

SLOWEST = Fraction(1, 1000)
FASTEST = {"h264": Fraction(1000), "hevc": Fraction(1000), "av1": Fraction(240)}
"""Limits of the frame rate, per second, that an encoder can plan with."""

NEVER = 1 << 30
"""Frames between key frames, for encoders that count them: here time decides instead."""

SVT_SPEEDS = {"ultrafast": 12, "superfast": 11, "veryfast": 10, "faster": 9, "fast": 8, "medium": 7}
"""SVT-AV1 numbers its presets."""
SVT_FASTEST = 100_000_000
"""SVT-AV1's highest bit rate, in bits per second."""
SVT_SMALLEST = 64
"""SVT-AV1's smallest width and height, in pixels."""

X265_UNCOUNTED = 40
"""Bits per picture that x265 leaves out of its bit rate: start codes of four bytes each, more of them in key frames."""

ROW = 9
"""Consecutive pictures that give a rate."""
TICKS_KEPT = 2 * ROW
"""Pictures whose times are remembered."""
CLEARLY, FAR = Fraction(10, 9), Fraction(4, 3)
"""Factors by which a new rate must differ to be adopted: when a key frame is due, and at once."""

COLOUR_CODES: dict[Matrix, tuple[int, int, int]] = {"bt601": (6, 6, 6), "bt709": (1, 1, 1)}
"""Matrix, primaries and transfer as ITU-T H.273 numbers them; 6 is SMPTE 170M, which is BT.601."""


class EncodedPicture(msgspec.Struct, frozen=True):
    """One access unit, ready for the wire."""

    payload: bytes
    """Annex B with parameter sets in every key frame; for AV1 a temporal unit with its sequence header there."""
    key: bool
    """Decoding can begin here."""
    pts: int
    """As given to `encode`, in units of `time_base`."""
    time_base: Fraction
    codec: str
    """`h264`, `hevc` or `av1`."""
    width: int
    height: int


class Encoder:
    """Encodes one feed's pictures, all of one size and colour. A context manager; for one thread at a time.

    Quality is constant up to the settings' bit rate, which no stretch of video exceeds by more than a quarter of a
    second's worth. AV1 may exceed it in its first key frame, and then keeps to it if it leaves at least a tenth of a
    bit per pixel; it may exceed a lower one several times over.

    `aspect` is the pixel aspect ratio (width over height), which H.264 and HEVC signal and AV1 does not. `rate` (frames
    per second) is what the encoder plans with. If pictures come at another rate, it adapts at the next key frame, or
    after a few pictures if they come far faster, which may exceed the bit rate for a moment.

    If the settings ask for a GPU that cannot encode, the CPU does. Raises `CodecError`.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        width: int,
        height: int,
        colour: Colour,
        time_base: Fraction,
        rate: Fraction | None = None,
        aspect: Fraction = Fraction(1),
    ) -> None:
        if width % 2 or height % 2:
            raise CodecError(f"a picture of {width}x{height} cannot be encoded: both must be even")
        if settings.codec == "av1" and min(width, height) < SVT_SMALLEST:
            raise CodecError(f"libsvtav1 cannot encode {width}x{height}: both must be {SVT_SMALLEST} or more")
        self.codec = settings.codec
        self.width, self.height, self.time_base = width, height, time_base
        self.name = ""
        """FFmpeg's name of the encoder in use."""
        self.trouble: str | None = None
        """Human-readable reason why the GPU does not encode although the settings say `nvenc`."""
        self._settings, self._colour, self._aspect = settings, colour, aspect
        self._try_gpu = settings.hardware != "none"
        self._clock = Clock(time_base, rate or USUAL_RATE, settings.key_interval)
        self._times: dict[int | None, int] = {}
        """Original times by the encoder's own, of the pictures inside it."""
        self._context: av.VideoCodecContext | None = self._open()

    @property
    def on_gpu(self) -> bool:
        """Whether the GPU encodes."""
        return self.name in NVENC.values()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the encoder; what was not flushed is lost."""
        context, self._context = self._context, None
        if context is not None:
            with suppress(av.FFmpegError):
                context.encode(None)  # SVT-AV1 complains unless it is flushed

    def encode(self, y: Plane, u: Plane, v: Plane, pts: int, key: bool = False) -> list[EncodedPicture]:
        """The access units that are ready, normally the one of this picture.

        `y` is (H, W) uint8, `u` and `v` are (H/2, W/2) uint8; they are read in place if their lines are contiguous, and
        may change as soon as this returns. `key` asks for a key frame. A `pts` that does not increase also begins one.
        """
        picture = as_frame(y, u, v, self.width, self.height)
        tick, due = self._clock.tick(pts, key)
        ready = self._plan_anew() if due and self._clock.plan() else []
        picture.pts, picture.time_base = tick, self.time_base
        picture.pict_type = PictureType.I if due else PictureType.NONE
        self._times[tick] = pts
        return ready + self._encode(picture)

    def flush(self) -> list[EncodedPicture]:
        """The access units that were still inside; afterwards the encoder takes no more pictures."""
        pictures = self._encode(None)
        self._context = None
        return pictures

    def _plan_anew(self) -> list[EncodedPicture]:
        """Replace the encoder, since none can change its rate; returns the access units that were still inside."""
        ready = self.flush()
        self._context = self._open()
        return ready

    def _encode(self, picture: av.VideoFrame | None) -> list[EncodedPicture]:
        if self._context is None:
            raise CodecError(f"the {self.codec} encoder is closed")
        try:
            packets = self._context.encode(picture)
        except av.FFmpegError as error:
            raise CodecError(f"the {self.codec} encoder failed: {error.strerror}") from error
        return [
            EncodedPicture(
                payload=bytes(packet),
                key=packet.is_keyframe,
                pts=self._times.pop(packet.pts),
                time_base=self.time_base,
                codec=self.codec,
                width=self.width,
                height=self.height,
            )
            for packet in packets
        ]

    def _open(self) -> av.VideoCodecContext:
        """A GPU encoder if it is wanted and works, else a CPU encoder."""
        codec = self._settings.codec
        if self._try_gpu:
            try:
                return self._opened(NVENC[codec], nvenc_options(self._settings))
            except NVENC_ERRORS as error:
                self._try_gpu = False
                self.trouble = trouble(NVENC[codec], error) if self._settings.hardware == "nvenc" else None
        os.environ.setdefault("SVT_LOG", "1")  # errors only; its banner would fill the log
        try:
            return self._opened(ENCODERS[codec], encoder_options(self._settings, self._clock.rate))
        except av.FFmpegError as error:
            raise CodecError(f"{ENCODERS[codec]} cannot encode {self.width}x{self.height}: {error.strerror}") from error

    def _opened(self, name: str, options: dict[str, str]) -> av.VideoCodecContext:
        """FFmpeg's encoder of this name; raises `av.FFmpegError`, and `NVENC_ERRORS` for one on the GPU."""
        colour = self._colour
        context = av.CodecContext.create(name, "w")
        assert isinstance(context, av.VideoCodecContext)
        context.width, context.height, context.pix_fmt = self.width, self.height, "yuv420p"
        rate = min(FASTEST[self.codec], max(SLOWEST, self._clock.rate)).limit_denominator(1001)  # fits FFmpeg's 32 bits
        context.time_base, context.framerate = self.time_base, rate
        context.thread_count = self._settings.threads
        context.gop_size, context.max_b_frames = NEVER, 0
        context.colorspace, context.color_primaries, context.color_trc = COLOUR_CODES[colour.matrix]
        context.color_range = ColorRange.JPEG if colour.full_range else ColorRange.MPEG
        context.sample_aspect_ratio = self._aspect
        context.options = options
        with usual_priority():
            context.open()
        self.name = name
        return context


class Clock:
    """The encoder's own strictly increasing time, the rate that it plans with, and when a key frame is due. Pure."""

    def __init__(self, time_base: Fraction, rate: Fraction, key_interval: float) -> None:
        self._base = time_base
        self._plan_with(rate)
        self._interval = round(Fraction(key_interval) / time_base)
        self._ticks: deque[int] = deque(maxlen=TICKS_KEPT)
        self._shift = 0
        self._last: int | None = None
        self._key_at = 0

    def tick(self, pts: int, key: bool) -> tuple[int, bool]:
        """A picture's time on this clock, and whether it is to be a key frame."""
        if self._last is None or pts + self._shift <= self._last:
            step = max(1, round(1 / (self.rate * self._base)))
            self._shift = (0 if self._last is None else self._last + step) - pts
            key = True
        self._last = pts + self._shift
        self._ticks.append(self._last)
        if key or self._last - self._key_at >= self._interval or self._rush():
            self._key_at, key = self._last, True
        return self._last, key

    def plan(self) -> bool:
        """Adopt the rate at which pictures come; True if it clearly differs from the one before.

        If pictures come unevenly, the densest run counts: too high a rate costs quality, too low a rate bandwidth.
        """
        ticks = list(self._ticks)
        rows = [last - first for first, last in zip(ticks, ticks[ROW:], strict=False)]
        if not rows:
            return False
        rate = self._rush() or ROW / (min(rows) * self._base)
        if 1 / CLEARLY < rate / self.rate < CLEARLY:
            return False
        self._plan_with(rate)
        return True

    def _plan_with(self, rate: Fraction) -> None:
        self.rate = rate
        """Frames a second."""
        self._calm = ceil(ROW / (rate * FAR * self._base))
        """Ticks that `ROW` pictures take at least, unless they come far faster."""

    def _rush(self) -> Fraction | None:
        """The rate of the last few pictures if they came far faster than planned, too fast for the bit rate."""
        if len(self._ticks) <= ROW or self._ticks[-1] - self._ticks[-ROW - 1] >= self._calm:
            return None
        ticks = list(self._ticks)[-ROW - 1 :]
        steps = sorted(later - earlier for earlier, later in pairwise(ticks))
        mean, most = (1 / (step * self._base) for step in (Fraction(sum(steps), ROW), steps[ROW * 3 // 4]))
        return min(most, 2 * mean) if min(most, mean) > self.rate * FAR else None  # a burst alone is no rate


def encoder_options(settings: EncoderSettings, rate: Fraction) -> dict[str, str]:
    """FFmpeg's options for an encoder that holds back no picture and caps its bit rate, at `rate` frames a second."""
    bit_rate = settings.bit_rate
    own = {"preset": settings.preset, "tune": "zerolatency", "forced-idr": "1"}
    match settings.codec:
        case "h264":
            own |= {"crf": "23", "sc_threshold": "0"}
        case "hevc":
            bit_rate -= min(bit_rate // 2, round(X265_UNCOUNTED * rate))
            pools = "none" if settings.threads == 1 else settings.threads
            params = f"keyint=-1:scenecut=0:info=0:frame-threads=1:pools={pools}:log-level=error"
            own |= {"crf": "25", "x265-params": params}
        case "av1":
            bit_rate = min(bit_rate, SVT_FASTEST)
            delay = "keyint=-1:scd=0:pred-struct=1:rtc=1:lookahead=0"
            buffer = "buf-sz=250:buf-initial-sz=125:buf-optimal-sz=150"  # milliseconds at the bit rate
            own = {
                "preset": str(SVT_SPEEDS[settings.preset]),
                "b": str(bit_rate),
                "svtav1-params": f"{delay}:{buffer}:lp={min(settings.threads, 6)}",
            }
    return own | {"maxrate": str(bit_rate), "bufsize": str(settings.bit_rate // 4)}


@contextmanager
def usual_priority() -> Iterator[None]:
    """On exit, take real-time priority from all threads of this process, unless the calling thread had it before.

    Run by root, SVT-AV1 gives the thread that opens it the highest real-time priority, which all threads and processes
    that it starts later inherit: they can starve the whole machine, up to a standstill.
    """
    before = os.sched_getscheduler(0)
    try:
        yield
    finally:
        if before == os.SCHED_OTHER and os.sched_getscheduler(0) == os.SCHED_FIFO:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            for thread in Path("/proc/self/task").iterdir():
                with suppress(OSError):  # ended meanwhile
                    if os.sched_getscheduler(int(thread.name)) == os.SCHED_FIFO:
                        os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))


def as_frame(y: Plane, u: Plane, v: Plane, width: int, height: int) -> av.VideoFrame:
    """A `yuv420p` frame over the memory of these planes, which must stay alive and unchanged as long as it does.

    Raises `ValueError` for planes of another size.
    """
    return av.VideoFrame.from_dlpack(tuple(map(importable, (y, u, v))), format="yuv420p", width=width, height=height)


def importable(plane: Plane) -> Plane:
    """The plane itself if FFmpeg can read it in place (contiguous lines, writeable memory), else a copy."""
    return plane if plane.strides[1] == 1 and plane.flags.writeable else np.array(plane)
