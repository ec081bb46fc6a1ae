from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import av
import pytest

from stream.frame import SourcePacket
from stream.sources.pace import paced

HOUR = 3_600_000


def packet(milliseconds: int | None, clock: str = "arrival", kind: str = "video") -> SourcePacket:
    raw = av.Packet(b"access unit")
    raw.dts, raw.duration, raw.time_base = milliseconds, 40, Fraction(1, 1000)
    return SourcePacket(raw, kind, received_ns=1, capture_ns=1, capture_clock=clock)  # type: ignore[arg-type]


def seconds_of(packets: list[SourcePacket]) -> float:
    """How long it takes until all have come."""
    stop, began = threading.Event(), time.monotonic()
    limit = threading.Timer(5, stop.set)
    limit.start()
    assert len(list(paced(iter(packets), stop))) == len(packets)
    limit.cancel()
    return time.monotonic() - began


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


def test_pictures_without_times_come_by_their_durations() -> None:
    """As those of a file that holds nothing but H.264."""
    assert 0.16 <= seconds_of([packet(None) for _ in range(5)]) < 5


def test_a_recorders_clock_that_is_set_neither_stops_the_feed_nor_lets_the_rest_come_at_once() -> None:
    forward = [packet(time) for time in (0, 40, HOUR, HOUR + 40, HOUR + 80)]
    assert 0.12 <= seconds_of(forward) < 5
    back = [packet(time) for time in (HOUR, HOUR + 40, 0, 40, 80)]
    assert 0.12 <= seconds_of(back) < 5


def test_data_with_times_of_its_own_comes_along_with_the_pictures() -> None:
    packets = [packet(0), packet(HOUR, kind="data"), packet(40), packet(5, kind="data"), packet(80)]
    assert 0.08 <= seconds_of(packets) < 5


class NoWait(threading.Event):
    """Notes how long it would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return False


@pytest.mark.parametrize("speed", [0.5, 1.0, 4.0])
def test_a_multiple_of_the_speed_divides_every_wait_even_after_the_clock_was_set(speed: float) -> None:
    waits = NoWait()
    times = [0, 40_000, 50_000, HOUR, HOUR + 40_000]
    assert len(list(paced(iter([packet(time) for time in times]), waits, speed))) == 5
    assert waits.seconds == pytest.approx([second / speed for second in (0, 40, 50, 0, 40)], abs=1)


class Clock(threading.Event):
    """Time that passes where somebody waits, or is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0

    def wait(self, timeout: float | None = None) -> bool:
        self.now += timeout or 0.0
        return False


def test_a_source_that_has_become_later_for_good_is_paced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As live HLS after a pause of its server: a segment a second, all of it at once."""
    clock = Clock()
    monkeypatch.setattr("stream.sources.pace.time.monotonic", lambda: clock.now)

    def segments() -> Iterator[SourcePacket]:
        for number in range(500):
            if number % 25 == 0:
                clock.now = max(clock.now, 100.0 + number / 25 + (3 if number >= 100 else 0))
            yield packet(40 * number)

    came = [clock.now for _ in paced(segments(), clock)]
    apart = [later - earlier for earlier, later in pairwise(came)]
    assert apart[:99] == pytest.approx([0.04] * 99, abs=1e-6)
    assert 0.0 in [round(each, 6) for each in apart[100:225]]
    assert apart[-200:] == pytest.approx([0.04] * 200, abs=1e-6)


def test_a_machine_that_was_busy_for_a_while_catches_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("stream.sources.pace.time.monotonic", lambda: clock.now)
    for number, _ in enumerate(paced((packet(40 * number) for number in range(1000)), clock)):
        if number == 100:
            clock.now += 8
    assert clock.now == pytest.approx(100 + 999 * 0.04, abs=1e-6)
