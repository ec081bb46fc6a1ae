"""Clips made on the spot, whose pictures say their own number and colours, and a sender that streams them over UDP.

A picture has its number as a 4 x 4 field of black and white squares in the top left corner, four patches of known
code values along the bottom (see `PATCHES`), a bar that moves to the right above them, and elsewhere grain that moves
too, so that every picture has its bytes.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Collection, Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream
from numpy.typing import NDArray

from stream.encode import usual_priority
from tests.waiting import CATCH_UP

Plane = NDArray[np.uint8]

REAL_CLIPS = Path(__file__).parents[2] / "shared" / "data" / "clips"
"""Recordings of real cameras, where there are any."""
SQUARES = 4
"""On each side of the field that holds the number: 16 bits."""
PATCHES = ((81, 90, 240), (145, 54, 34), (41, 240, 110), (180, 128, 128))
"""Code values (Y, U, V) of the four patches, whatever matrix and range the clip has."""
DATAGRAM_BYTES = 7 * 188
LISTENER_SECONDS = 5.0
"""The longest that a sender waits for somebody who listens."""
KLV_KEY = bytes.fromhex("060e2b34020b01010e01030101000000")
"""Universal key of MISB ST 0601."""
MATRIX_CODES = {None: 2, "bt709": 1, "bt601": 6, "bt2020": 9}
"""ITU-T H.273; 2: it does not say."""
QUIET: dict[str, dict[str, str]] = {"libx265": {"x265-params": "log-level=none:pools=1:frame-threads=1"}}
FAST: dict[str, dict[str, str]] = {
    "libx264": {"preset": "superfast", "tune": "zerolatency"},
    "libx265": {"preset": "ultrafast", "tune": "zerolatency"},
    "libsvtav1": {"preset": "12"},
}


def picture(number: int, width: int, height: int) -> tuple[Plane, Plane, Plane]:
    """Picture `number` as Y, U, V, each (height, width) uint8."""
    grain = np.random.default_rng(7).integers(60, 140, (height, width // 2 + 64), dtype=np.uint8)
    shift = number * 2 % 64
    y = np.repeat(grain[:, shift : shift + width // 2 + 1], 2, axis=1)[:, :width].copy()
    u, v = np.full((2, height, width), 128, np.uint8)
    side = square_side(width, height)
    for bit in range(SQUARES**2):
        top, left = bit // SQUARES * side, bit % SQUARES * side
        y[top : top + side, left : left + side] = 220 if number >> bit & 1 else 30
    for rows, columns, codes in zip(*patch_slices(width, height), PATCHES, strict=True):
        for plane, code in zip((y, u, v), codes, strict=True):
            plane[rows, columns] = code
    draw_bar(y, number)
    return y, u, v


def draw_bar(y: Plane, time: float) -> None:
    """Draw the bar where it is after `time` pictures, into the lines given."""
    height, width = y.shape
    lines = y[height * 9 // 16 : height * 3 // 4]
    lines[:] = 60
    left = int(time * width / 16) % width
    lines[:, left : left + width // 8] = 200


def square_side(width: int, height: int) -> int:
    """Of the squares that hold the number, in pixels."""
    return min(width, height) // 2 // SQUARES


def patch_slices(width: int, height: int) -> tuple[list[slice], list[slice]]:
    """Rows and columns of the four patches."""
    return [slice(height * 3 // 4, height)] * 4, [slice(width * i // 4, width * (i + 1) // 4) for i in range(4)]


def read_number(y: Plane) -> int:
    """The number of the picture whose luma this is, (H, W) uint8."""
    side = square_side(y.shape[1], y.shape[0])
    middle = side // 4
    field = y[: side * SQUARES, : side * SQUARES].reshape(SQUARES, side, SQUARES, side)
    bright = field[:, middle : side - middle, :, middle : side - middle].mean(axis=(1, 3)).ravel() > 125
    return int(sum(1 << bit for bit in range(SQUARES**2) if bright[bit]))


def read_patches(y: Plane, u: Plane, v: Plane) -> NDArray[np.float64]:
    """(4, 3): mean code values (Y, U, V) in the middle of each patch of a 4:2:0 picture."""
    codes = []
    for rows, columns in zip(*patch_slices(y.shape[1], y.shape[0]), strict=True):
        luma = y[inner(rows), inner(columns)].mean()
        codes.append((luma, *(plane[half(inner(rows)), half(inner(columns))].mean() for plane in (u, v))))
    return np.array(codes)


def inner(part: slice) -> slice:
    """The middle half of a slice."""
    quarter = (part.stop - part.start) // 4
    return slice(part.start + quarter, part.stop - quarter)


def half(part: slice) -> slice:
    """The same part of a plane of half the size."""
    return slice(part.start // 2, part.stop // 2)


def combing(y: Plane) -> float:
    """How much the bar's neighbouring lines differ, in code values: high where two fields are woven together."""
    height = y.shape[0]
    lines = y[height * 9 // 16 : height * 3 // 4].astype(np.float64)
    return float(np.abs(lines[1:] - lines[:-1]).mean())


def make_clip(
    path: Path,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (160, 120),
    rate: int = 25,
    pictures: int = 50,
    key_interval: int = 25,
    bit_rate: int = 400_000,
    matrix: Literal["bt601", "bt709", "bt2020"] | None = None,
    full_range: bool = False,
    interlaced: bool = False,
    b_frames: int = 0,
    klv: bool = False,
    grey: Collection[int] = (),
    first_pid: int | None = None,
    creation_time: str | None = None,
    aspect: Fraction = Fraction(1),
    options: dict[str, str] | None = None,
) -> Path:
    """A clip at `path`, whose suffix says the container; the path itself is returned.

    Pictures are numbered from 0 and have pts `number / rate`. `klv` adds a data stream with one packet for each
    picture, `klv_packet(number)`. Pictures in `grey` have neutral chroma. `aspect` is that of a pixel. `options` go to
    the encoder, over those that make it fast.
    """
    muxing = {"mpegts_start_pid": str(first_pid)} if first_pid else {}
    with usual_priority(), av.open(str(path), "w", options=muxing) as container:
        if creation_time:
            container.metadata["creation_time"] = creation_time
        stream = add_video(container, codec, rate, options or {}, b_frames)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, pix_fmt, bit_rate
        stream.codec_context.gop_size = key_interval
        stream.codec_context.sample_aspect_ratio = aspect
        stream.codec_context.colorspace = MATRIX_CODES[matrix]
        stream.codec_context.color_range = ColorRange.JPEG if full_range else ColorRange.MPEG
        if interlaced:
            interlace(stream)
        data = container.add_data_stream("klv") if klv else None
        for number in range(pictures):
            if data is not None:
                packet = av.Packet(klv_packet(number))
                packet.stream, packet.pts, packet.dts, packet.time_base = data, number, number, Fraction(1, rate)
                container.mux(packet)
            made = frame(number, stream, matrix, full_range, interlaced, number in grey)
            container.mux(stream.encode(made))
        container.mux(stream.encode(None))
    return path


def add_video(container: OutputContainer, codec: str, rate: int, options: dict[str, str], b_frames: int) -> VideoStream:
    """A video stream of one thread whose encoder is fast, quiet and, without B-frames, does not look ahead."""
    fast = dict(FAST.get(codec, {}))
    if b_frames:
        fast.pop("tune", None)
    stream: Any = container.add_stream(codec, rate=rate, options=fast | QUIET.get(codec, {}) | options)
    stream.codec_context.thread_count = 1
    stream.codec_context.max_b_frames = b_frames
    assert isinstance(stream, VideoStream)
    return stream


def interlace(stream: VideoStream) -> None:
    """Make the encoder code two fields, top field first."""
    flags = av.codec.context.Flags
    stream.codec_context.flags |= int(flags.interlaced_dct) | int(flags.interlaced_me)


def frame(
    number: int, stream: VideoStream, matrix: str | None, full_range: bool, interlaced: bool, neutral: bool
) -> VideoFrame:
    """Picture `number` for the encoder of `stream`; interlaced: its odd lines are half a picture later."""
    planes = np.stack(picture(number, stream.width, stream.height))
    if interlaced:
        draw_bar(planes[0, 1::2], number + 0.5)
    if neutral:
        planes[1:] = 128
    grey = stream.pix_fmt is not None and stream.pix_fmt.startswith("gray")  # FFmpeg takes grey as full range
    made = VideoFrame.from_ndarray(planes[0], "gray") if grey else VideoFrame.from_ndarray(planes, "yuv444p")
    made.colorspace = MATRIX_CODES[matrix]
    code_range = ColorRange.JPEG if full_range else ColorRange.MPEG
    if stream.pix_fmt != made.format.name:
        made = made.reformat(format=stream.pix_fmt, src_color_range=code_range, dst_color_range=code_range)
    made.color_range = code_range
    made.pts, made.time_base = number, 1 / Fraction(stream.codec_context.framerate)
    return made


def klv_packet(number: int) -> bytes:
    """A well-formed KLV packet that holds `number`."""
    value = number.to_bytes(8, "big")
    return KLV_KEY + bytes([len(value)]) + value


def joined(path: Path, *clips: Path) -> Path:
    """One clip at `path` of the access units of several: times go on, and so do the counters of a transport stream."""
    with av.open(str(path), "w") as container:
        into: VideoStream | None = None
        start = 0
        for clip in clips:
            with av.open(str(clip)) as source:
                video = source.streams.video[0]
                into = into or container.add_stream_from_template(video)
                packets = [packet for packet in source.demux(video) if packet.size]
                shift = start - min(packet.dts or 0 for packet in packets)
                for packet in packets:
                    packet.pts, packet.dts = (packet.pts or 0) + shift, (packet.dts or 0) + shift
                    packet.stream = into
                    container.mux(packet)
                times = sorted(packet.pts or 0 for packet in packets)
                start = 2 * times[-1] - times[-2]
    return path


def turned(clip: Path, path: Path, display_matrix: tuple[int, ...]) -> Path:
    """The clip's video at `path`, whose container says by FFmpeg's nine numbers how it is shown."""
    with av.open(clip) as source, av.open(path, "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        copy.set_display_matrix(display_matrix)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    return path


def datagrams(path: Path) -> list[bytes]:
    """A transport stream, cut as it is sent."""
    data = path.read_bytes()
    return [data[start : start + DATAGRAM_BYTES] for start in range(0, len(data), DATAGRAM_BYTES)]


def free_port(kind: socket.SocketKind = socket.SOCK_DGRAM) -> int:
    """A port of this machine that nobody listens to, of UDP or by another `kind` of TCP."""
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def listeners_at(port: int) -> int:
    """How many sockets of this machine are bound to a UDP port."""
    tables = [Path("/proc/net/udp"), Path("/proc/net/udp6")]
    lines = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    return sum(int(line[1].rpartition(":")[2], 16) == port for line in lines)


class UdpSender:
    """Sends a transport stream to 127.0.0.1 or a multicast group, evenly at `bit_rate`, in a thread of its own.

    A context manager; leaving it stops the thread. A stream that is repeated begins again at its first time stamp.
    """

    def __init__(
        self,
        path: Path,
        port: int,
        *,
        bit_rate: int = 4_000_000,
        host: str = "127.0.0.1",
        start: int = 0,
        lost: Collection[int] = (),
        repeat: bool = False,
        listeners: int = 1,
    ) -> None:
        """Begins with datagram `start`, once there are `listeners` at the port; those in `lost` are not sent."""
        self.sent_ns: list[int] = []
        """When each datagram was sent: UTC, nanoseconds since 1970."""
        self._datagrams = datagrams(path)
        self._order = range(start, len(self._datagrams))
        self._address = (host, port)
        self._bit_rate = bit_rate
        self._lost = lost
        self._repeat = repeat
        self._listeners = listeners
        self._stop = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="udp-sender", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Send nothing more, from now on."""
        self._stop.set()
        self._thread.join()

    def wait(self, timeout: float = 10.0) -> bool:
        """Whether all was sent within `timeout` seconds."""
        return self._done.wait(timeout)

    def _run(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            self._await_listeners()
            due = time.monotonic()
            for index in self._indices():
                if self._stop.wait(max(0.0, due - time.monotonic())):
                    return
                due = max(due, time.monotonic() - CATCH_UP) + len(self._datagrams[index]) * 8 / self._bit_rate
                if index not in self._lost:
                    self.sent_ns.append(time.time_ns())
                    sender.sendto(self._datagrams[index], self._address)
        self._done.set()

    def _await_listeners(self) -> None:
        deadline = time.monotonic() + LISTENER_SECONDS
        while listeners_at(self._address[1]) < self._listeners and time.monotonic() < deadline:
            if self._stop.wait(0.01):
                return

    def _indices(self) -> Iterator[int]:
        yield from self._order
        while self._repeat:
            yield from self._order
