from __future__ import annotations

import os
import socket
import threading
import time
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import av
import pytest

from stream.address import UdpAddress
from stream.errors import SourceLost, SourceUnsupported
from stream.frame import SourcePacket
from stream.source import open_source
from tests.clips import UdpSender, datagrams, free_port, klv_packet, make_clip
from tests.reading import feed, nothing_left, pictures_of, read_all, video

GROUP = "239.255.77.7"


def read_until_lost(url: str) -> tuple[list[SourcePacket], str]:
    """The packets of a live feed, and the reason for its end."""
    with open_source(feed(url)) as source:
        packets = list(next(source.segments()).packets())
        with pytest.raises(SourceLost) as lost:
            next(source.segments())
    return packets, str(lost.value)


def first_datagram(packet: SourcePacket) -> int:
    """Index of the datagram in which a packet begins."""
    assert packet.packet.pos is not None
    return packet.packet.pos // 1316


# Capture time


def test_a_live_picture_counts_as_captured_when_its_first_byte_came(tmp_path: Path) -> None:
    """Not when the demuxer gives it out, which is two pictures later."""
    clip, port = make_clip(tmp_path / "clip.ts", pictures=40), free_port()
    with UdpSender(clip, port, bit_rate=400_000) as sender:
        packets, _ = read_until_lost(f"udp://127.0.0.1:{port}")
        sent_ns = sender.sent_ns
    first_byte = [sent_ns[first_datagram(packet)] for packet in packets]
    waited = [packet.capture_ns - sent for packet, sent in zip(packets, first_byte, strict=True)]
    held_back = [packet.received_ns - packet.capture_ns for packet in packets]
    assert {packet.capture_clock for packet in packets} == {"arrival"}
    assert -5_000_000 < median(waited) < 20_000_000 < 40_000_000 < median(held_back)


# UDP


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "udp://127.0.0.1:{}"),
        ("127.0.0.1", "udp://:{}"),
        ("127.0.0.1", "udp://@0.0.0.0:{}"),
        (GROUP, f"udp://{GROUP}:{{}}?localaddr=127.0.0.1"),
        (GROUP, f"udp://@{GROUP}:{{}}?localaddr=127.0.0.1"),
    ],
)
def test_a_feed_over_udp_gives_every_access_unit_and_data_packet(tmp_path: Path, host: str, url: str) -> None:
    clip, port = make_clip(tmp_path / "clip.ts", pictures=30, klv=True), free_port()
    with nothing_left(), UdpSender(clip, port, host=host):
        packets, reason = read_until_lost(url.format(port))
    data = [packet for packet in packets if packet.kind == "data"]
    assert pictures_of(packets) == list(range(30))
    assert [bytes(packet.packet) for packet in data] == [klv_packet(number) for number in range(30)]
    assert [packet.packet.pts for packet in data] == [packet.packet.pts for packet in video(packets)]
    assert reason.endswith("no packet for 2 s")


def test_two_relays_can_join_one_multicast_group(tmp_path: Path) -> None:
    clip, port = make_clip(tmp_path / "clip.ts", pictures=20), free_port()
    url = f"udp://{GROUP}:{port}?localaddr=127.0.0.1"
    seen: list[list[int]] = []
    readers = [threading.Thread(target=lambda: seen.append(pictures_of(read_until_lost(url)[0]))) for _ in range(2)]
    for reader in readers:
        reader.start()
    with UdpSender(clip, port, host=GROUP, listeners=2):
        for reader in readers:
            reader.join()
    assert seen == [list(range(20))] * 2


def test_a_feed_that_never_sends_is_lost_after_the_open_timeout() -> None:
    settings = feed(f"udp://127.0.0.1:{free_port()}", open_timeout=0.3)
    began = time.monotonic()
    with (
        nothing_left(),
        open_source(settings) as source,
        pytest.raises(SourceLost, match=r"no packet for 0\.3 s") as lost,
    ):
        next(source.segments())
    assert lost.value.reason == "time-out"
    assert 0.3 <= time.monotonic() - began < 10


def test_a_port_with_something_else_than_mpeg_ts_is_told(tmp_path: Path) -> None:
    noise, port = tmp_path / "noise.ts", free_port()
    noise.write_bytes(os.urandom(200_000))
    settings = feed(f"udp://127.0.0.1:{port}", open_timeout=4.0)
    with (
        UdpSender(noise, port, bit_rate=500_000, repeat=True),
        open_source(settings) as source,
        pytest.raises(SourceLost, match=r"packets come, but no video for 4 s") as lost,
    ):
        next(source.segments())
    assert lost.value.reason == "no video"


def test_a_feed_without_video_may_have_some_the_next_time(tmp_path: Path) -> None:
    """So that a camera that is being set up is found when it is."""
    path, port = tmp_path / "data.ts", free_port()
    with av.open(str(path), "w") as container:
        stream = container.add_data_stream("klv")
        for number in range(2000):
            packet = av.Packet(klv_packet(number))
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
            container.mux(packet)
    with (
        nothing_left(),
        UdpSender(path, port, repeat=True),
        open_source(feed(f"udp://127.0.0.1:{port}", open_timeout=4.0)) as source,
        pytest.raises(SourceLost, match="no video in it; it holds data klv"),
    ):
        next(source.segments())


