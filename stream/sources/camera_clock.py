"""Capture times by the camera's own clock, which RTP carries from the first RTCP sender report on."""

from __future__ import annotations

import logging
import struct
import time

from av.packet import Packet
from av.stream import Stream

from stream.frame import CaptureClock

NANOSECONDS = 1_000_000_000
FARTHEST = 10 * NANOSECONDS
"""A clock that differs from this machine's by more is wrong: it was never set, or the network is hopeless."""
SURE_SECONDS = 60.0
"""How long a clock that was wrong must be right before it is believed again."""
REFERENCE_TIME = struct.Struct("<q")
"""The first member of FFmpeg's `AVProducerReferenceTime`: UTC, microseconds since 1970."""

log = logging.getLogger(__name__)


class CameraClock:
    """Capture times of one connection to a camera; for one thread.

    Until the camera's clock is known, packets count as captured on arrival. When it becomes known, capture times step
    back by the delay of the pictures (and by the difference of the two clocks), and `capture_clock` changes. They step
    forward again if the clock turns out to be wrong. It is believed again when it has been right for a while: the wrong
    clock may have been this machine's, which was set meanwhile.
    """

    def __init__(self, name: str) -> None:
        """`name` is for the log."""
        self._name = name
        self._anchors: dict[int, tuple[int, int]] = {}  # by stream: capture time and time stamp of one packet
        self._believed = True
        self._right_since: float | None = None
        """Since when a clock that is not believed has been right, by `time.monotonic`."""

    def captured(self, packet: Packet[Stream], received_ns: int) -> tuple[int, CaptureClock]:
        """A packet's capture time (UTC, nanoseconds since 1970), and whose clock it comes from."""
        reference = reference_ns(packet)
        if packet.pts is None:
            return received_ns, "arrival"
        if reference is not None:
            self._anchors[packet.stream_index] = reference, packet.pts
        if packet.stream_index not in self._anchors:
            return received_ns, "arrival"
        anchor_ns, anchor_pts = self._anchors[packet.stream_index]
        captured_ns = anchor_ns + int((packet.pts - anchor_pts) * packet.time_base * NANOSECONDS)
        is_right = abs(captured_ns - received_ns) <= FARTHEST
        if self._believed and not is_right:
            self._believed = False
            seconds = (captured_ns - received_ns) / NANOSECONDS
            log.warning("%s: the camera's clock is off by %+.0f s and is ignored", self._name, seconds)
        if not self._believed:
            self._judge_again(is_right)
        return (captured_ns, "rtcp") if self._believed else (received_ns, "arrival")

    def _judge_again(self, is_right: bool) -> None:
        """Believe the clock again once it has been right for `SURE_SECONDS`."""
        now = time.monotonic()
        if not is_right:
            self._right_since = None
        elif self._right_since is None:
            self._right_since = now
        elif now - self._right_since >= SURE_SECONDS:
            self._believed, self._right_since = True, None
            log.info("%s: the camera's clock is used again", self._name)


def reference_ns(packet: Packet[Stream]) -> int | None:
    """The capture time that FFmpeg found for a packet: UTC, nanoseconds since 1970; None if it found none."""
    if not packet.has_sidedata("prft"):
        return None
    microseconds: int = REFERENCE_TIME.unpack_from(bytes(packet.get_sidedata("prft")))[0]
    return microseconds * 1000
