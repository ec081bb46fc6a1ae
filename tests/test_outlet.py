from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import av
import pytest

from engines.colour import Colour
from stream import outlet as module
from stream.feed import Feed
from stream.frame import Frame
from stream.outlet import Outlet
from stream.publish import Publisher
from stream.settings import EncoderSettings, FeedSettings, RelaySettings
from stream.wire import Header
from tests.doubling import DoublingEngine
from tests.published import relay


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


def test_a_picture_tells_its_sources_stamp_however_it_was_placed_and_none_that_cannot_travel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stamps = [126_000, None, 1 << 62, (1 << 62) + 1, -(1 << 63) + 1, 0]
    shifted = feed()
    headers: list[Header] = []
    with relay() as publisher, DoublingEngine() as engine:
        monkeypatch.setattr(publisher, "publish", lambda *message: headers.append(message[2]))
        outlet = Outlet(shifted, publisher, "model")
        for number, stamp in enumerate(stamps):
            slot = engine.acquire(32, 32)
            outlet.send(replace(frame(number, 32), source_pts=stamp), slot)
            slot.release()
        outlet.finish()
    assert [header.pts for header in headers] == [0, 1, 2, 3, 4, 5]
    assert [header.source_pts for header in headers] == [126_000, None, 1 << 62, None, None, 0]
