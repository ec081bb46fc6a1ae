from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import av
import pytest
from msgspec.structs import replace

from engines.colour import Colour
from stream import outlet as module
from stream.encode import EncodedPicture, Encoder
from stream.feed import Feed
from stream.frame import Frame
from stream.outlet import Outlet
from stream.publish import Publisher
from stream.settings import EncoderSettings, FeedSettings, RelaySettings
from stream.subscribe import Subscriber
from stream.wire.messages import Header
from tests.doubling import DoublingEngine
from tests.published import relay
from tests.waiting import DEADLINE


def feed(codec: str = "h264") -> Feed:
    return Feed("cam", FeedSettings(url="clip.ts", encoder=EncoderSettings(codec=codec)))  # type: ignore[arg-type]


def frame(number: int, side: int) -> Frame:
    return Frame(
        picture=av.VideoFrame(side, side, "yuv420p"),
        colour=Colour(),
        pts=number,
        source_pts=number,
        time_base=Fraction(1, 25),
        received_ns=0,
        capture_ns=0,
        capture_clock="arrival",
        state="clean",
        source_sha256=bytes(32),
    )


def send(outlet: Outlet, feed: Feed, pictures: range, side: int) -> None:
    with DoublingEngine() as engine:
        for number in pictures:
            feed.meter.receive()
            slot = engine.acquire(side, side)
            outlet.send(frame(number, side), slot)
            slot.release()


def test_an_encoder_that_does_not_open_costs_every_picture_until_one_fits(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = module.Encoder
    monkeypatch.setattr(module, "Encoder", lambda *arguments: opened.append(arguments) or real(*arguments))
    small_is_impossible = feed("av1")
    with relay() as publisher:
        outlet = Outlet(small_is_impossible, publisher, "model")
        send(outlet, small_is_impossible, range(50), side=16)
        figures = small_is_impossible.meter.figures()
        assert (figures.lost, figures.published, figures.under_way) == ({"encoder": 50}, 0, 0)
        assert len(opened) == 1
        send(outlet, small_is_impossible, range(50, 55), side=64)
        outlet.finish()
    figures = small_is_impossible.meter.figures()
    assert (figures.lost, figures.published, figures.under_way) == ({"encoder": 50}, 5, 0)
    assert ["libsvtav1 cannot encode 32x32" in record.getMessage() for record in caplog.records] == [True]


def test_an_encoder_that_failed_is_opened_again_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0)
    breaking = feed()
    with relay() as publisher:
        outlet = Outlet(breaking, publisher, "model")
        send(outlet, breaking, range(5), side=32)
        assert outlet._encoder is not None
        outlet._encoder.close()
        send(outlet, breaking, range(5, 10), side=32)
        outlet.finish()
    figures = breaking.meter.figures()
    assert (figures.lost, figures.published, figures.under_way) == ({"encoder": 1}, 9, 0)


def test_an_encoder_that_cannot_be_flushed_is_no_trouble_for_the_next_size() -> None:
    growing = feed()
    with relay() as publisher:
        outlet = Outlet(growing, publisher, "model")
        send(outlet, growing, range(5), side=32)
        assert outlet._encoder is not None
        outlet._encoder.close()
        send(outlet, growing, range(5, 10), side=64)
        outlet.finish()
    figures = growing.meter.figures()
    assert (figures.lost, figures.published) == ({}, 10)


def test_a_publisher_that_is_closed_costs_the_pictures_and_nothing_else() -> None:
    late = feed()
    outlet = Outlet(late, Publisher(RelaySettings(), "run"), "model")
    send(outlet, late, range(5), side=32)
    outlet.finish()
    figures = late.meter.figures()
    assert (figures.lost, figures.under_way) == ({"encoder": 5}, 0)


def test_a_picture_that_was_encoded_and_could_not_be_published_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0)
    unlucky = feed()
    with relay() as publisher:

        def publish(*arguments: object) -> int:
            raise OSError("the network is gone")

        monkeypatch.setattr(publisher, "publish", publish)
        outlet = Outlet(unlucky, publisher, "model")
        send(outlet, unlucky, range(5), side=32)
    figures = unlucky.meter.figures()
    assert (figures.lost, figures.published, figures.under_way) == ({"encoder": 5}, 0, 0)


