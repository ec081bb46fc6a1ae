from __future__ import annotations

import threading
import time
from fractions import Fraction

import av

from stream.frame import SourcePacket
from stream.pace import paced


def packet(milliseconds: int, clock: str = "arrival") -> SourcePacket:
    raw = av.Packet(b"access unit")
    raw.dts, raw.time_base = milliseconds, Fraction(1, 1000)
    return SourcePacket(raw, "video", received_ns=1, capture_ns=1, capture_clock=clock)  # type: ignore[arg-type]


def test_packets_come_when_their_time_has_come_and_are_received_then() -> None:
    began_ns = time.time_ns()
    last = list(paced(iter([packet(5_000), packet(5_040), packet(5_200)]), threading.Event()))[-1]
    assert last.received_ns - began_ns >= 190_000_000
    assert last.capture_ns == last.received_ns


def test_the_capture_time_of_a_recording_is_kept() -> None:
    (kept,) = paced(iter([packet(0, "recording")]), threading.Event())
    assert kept.capture_ns == 1


def test_a_stop_ends_the_wait_at_once() -> None:
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    assert len(list(paced(iter([packet(0), packet(60_000)]), stop))) == 1
    assert time.monotonic() - began < 30
