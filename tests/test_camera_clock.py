from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from io import BytesIO

import av
import pytest
from av.packet import Packet
from av.stream import Stream

from stream.frame import CaptureClock
from stream.sources import camera_clock
from stream.sources.camera_clock import CameraClock

NOW = 1_795_361_400_000_000_000
SECOND = 1_000_000_000

Captured = Callable[..., tuple[float, CaptureClock]]


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Captured:
    """Asks one clock of packets at 90 kHz; times are seconds after `NOW`."""
    clock = CameraClock("rtsp://camera/")
    container = av.open(BytesIO(), "w", format="mpegts")
    streams = [container.add_data_stream("klv") for _ in range(2)]
    told: dict[int, int] = {}
    monkeypatch.setattr(camera_clock, "reference_ns", lambda packet: told.pop(id(packet), None))

    def ask(pts: int | None, received: float, says: float | None = None, stream: int = 0) -> tuple[float, CaptureClock]:
        packet: Packet[Stream] = av.Packet(b"x")
        packet.stream = streams[stream]
        packet.pts, packet.time_base = pts, Fraction(1, 90_000)
        if says is not None:
            told[id(packet)] = NOW + round(says * SECOND)
        time_ns, by = clock.captured(packet, NOW + round(received * SECOND))
        return (time_ns - NOW) / SECOND, by

    return ask


def test_arrival_counts_until_the_camera_tells_its_clock(captured: Captured) -> None:
    assert captured(0, received=1) == (1, "arrival")
    assert captured(90_000, received=2, says=1.75) == (1.75, "rtcp")


def test_packets_about_which_it_says_nothing_follow_by_their_stamps(captured: Captured) -> None:
    captured(90_000, received=2, says=1.75)
    assert captured(90_000 + 3_600, received=2.5) == (1.79, "rtcp")
    assert captured(90_000 - 3_600, received=2.6) == (1.71, "rtcp")
    assert captured(None, received=2.7) == (2.7, "arrival")
    assert captured(180_000, received=3, says=2.8) == (2.8, "rtcp")
    assert captured(183_600, received=3) == (2.84, "rtcp")


def test_each_stream_of_a_camera_has_stamps_of_its_own(captured: Captured) -> None:
    captured(90_000, received=2, says=1.75)
    assert captured(0, received=2, stream=1) == (2, "arrival")
    assert captured(0, received=3, says=2.5, stream=1) == (2.5, "rtcp")
    assert captured(3_600, received=3, stream=1) == (2.54, "rtcp")
    assert captured(93_600, received=3) == (1.79, "rtcp")


@pytest.mark.parametrize("off", [-11, 11, -56 * 365 * 86_400])
def test_a_clock_that_is_far_off_is_told_once_and_not_believed_at_once_when_it_is_right(
    captured: Captured, caplog: pytest.LogCaptureFixture, off: float
) -> None:
    assert captured(0, received=1, says=1 + off) == (1, "arrival")
    assert captured(90_000, received=2, says=2 + off) == (2, "arrival")
    assert captured(180_000, received=3, says=2.9) == (3, "arrival")
    assert len(caplog.records) == 1
    assert f"rtsp://camera/: the camera's clock is off by {off:+.0f} s and is ignored" in caplog.text


def test_a_clock_that_has_been_right_for_a_minute_is_believed_again(
    captured: Captured, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong one may have been this machine's, before it was set."""
    now = [1000.0]
    monkeypatch.setattr("stream.sources.camera_clock.time.monotonic", lambda: now[0])
    caplog.set_level("INFO")
    assert captured(0, received=1, says=3601) == (1, "arrival")
    assert captured(90_000, received=3602, says=3601.9) == (3602, "arrival")
    now[0] += 59
    assert captured(180_000, received=3603, says=3602.9) == (3603, "arrival")
    assert captured(270_000, received=3604, says=9999) == (3604, "arrival")
    for seconds in (0, 59, 1):
        now[0] += seconds
        told = captured(360_000, received=3605, says=3604.9)
    assert told == (3604.9, "rtcp")
    assert [record.message for record in caplog.records][1:] == ["rtsp://camera/: the camera's clock is used again"]


def test_a_clock_that_is_a_little_off_is_believed(captured: Captured) -> None:
    assert captured(0, received=1, says=-8) == (-8, "rtcp")
    assert captured(90_000, received=2, says=11) == (11, "rtcp")