def published(feed: Feed, frames: list[Frame], monkeypatch: pytest.MonkeyPatch) -> list[Header]:
    """The headers of what a feed publishes of these pictures, up to its end."""
    headers: list[Header] = []
    with relay() as publisher, DoublingEngine() as engine:
        monkeypatch.setattr(publisher, "publish", lambda *message: headers.append(message[2]))
        outlet = Outlet(feed, publisher, "model")
        for each in frames:
            slot = engine.acquire(32, 32)
            outlet.send(each, slot)
            slot.release()
        outlet.finish()
    return headers


def test_a_picture_tells_its_sources_stamp_however_it_was_placed_and_none_that_cannot_travel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stamps = [126_000, None, 1 << 62, (1 << 62) + 1, -(1 << 63) + 1, 0]
    shifted = [replace(frame(number, 32), source_pts=stamp) for number, stamp in enumerate(stamps)]
    headers = published(feed(), shifted, monkeypatch)
    assert [header.pts for header in headers] == [0, 1, 2, 3, 4, 5]
    assert [header.source_pts for header in headers] == [126_000, None, 1 << 62, None, None, 0]


def test_a_time_of_the_feeds_clock_that_cannot_travel_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    late = [replace(frame(0, 32), pts=(1 << 62) + number) for number in range(2)]
    assert [header.pts for header in published(feed(), late, monkeypatch)] == [1 << 62, None]


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        ({"colour": Colour("bt709")}, True),
        ({"colour": Colour(full_range=True)}, True),
        ({"colour": Colour(grey=True)}, False),
        ({"time_base": Fraction(1, 50)}, True),
        ({"aspect": Fraction(4, 3)}, True),
    ],
    ids=str,
)
def test_what_a_stream_says_of_its_pictures_is_said_anew_with_a_key_frame_where_it_changes(
    change: dict[str, Any], anew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = published(feed(), [frame(0, 32), replace(frame(1, 32), **change)], monkeypatch)
    assert (before.key, after.key) == (True, anew)
    assert after.time_base == change.get("time_base", Fraction(1, 25))


def test_a_viewer_who_joins_makes_the_next_picture_a_key_frame() -> None:
    watched = feed()
    with relay() as publisher:
        outlet = Outlet(watched, publisher, "model")
        send(outlet, watched, range(3), side=32)
        with Subscriber(publisher.endpoint, "cam", max_age=None) as viewer:
            assert publisher.wait_for_viewer("cam", DEADLINE)
            send(outlet, watched, range(3, 5), side=32)
            messages = [viewer.receive(DEADLINE) for _ in range(2)]
        outlet.finish()
    assert [(message.header.seq, message.header.key) for message in messages if message] == [(3, True), (4, False)]


class Holding(Encoder):
    """Gives each picture with the next one, as one on a GPU may."""

    held: list[EncodedPicture] = []  # noqa: RUF012

    def encode(self, *arguments: Any) -> list[EncodedPicture]:
        ready, self.held = self.held, super().encode(*arguments)
        return ready

    def flush(self) -> list[EncodedPicture]:
        return self.held + super().flush()


def test_pictures_that_an_encoder_holds_are_published_at_the_end_each_with_what_is_known_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "Encoder", Holding)
    slow = feed()
    headers = published(slow, [replace(frame(n, 32), source_sha256=bytes([n])) for n in range(5)], monkeypatch)
    assert [(header.pts, header.source_sha256) for header in headers] == [(n, bytes([n])) for n in range(5)]
    figures = slow.meter.figures()
    assert (figures.published, figures.lost) == (5, {})


def test_the_age_of_a_picture_is_counted_from_its_capture() -> None:
    late = feed()
    now = time.time_ns()
    with relay() as publisher, DoublingEngine() as engine:
        outlet = Outlet(late, publisher, "model")
        outlet.send(replace(frame(0, 32), received_ns=now, capture_ns=now - 3600 * 10**9), engine.acquire(32, 32))
        outlet.finish()
    age_ms = late.meter.figures().age_ms(50)
    assert age_ms is not None
    assert age_ms >= 3_600_000
