"""When a camera took its pictures, by its own clock: RTP tells it from the first RTCP sender report on."""

from __future__ import annotations

import logging
import struct

from av.packet import Packet
from av.stream import Stream

from stream.frame import CaptureClock

NANOSECONDS = 1_000_000_000
FARTHEST = 10 * NANOSECONDS
"""A clock that is further away from this machine's is wrong: it was never set, or the network is hopeless."""
REFERENCE_TIME = struct.Struct("<q")
"""The first member of FFmpeg's `AVProducerReferenceTime`: UTC, microseconds since 1970."""

log = logging.getLogger(__name__)


class CameraClock:
    """Capture times of one connection to a camera. Pure, for one thread.

    Until the camera's clock is known, a packet counts as captured on arrival. The step from arrival to that clock
    goes back, by the time that pictures are under way (and by what the two clocks differ); `capture_clock` changes
    with it. There is one such step in a connection at most, and one the other way if the clock turns out to be wrong.
    """

    def __init__(self, name: str) -> None:
        """`name` is for the log."""
        self._name = name
        self._anchors: dict[int, tuple[int, int]] = {}  # by stream: capture time and time stamp of one packet
        self._believed = True

    def captured(self, packet: Packet[Stream], received_ns: int) -> tuple[int, CaptureClock]:
        """When the camera took what is in a packet (UTC, nanoseconds since 1970), and whose clock says so."""
        told = reference_ns(packet)
        if packet.pts is None or not self._believed:
            return received_ns, "arrival"
        if told is not None:
            self._anchors[packet.stream_index] = told, packet.pts
        if packet.stream_index not in self._anchors:
            return received_ns, "arrival"
        anchor_ns, anchor_pts = self._anchors[packet.stream_index]
        captured_ns = anchor_ns + int((packet.pts - anchor_pts) * packet.time_base * NANOSECONDS)
        if abs(captured_ns - received_ns) > FARTHEST:
            self._believed = False
            seconds = (captured_ns - received_ns) / NANOSECONDS
            log.warning("%s: the camera's clock is %+.0f s off and not believed", self._name, seconds)
            return received_ns, "arrival"
        return captured_ns, "rtcp"


def reference_ns(packet: Packet[Stream]) -> int | None:
    """The capture time that FFmpeg found for a packet: UTC, nanoseconds since 1970; None where it found none."""
    if not packet.has_sidedata("prft"):
        return None
    microseconds: int = REFERENCE_TIME.unpack_from(bytes(packet.get_sidedata("prft")))[0]
    return microseconds * 1000
