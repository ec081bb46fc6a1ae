"""What travels between the stages: packets from the source, frames to the engine, pictures to the wire."""

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


BYTES_PER_PIXEL = 175
"""Memory that a feed takes for each pixel of its source's pictures: 160 in decoder, engine, slots and encoder, rounded
up from what was measured with OpenVINO, and 15 where pictures wait that come in a burst."""


def memory_for(width: int, height: int) -> str:
    """What the settings of a feed must say for pictures of this size."""
    return f'the feed must have memory = "{math.ceil(BYTES_PER_PIXEL * width * height / 1e6)}MB" or more'


def arrival(received_ns: int, capture_ns: int, clock: CaptureClock) -> int:
    """When something was there to be read, as far as that is known: over UDP it may have waited in the kernel."""
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
        """See `arrival`; of UDP that of the first byte."""
        return arrival(self.received_ns, self.capture_ns, self.capture_clock)


class AccessUnit(msgspec.Struct, frozen=True, eq=False):
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
    """Whether bytes of it are missing, as the source says, or FFmpeg adds what a damaged picture left behind."""
    tainted: bool
    """Whether an access unit since the last key frame, in the order of decoding, was damaged."""
    says_when: bool = False
    """Whether it begins to renew the picture and says when that will be complete."""
    completes: int | None = None
    """Number of the access unit that began to renew the picture, where this one completes that."""

    @property
    def arrived_ns(self) -> int:
        """See `SourcePacket`."""
        return arrival(self.received_ns, self.capture_ns, self.capture_clock)


class Frame(msgspec.Struct, frozen=True):
    """A decoded picture, planar 8-bit 4:2:0, with everything that is known of it."""

    picture: av.VideoFrame
    """Of format `yuv420p`, `yuvj420p` or `gray`, as it was filmed; the planes are views into its memory."""
    colour: Colour
    pts: int
    source_pts: int | None
    """The time stamp that its source gave it; None: it gave none, and `pts` is reckoned from the pictures before."""
    time_base: Fraction
    received_ns: int
    capture_ns: int
    capture_clock: CaptureClock
    state: State
    source_sha256: bytes
    """32 bytes: of the access unit that this picture came from."""
    aspect: Fraction = Fraction(1)
    """Width over height of a pixel as it is to be shown, upright: 1 unless the source says another, as of 720x576."""
    orientation: Orientation = UPRIGHT
    """How `picture` is turned and mirrored to be upright, as width, height and planes of the frame are."""
    held_ns: int = 0
    """Nanoseconds from its arrival, by which no machine could have had it sooner: it takes later ones to tell where it
    ends, to show it in its turn, and to deinterlace it."""

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

    Lines that go backwards in memory, as a decoder may leave them, begin with the last one.
    """
    height, line = plane.height, plane.line_size
    first = max(0, -line * (height - 1))
    return np.ndarray((height, plane.width), np.uint8, memoryview(plane), first, (line, 1))
