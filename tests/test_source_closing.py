from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from stream.errors import SourceLost
from stream.source import open_source
from stream.sources.segment import Segment
from tests.clips import UdpSender, free_port, make_clip
from tests.reading import feed, nothing_left, pictures_of
from tests.waiting import takes_less_than


def test_a_source_that_waits_for_its_first_packet_can_be_stopped_by_another_thread() -> None:
    def seconds_to_stop() -> float:
        stop = threading.Event()
        with nothing_left(), open_source(feed(f"udp://127.0.0.1:{free_port()}", open_timeout=20.0), stop) as source:
            timer = threading.Timer(0.05, stop.set)
            timer.start()
            began = time.monotonic()
            assert list(source.segments()) == []
            taken = time.monotonic() - began
            timer.join()
        return taken

    assert takes_less_than(1.0, seconds_to_stop)


def test_a_silent_feed_can_be_stopped_by_another_thread(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=20)

    def seconds_to_stop() -> float:
        port, stop = free_port(), threading.Event()
        timer = threading.Timer(0.05, stop.set)
        with (
            nothing_left(),
            UdpSender(clip, port),
            open_source(feed(f"udp://127.0.0.1:{port}", read_timeout=20.0), stop) as source,
        ):
            for segment in source.segments():
                for packet in segment.packets():
                    if pictures_of([packet]) == [15]:
                        timer.start()
                        began = time.monotonic()
            taken = time.monotonic() - began
            timer.join()
        return taken

    assert takes_less_than(1.0, seconds_to_stop)


def test_a_file_that_is_being_read_ends_when_it_is_stopped(tmp_path: Path) -> None:
    clip, stop = make_clip(tmp_path / "clip.mkv", pictures=20), threading.Event()
    with nothing_left(), open_source(feed(clip), stop) as source:
        count = 0
        for segment in source.segments():
            for _ in segment.packets():
                count += 1
                if count == 3:
                    stop.set()
    assert count == 3


def test_a_source_that_is_stopped_before_it_is_opened_gives_nothing(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    for url in (f"udp://127.0.0.1:{free_port()}", str(make_clip(tmp_path / "clip.ts", pictures=5))):
        with nothing_left(), open_source(feed(url), stop) as source:
            assert [packet for segment in source.segments() for packet in segment.packets()] == []


def test_leaving_a_source_in_the_middle_leaves_nothing_open(tmp_path: Path) -> None:
    clip, port = make_clip(tmp_path / "clip.ts", pictures=50), free_port()
    for url in (str(clip), f"udp://127.0.0.1:{port}"):
        with nothing_left(), UdpSender(clip, port), open_source(feed(url)) as source:
            segment = next(source.segments())
            assert isinstance(segment, Segment)
            next(segment.packets())


def test_opening_a_dead_feed_again_and_again_leaves_nothing_behind() -> None:
    settings = feed(f"udp://127.0.0.1:{free_port()}", open_timeout=0.001)
    with nothing_left():
        for _ in range(10):
            with open_source(settings) as source, pytest.raises(SourceLost):
                next(source.segments())
