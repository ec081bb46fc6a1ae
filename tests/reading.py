"""Reading sources in tests, and proving that nothing is left of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from stream.decode import Decoder
from stream.errors import SourceLost
from stream.frame import SourcePacket
from stream.settings import FeedSettings
from stream.source import Opener, open_source
from stream.sources.segment import Segment
from tests.clips import read_number
from tests.waiting import wait_until


def feed(url: str | Path, **settings: object) -> FeedSettings:
    """A feed whose time-outs are short."""
    return FeedSettings.model_validate({"url": str(url), "open_timeout": 5.0, "read_timeout": 2.0} | settings)


def open_files() -> int:
    """Of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def readers() -> int:
    """Threads that read a source over the network."""
    return sum(thread.name == "nightbridge-reader" for thread in threading.enumerate())


@contextmanager
def nothing_left() -> Iterator[None]:
    """No thread and no open file more after the block than in front of it."""
    threads, files = threading.active_count(), open_files()
    yield
    wait_until(lambda: threading.active_count() <= threads, "the end of all threads")
    wait_until(lambda: open_files() <= files, "the closing of all files")


def take(segment: Segment, count: int) -> list[SourcePacket]:
    """The next `count` access units, or as many as there are."""
    units = []
    for packet in segment.packets():
        if packet.kind == "video":
            units.append(packet)
        if len(units) == count:
            break
    return units


def read(settings: FeedSettings, count: int, opener: Opener | None = None) -> list[SourcePacket]:
    """The first `count` access units of a feed that is opened and closed for it."""
    with open_source(settings, opener=opener) as source:
        return take(next(source.segments()), count)


def why_lost(settings: FeedSettings, opener: Opener | None = None) -> SourceLost:
    """The error that a feed ends with."""
    try:
        with open_source(settings, opener=opener) as source:
            for segment in source.segments():
                for _ in segment.packets():
                    pass
    except SourceLost as error:
        return error
    raise AssertionError("the source was not lost")


def numbers(segment: Segment, count: int) -> list[int]:
    """Numbers of the first `count` pictures (see `tests.clips`)."""
    decoder, seen = Decoder(segment.video), list[int]()
    for packet in segment.packets():
        seen += [read_number(np.asarray(frame.planes()[0])) for frame in decoder.decode(packet)]
        if len(seen) >= count:
            break
    return seen


def read_all(url: str | Path) -> list[list[SourcePacket]]:
    """The packets of each segment."""
    with open_source(feed(url)) as source:
        return [list(segment.packets()) for segment in source.segments()]


def video(packets: list[SourcePacket]) -> list[SourcePacket]:
    return [packet for packet in packets if packet.kind == "video"]


def pictures_of(packets: list[SourcePacket]) -> list[int]:
    """Numbers of the pictures, from their time stamps."""
    return [round(float((packet.packet.pts or 0) * packet.packet.time_base) * 25) for packet in video(packets)]
