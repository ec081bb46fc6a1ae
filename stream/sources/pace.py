"""Gives out a recording's packets at the speed at which they were recorded, or a multiple of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Event

from msgspec.structs import replace

from stream.frame import SourcePacket

LATE_SECONDS, LATE_FOR_SECONDS = 0.25, 5.0
"""If all packets are late by more than `LATE_SECONDS` for `LATE_FOR_SECONDS`, their source has fallen behind for good,
as live HLS after a pause. The schedule is then delayed by as much: else they would come in bursts for ever."""

LONGEST_GAP = 60.0
"""Seconds between two pictures; a larger step, or one back, means that the recorder's clock was set."""


def paced(packets: Iterator[SourcePacket], stop: Event, speed: float = 1.0) -> Iterator[SourcePacket]:
    """Each packet when its decoding time has come, counted from the first; ends early when `stop` is set.

    Video sets the pace, by its durations if it has no time stamps; other packets come along. As from a camera, packets
    count as received when they are given out, and as captured then too if their capture clock is `arrival`.
    """
    start: float | None = None
    seconds = upcoming = 0.0
    late: list[float] = []  # by how much packets were late since the time `since`
    since = 0.0
    for packet in packets:
        if packet.kind == "video":
            before, seconds = seconds, decode_seconds(packet, upcoming)
            now = time.monotonic()
            if start is None or not 0 <= seconds - before <= LONGEST_GAP:
                start, late, since = now - seconds / speed, [], now
            late.append(now - start - seconds / speed)
            if now - since >= LATE_FOR_SECONDS:
                start += max(late) if min(late) > LATE_SECONDS else 0.0
                late, since = [], now
            upcoming = seconds + duration_seconds(packet)
            if stop.wait(max(0.0, start + seconds / speed - now)):
                return
        now_ns = time.time_ns()
        captured = now_ns if packet.capture_clock == "arrival" else packet.capture_ns
        yield replace(packet, received_ns=now_ns, capture_ns=captured)


def decode_seconds(packet: SourcePacket, otherwise: float) -> float:
    """When to decode a packet, in seconds of its own stream; `otherwise` if it does not say."""
    ticks, base = packet.packet.dts, packet.packet.time_base
    return otherwise if ticks is None or base is None else float(ticks * base)


def duration_seconds(packet: SourcePacket) -> float:
    """How long a packet is shown, in seconds; 0 if it does not say."""
    ticks, base = packet.packet.duration, packet.packet.time_base
    return 0.0 if not ticks or base is None else float(ticks * base)
