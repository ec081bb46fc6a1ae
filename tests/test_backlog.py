from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from av.packet import Packet
from av.stream import Stream

from stream.sources import backlog as module
from stream.sources.backlog import Arrival, Backlog
from tests.clips import make_clip


@pytest.fixture(scope="module")
def packets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Packet[Stream]]]:
    """30 access units, every tenth a key frame, with a data packet in front of each."""
    clip: Path = make_clip(tmp_path_factory.mktemp("clip") / "clip.ts", pictures=30, key_interval=10, klv=True)
    with av.open(str(clip)) as container:
        yield [packet for packet in container.demux() if packet.size]


def video(packets: list[Packet[Stream]]) -> list[Packet[Stream]]:
    return [packet for packet in packets if packet.stream.type == "video"]


def fill(backlog: Backlog, packets: list[Packet[Stream]], step: float = 0.1) -> None:
    for number, packet in enumerate(packets):
        backlog.add(Arrival(packet, packet.stream.type == "video", 0, number * step))


def left(backlog: Backlog) -> list[Packet[Stream]]:
    taken = []
    while (arrival := backlog.take()) is not None:
        taken.append(arrival.packet)
    return taken


def test_what_is_young_enough_stays_in_order(packets: list[Packet[Stream]]) -> None:
    backlog = Backlog(age_budget=10.0)
    fill(backlog, packets)
    assert backlog.bytes == sum(packet.size for packet in packets)
    assert left(backlog) == packets
    assert (backlog.dropped, backlog.bytes, len(backlog)) == (0, 0, 0)


def test_what_is_too_old_is_dropped_up_to_the_next_key_frame(packets: list[Packet[Stream]]) -> None:
    backlog, units = Backlog(age_budget=1.0), video(packets)
    fill(backlog, units[:12])
    assert backlog.dropped == 10
    assert left(backlog) == units[10:12]


def test_without_a_key_frame_all_is_dropped_until_one_comes(packets: list[Packet[Stream]]) -> None:
    backlog, units = Backlog(age_budget=0.5), video(packets)
    fill(backlog, units[:9])
    assert left(backlog) == []
    fill(backlog, units[9:13])
    assert backlog.dropped == 10
    assert left(backlog) == units[10:13]


def test_data_packets_are_no_access_units(packets: list[Packet[Stream]]) -> None:
    backlog = Backlog(age_budget=3.0)
    fill(backlog, packets)
    rest = left(backlog)
    assert len(rest) > len(video(rest)) > 0
    assert backlog.dropped == 30 - len(video(rest))
    assert video(rest)[0].is_keyframe


def test_a_flood_is_cut_whatever_its_age(packets: list[Packet[Stream]], monkeypatch: pytest.MonkeyPatch) -> None:
    units = video(packets)
    monkeypatch.setattr(module, "LARGEST_BACKLOG", sum(unit.size for unit in units[:15]))
    backlog = Backlog(age_budget=100.0)
    fill(backlog, units, step=0.0)
    assert backlog.bytes <= module.LARGEST_BACKLOG
    assert left(backlog) == units[backlog.dropped :]


def test_a_single_packet_is_kept_however_large_it_is(
    packets: list[Packet[Stream]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST_BACKLOG", 1)
    backlog = Backlog(age_budget=1.0)
    fill(backlog, video(packets)[:1])
    assert left(backlog) == video(packets)[:1]
