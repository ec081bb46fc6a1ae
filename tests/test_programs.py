from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import av
import pytest

from stream.source import open_source
from stream.sources.programs import PACKET_BYTES, Programs, section_of
from stream.sources.reader import choose
from tests.clips import UdpSender, free_port, make_clip
from tests.reading import feed

H264, HEVC, KLV = 0x1B, 0x24, 0x06


def stream(folder: Path, name: str, **options: object) -> bytes:
    return make_clip(folder / f"{name}.ts", pictures=12, **options).read_bytes()  # type: ignore[arg-type]


def changes(data: bytes) -> list[int]:
    """Where a stream says something new, cut as it comes over UDP."""
    programs, found = Programs(), []
    for start in range(0, len(data), 7 * PACKET_BYTES):
        change = programs.change_in(data[start : start + 7 * PACKET_BYTES])
        if change is not None:
            found.append(start + change)
            programs = Programs()
    return found


def test_a_stream_that_stays_what_it_is_says_nothing_new(tmp_path: Path) -> None:
    data = stream(tmp_path, "a", klv=True)
    assert changes(data * 3) == []


@pytest.mark.parametrize(
    "after", [{"codec": "libx265"}, {"codec": "mpeg4"}, {"first_pid": 0x200}, {"klv": True}], ids=str
)
def test_another_codec_another_place_and_another_stream_are_noticed_at_their_table(
    tmp_path: Path, after: dict[str, object]
) -> None:
    first, second = stream(tmp_path, "a"), stream(tmp_path, "b", **after)
    [place] = changes(first + second)
    table = (first + second)[place : place + PACKET_BYTES]
    assert len(first) <= place < len(first) + 3 * PACKET_BYTES
    assert table[1] & 0x1F or table[2], "not the table of programs"


def test_a_new_size_is_nothing_new(tmp_path: Path) -> None:
    assert changes(stream(tmp_path, "a") + stream(tmp_path, "b", size=(320, 240))) == []


def test_the_table_of_programs_is_kept(tmp_path: Path) -> None:
    programs, data = Programs(), stream(tmp_path, "a")
    programs.change_in(data)
    assert section_of(programs.associations, 0) == (0, ((1, 0x1000),))


def test_a_table_tells_types_and_places(tmp_path: Path) -> None:
    data = stream(tmp_path, "a", klv=True)
    packets = [data[start : start + PACKET_BYTES] for start in range(0, len(data), PACKET_BYTES)]
    [table] = {section_of(packet, 2) for packet in packets if packet[1] & 0x1F == 0x10 and packet[2] == 0}
    assert table == (1, ((H264, 0x100), (KLV, 0x101)))


def packet_of(pid: int, table: int, number: int, section: int, body: bytes) -> bytes:
    """A transport packet with one section of a table."""
    head = bytes([table, 0xB0, 5 + len(body) + 4]) + number.to_bytes(2, "big") + bytes([0xC1, section, 1])
    packet = bytes([0x47, 0x40 | pid >> 8, pid & 0xFF, 0x10, 0]) + head + body + checksum(head + body)
    return packet.ljust(PACKET_BYTES, b"\xff")


def checksum(section: bytes) -> bytes:
    """CRC-32 of ISO/IEC 13818-1, annex A, bit by bit."""
    rest = 0xFFFFFFFF
    for byte in section:
        rest ^= byte << 24
        for _ in range(8):
            rest = (rest << 1 ^ (0x04C11DB7 if rest & 0x80000000 else 0)) & 0xFFFFFFFF
    return rest.to_bytes(4, "big")


def associations(section: int, *maps: tuple[int, int]) -> bytes:
    """A section of the PAT, with number of the program and PID of its map."""
    return packet_of(
        0, 0, 1, section, b"".join(n.to_bytes(2, "big") + (0xE000 | p).to_bytes(2, "big") for n, p in maps)
    )


def program_map(pid: int, program: int, video: int, data: int | None = None) -> bytes:
    """A PMT of a program with H.264 at one PID and, if that is given, KLV at another."""
    pointer = (0xE000 | video).to_bytes(2, "big")
    body = pointer + b"\xf0\x00" + bytes([H264]) + pointer + b"\xf0\x00"
    if data is not None:
        body += bytes([KLV]) + (0xE000 | data).to_bytes(2, "big") + b"\xf0\x06\x05\x04KLVA"
    return packet_of(pid, 2, program, 0, body)


