"""What travels between the stages: packets from the source, frames to the engine."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

import av
import msgspec
import numpy as np
from av.packet import Packet
from av.stream import Stream
from numpy.typing import NDArray

from engines.colour import Colour
from stream.codecs.orientation import UPRIGHT, Orientation, swaps_sides, upright

Plane = NDArray[np.uint8]
Planes = tuple[Plane, ...]
CaptureClock = Literal["rtcp", "klv", "recording", "arrival"]
State = Literal["clean", "concealed", "tainted", "stale"]


BYTES_PER_PIXEL = 225
"""Memory of a feed for each pixel of its source's pictures: 210 for decoder, engine, the feed's last picture, slots and
encoder, rounded up from measurements with OpenVINO, and 15 for pictures of a burst that wait."""


def memory_for(width: int, height: int) -> str:
    """In words, the `memory` that a feed needs for pictures of this size."""
    return f'the feed must have memory = "{math.ceil(BYTES_PER_PIXEL * width * height / 1e6)}MB" or more'


def arrival(received_ns: int, capture_ns: int, clock: CaptureClock) -> int:
    """When something arrived, as far as known: over UDP it may have waited in the kernel before it was read."""
    return min(capture_ns, received_ns) if clock == "arrival" else received_ns


class SourcePacket(msgspec.Struct, frozen=True):
    """One packet as it came from the source, untouched."""

    packet: Packet[Stream]
    """The access unit, or the data packet, with its times in `packet.time_base`."""
    kind: Literal["video", "data"]
    received_ns: int
    """UTC, nanoseconds since 1970: when it was read."""
    capture_ns: int
    """UTC, nanoseconds since 1970: when the camera took the picture, as far as `capture_clock` knows."""
    capture_clock: CaptureClock

    @property
    def arrived_ns(self) -> int:
        """See `arrival`; over UDP, when the first byte arrived."""
        return arrival(self.received_ns, self.capture_ns, self.capture_clock)


class AccessUnit(msgspec.Struct, frozen=True, eq=False):
    """What is known about the access unit that a picture came from; FFmpeg carries it from packet to picture.

    It must not refer to the packet, which refers to it.
    """

    number: int
    """Counted in decoding order."""
    pts: int | None
    duration: int
    time_base: Fraction
    key: bool
    received_ns: int
    capture_ns: int
    capture_clock: CaptureClock
    sha256: bytes
    damaged: bool
    """Whether the source reports missing bytes, or FFmpeg mixes in remains of a damaged picture."""
    tainted: bool
    """Whether an earlier access unit since the last key frame, in decoding order, was damaged."""
    announces_refresh: bool = False
    """Whether it starts a gradual refresh of the picture and says when that will be complete."""
    completes_refresh_of: int | None = None
    """Number of the access unit that started the refresh which this one completes."""

    @property
    def arrived_ns(self) -> int:
        """See `SourcePacket`."""
        return arrival(self.received_ns, self.capture_ns, self.capture_clock)


class Frame(msgspec.Struct, frozen=True):
    """A decoded picture, planar 8-bit 4:2:0, with everything that is known about it."""

    picture: av.VideoFrame
    """Of format `yuv420p`, `yuvj420p` or `gray`, oriented as filmed; the planes are views into its memory."""
    colour: Colour
    pts: int
    source_pts: int | None
    """Time stamp from the source; None: it gave none, and `pts` is derived from the pictures before."""
    time_base: Fraction
    received_ns: int
    capture_ns: int
    capture_clock: CaptureClock
    state: State
    source_sha256: bytes
    """SHA-256 (32 bytes) of the access unit that this picture came from."""
    aspect: Fraction = Fraction(1)
    """Pixel aspect ratio (width over height) when upright: 1 unless the source says otherwise, as for 720x576."""
    orientation: Orientation = UPRIGHT
    """How `picture` must be turned and mirrored to be upright; the frame's width, height and planes already are."""
    held_ns: int = 0
    """Unavoidable delay after arrival, in nanoseconds: later pictures had to come to find its end, to reorder it and to
    deinterlace it."""

    def __post_init__(self) -> None:
        if self.picture.format.name not in ("yuv420p", "yuvj420p", "gray"):
            raise ValueError(f"a frame of format {self.picture.format.name}; must be yuv420p, yuvj420p or gray")

    @property
    def stamped(self) -> bool:
        """Whether its source gave it a time stamp."""
        return self.source_pts is not None

    @property
    def arrived_ns(self) -> int:
        """See `SourcePacket`."""
        return arrival(self.received_ns, self.capture_ns, self.capture_clock)

    @property
    def width(self) -> int:
        """Of luma, in pixels."""
        return self.picture.height if swaps_sides(self.orientation) else self.picture.width

    @property
    def height(self) -> int:
        """Of luma, in pixels."""
        return self.picture.width if swaps_sides(self.orientation) else self.picture.height

    def planes(self) -> Planes:
        """Y (H, W), and U and V (ceil(H/2), ceil(W/2)) unless grey: uint8 views, valid as long as the frame."""
        return tuple(upright(plane_view(plane), self.orientation) for plane in self.picture.planes)


def plane_view(plane: av.video.plane.VideoPlane) -> Plane:
    """(H, W) uint8 view of a plane's pixels, without the padding at the end of each line.

    With a negative line size, as a decoder may use, the last line comes first in memory.
    """
    height, line = plane.height, plane.line_size
    first = max(0, -line * (height - 1))
    return np.ndarray((height, plane.width), np.uint8, memoryview(plane), first, (line, 1))