def test_a_feed_opens_soon_after_its_next_key_frame(tmp_path: Path) -> None:
    """Although it is thin and joined in the middle of a group of pictures: it takes the key frame and 14 more."""
    clip = make_clip(tmp_path / "clip.ts", pictures=150, key_interval=50, bit_rate=300_000)
    port = free_port()
    size = clip.stat().st_size // 1316
    clip.write_bytes(b"".join(datagrams(clip)[: size * (50 + 15) // 150]))
    with (
        UdpSender(clip, port, bit_rate=1_200_000, start=size // 6),
        open_source(feed(f"udp://127.0.0.1:{port}")) as source,
    ):
        segment = next(source.segments())
    assert (segment.info.width, segment.info.height) == (160, 120)
    assert segment.rate == 25


def test_a_feed_whose_next_key_frame_is_far_away_opens_without_its_size(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=200, key_interval=1000)
    port = free_port()
    with (
        UdpSender(clip, port, start=clip.stat().st_size // 1316 // 5, bit_rate=1_000_000),
        open_source(feed(f"udp://127.0.0.1:{port}", open_timeout=2.0)) as source,
    ):
        info = next(source.segments()).info
    assert (info.codec, info.width, info.pix_fmt) == ("h264", None, None)


def test_a_damaged_access_unit_of_a_feed_is_marked_and_its_neighbours_are_not(tmp_path: Path) -> None:
    clip, port = make_clip(tmp_path / "clip.ts", pictures=30, size=(320, 240), key_interval=5), free_port()
    [whole] = read_all(clip)
    hit = first_datagram(whole[20]) + 1
    assert hit < first_datagram(whole[21]), "the datagram must be in the middle of a key frame"
    with UdpSender(clip, port, lost={hit}):
        packets, _ = read_until_lost(f"udp://127.0.0.1:{port}")
    assert [n for n, packet in enumerate(packets) if packet.packet.is_corrupt] == [20]


@pytest.mark.parametrize(
    "after",
    [{"codec": "libx265"}, {"codec": "mpeg4"}, {"first_pid": 0x200}, {"codec": "libx265", "first_pid": 0x200}],
    ids=str,
)
def test_a_feed_whose_video_changes_its_codec_or_place_goes_on_with_another_segment(
    tmp_path: Path, after: dict[str, Any]
) -> None:
    """Without a loss: not one access unit of either is missing."""
    both, port = tmp_path / "both.ts", free_port()
    first = make_clip(tmp_path / "first.ts", pictures=20).read_bytes()
    both.write_bytes(first + make_clip(tmp_path / "second.ts", pictures=30, **after).read_bytes())
    with (
        nothing_left(),
        UdpSender(both, port, bit_rate=1_000_000) as sender,
        open_source(feed(f"udp://127.0.0.1:{port}")) as source,
    ):
        segments = source.segments()
        segment = next(segments)
        kind = segment.info.codec, segment.video.id
        assert pictures_of(list(segment.packets())) == list(range(20))
        segment = next(segments)
        assert (segment.info.codec, segment.video.id) != kind
        then = list(segment.packets())
        sent_ns = sender.sent_ns
        with pytest.raises(SourceLost, match=r"no packet for 2 s"):
            next(segments)
    assert pictures_of(then) == list(range(30))
    assert then[0].packet.is_keyframe
    arrived = [round((packet.capture_ns - sent_ns[len(first) // 1316]) / 1e6) for packet in then]
    assert -5 <= arrived[0] <= 60
    assert arrived == sorted(arrived)


def test_a_data_stream_that_is_added_to_a_feed_is_found(tmp_path: Path) -> None:
    both, port = tmp_path / "both.ts", free_port()
    first = make_clip(tmp_path / "first.ts", pictures=20).read_bytes()
    both.write_bytes(first + make_clip(tmp_path / "second.ts", pictures=30, klv=True).read_bytes())
    with UdpSender(both, port, bit_rate=1_000_000), open_source(feed(f"udp://127.0.0.1:{port}")) as source:
        segments = source.segments()
        assert len(list(next(segments).packets())) == 20
        assert len([packet for packet in next(segments).packets() if packet.kind == "data"]) == 30


def test_a_feed_that_changes_its_size_goes_on_as_it_is(tmp_path: Path) -> None:
    both, port = tmp_path / "both.ts", free_port()
    first = make_clip(tmp_path / "first.ts", pictures=20).read_bytes()
    both.write_bytes(first + make_clip(tmp_path / "second.ts", pictures=30, size=(320, 240)).read_bytes())
    with UdpSender(both, port, bit_rate=1_000_000):
        packets, _ = read_until_lost(f"udp://127.0.0.1:{port}")
    assert pictures_of(packets) == [*range(20), *range(30)]


def test_a_reader_that_is_busy_for_longer_than_the_timeout_loses_nothing(tmp_path: Path) -> None:
    clip, port = make_clip(tmp_path / "clip.ts", pictures=20), free_port()
    seen: list[SourcePacket] = []
    with (
        UdpSender(clip, port) as sender,
        open_source(feed(f"udp://127.0.0.1:{port}", read_timeout=0.05)) as source,
    ):
        for packet in next(source.segments()).packets():
            if not seen:
                sender.wait()
                threading.Event().wait(0.1)
            seen.append(packet)
    assert pictures_of(seen) == list(range(20))


@pytest.mark.parametrize("url", ["udp://127.0.0.1", "udp://127.0.0.1:99999", "udp://h:1/x", "udp://h:1?fifo_size=9"])
def test_an_address_without_meaning_is_refused_with_its_form(url: str) -> None:
    with pytest.raises(SourceUnsupported, match=r"must be udp://HOST:PORT") as wrong:
        UdpAddress.of(url)
    assert wrong.value.reason == "address"


def test_an_address_that_cannot_be_listened_to_may_come_back() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"udp://127.0.0.1:{taken.getsockname()[1]}"
        with nothing_left(), open_source(feed(url)) as source, pytest.raises(SourceLost, match="already in use"):
            next(source.segments())