def two_programs(path: Path) -> Path:
    """A transport stream of two cameras, each in a program of its own with data of its own."""
    parts = []
    for name, place in (("a", 0x100), ("b", 0x300)):
        data = stream(path.parent, name, klv=True, first_pid=place)
        packets = [data[start : start + PACKET_BYTES] for start in range(0, len(data), PACKET_BYTES)]
        parts.append([packet for packet in packets if (packet[1] & 0x1F) << 8 | packet[2] in (place, place + 1)])
    tables = associations(0, (1, 0x20), (2, 0x21))
    tables += program_map(0x20, 1, 0x100, 0x101) + program_map(0x21, 2, 0x300, 0x301)
    path.write_bytes(tables + b"".join(one + other for one, other in zip(*parts, strict=False)))
    return path


@pytest.mark.parametrize("live", [False, True])
def test_data_of_another_camera_in_the_same_transport_stream_is_left_out(tmp_path: Path, live: bool) -> None:
    clip, port = two_programs(tmp_path / "both.ts"), free_port()
    with (
        UdpSender(clip, port, bit_rate=1_000_000) if live else nullcontext(),
        open_source(feed(f"udp://127.0.0.1:{port}" if live else clip)) as source,
    ):
        segment = next(source.segments())
        places = {packet.packet.stream.id for packet in segment.packets()}
    assert places == {0x100, 0x101}
    assert (segment.info.data, segment.info.ignored) == (("klv",), ("video h264", "data klv"))


def test_data_of_another_camera_is_not_even_fetched_over_the_network(tmp_path: Path) -> None:
    with av.open(str(two_programs(tmp_path / "both.ts"))) as container:
        assert [each.id for each in choose(container)] == [0x100, 0x101]


def test_programs_whose_maps_share_a_place_are_told_apart() -> None:
    both = associations(0, (1, 0x20), (2, 0x20)) + program_map(0x20, 1, 0x100) + program_map(0x20, 2, 0x200)
    programs = Programs()
    assert programs.change_in(both * 3) is None
    assert programs.change_in(program_map(0x20, 1, 0x100) + program_map(0x20, 2, 0x201)) == PACKET_BYTES


def test_a_table_of_programs_may_have_several_sections() -> None:
    sections = associations(0, (1, 0x20)) + associations(1, (2, 0x21))
    programs = Programs()
    assert programs.change_in((sections + program_map(0x20, 1, 0x100) + program_map(0x21, 2, 0x200)) * 3) is None
    assert programs.change_in(program_map(0x20, 1, 0x101)) == 0, "the map that the first section tells is still watched"
    assert programs.change_in(associations(0, (1, 0x20)) + associations(1, (3, 0x21))) == PACKET_BYTES


def test_a_program_that_no_section_tells_is_not_looked_at() -> None:
    programs = Programs()
    assert programs.change_in(associations(0, (1, 0x20)) + program_map(0x20, 7, 0x100)) is None
    assert programs.change_in(program_map(0x20, 7, 0x200)) is None


def test_bytes_that_are_no_transport_stream_mean_nothing() -> None:
    programs = Programs()
    for size in (0, 1, 187, 188, 1316, 1317, 50_000):
        assert programs.change_in(os.urandom(size)) is None or size > 188
        assert programs.change_in(b"\x47" * size) is None


def test_damaged_tables_are_not_believed(tmp_path: Path) -> None:
    data = bytearray(stream(tmp_path, "a", klv=True))
    programs = Programs()
    programs.change_in(bytes(data))
    for start in range(0, len(data), PACKET_BYTES):
        data[start + 1] |= 0x80  # the radio says that it could not repair the packet
        data[start + 20 : start + 40] = os.urandom(20)
    assert programs.change_in(bytes(data)) is None


def test_a_table_with_a_wrong_bit_that_nobody_has_noticed_is_not_believed() -> None:
    whole = associations(0, (1, 0x20)) + program_map(0x20, 1, 0x100)
    for bit in range(8 * 13, 8 * 34):  # from the program's number on, to the end of the map
        programs, damaged = Programs(), bytearray(whole)
        damaged[PACKET_BYTES + bit // 8 - 5] ^= 1 << bit % 8
        assert programs.change_in(whole) is None
        assert programs.change_in(bytes(damaged)) is None


def test_pictures_come_with_the_first_packet_of_a_stream_that_is_said_to_hold_them(tmp_path: Path) -> None:
    data = stream(tmp_path, "a", klv=True)
    packets = [data[start : start + PACKET_BYTES] for start in range(0, len(data), PACKET_BYTES)]
    place = next(number for number, packet in enumerate(packets) if packet[1] & 0x1F == 1 and packet[2] == 0)
    programs = Programs()
    come = [(programs.change_in(packet), programs.pictures_come)[1] for packet in packets]
    assert come == [False] * place + [True] * (len(packets) - place)
