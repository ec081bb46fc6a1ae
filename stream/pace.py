"""A recording's packets at the speed at which they were recorded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from threading import Event

from stream.frame import SourcePacket


def paced(packets: Iterator[SourcePacket], stop: Event) -> Iterator[SourcePacket]:
    """Each packet when its decoding time has come, counted from the first; ends early when `stop` is set.

    It is then received, as from a camera; what was captured on arrival, too.
    """
    start: float | None = None
    for packet in packets:
        ticks, base = packet.packet.dts, packet.packet.time_base
        if ticks is not None and base is not None:
            seconds = float(ticks * base)
            start = time.monotonic() - seconds if start is None else start
            if stop.wait(max(0.0, start + seconds - time.monotonic())):
                return
        now = time.time_ns()
        captured = now if packet.capture_clock == "arrival" else packet.capture_ns
        yield replace(packet, received_ns=now, capture_ns=captured)
