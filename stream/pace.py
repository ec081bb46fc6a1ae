"""A recording's packets at the speed at which they were recorded, or a multiple of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from threading import Event

from stream.frame import SourcePacket

LONGEST_GAP = 60.0
"""Seconds between two pictures; a larger step, or one back, means that the recorder's clock was set."""


def paced(packets: Iterator[SourcePacket], stop: Event, speed: float = 1.0) -> Iterator[SourcePacket]:
    """Each packet when its decoding time has come, counted from the first; ends early when `stop` is set.

    Video sets the pace, by its durations where it has no times; other packets come along. All are then received, as
    from a camera; what was captured on arrival, too.
    """
    start: float | None = None
    seconds = upcoming = 0.0
    for packet in packets:
        if packet.kind == "video":
            before, seconds = seconds, decode_seconds(packet, upcoming)
            if start is None or not 0 <= seconds - before <= LONGEST_GAP:
                start = time.monotonic() - seconds / speed
            upcoming = seconds + duration_seconds(packet)
            if stop.wait(max(0.0, start + seconds / speed - time.monotonic())):
                return
        now = time.time_ns()
        captured = now if packet.capture_clock == "arrival" else packet.capture_ns
        yield replace(packet, received_ns=now, capture_ns=captured)


def decode_seconds(packet: SourcePacket, otherwise: float) -> float:
    """When to decode a packet, in seconds of its own stream; `otherwise` where it does not say."""
    ticks, base = packet.packet.dts, packet.packet.time_base
    return otherwise if ticks is None or base is None else float(ticks * base)


def duration_seconds(packet: SourcePacket) -> float:
    """How long a packet is shown; 0 where it does not say."""
    ticks, base = packet.packet.duration, packet.packet.time_base
    return 0.0 if not ticks or base is None else float(ticks * base)
