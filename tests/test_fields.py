from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest
from av.stream import Stream

from stream.codecs.h264 import nal_units
from stream.decode import Decoder
from stream.frame import Frame, SourcePacket
from stream.settings import FeedSettings
from stream.source import open_source
from stream.sources.fields import FieldPairs
from tests.clips import make_clip

SIDE = 4
"""Of a picture, in macroblocks."""
GROUP = 8
"""Pictures from one key frame to the next."""
PICTURES = 24
DARKEST = 40
"""Luma of the first picture; each one after it is brighter by one."""
DELIMITER = bytes.fromhex("000000010910")
SEQUENCE_SET, PICTURE_SET, KEY_SLICE, SLICE = 0x67, 0x68, 0x65, 0x61
"""First bytes of NAL units."""


class Bits:
    """Writes a NAL unit."""

    def __init__(self) -> None:
        self._text = ""

    def put(self, *numbers: int, bits: int = 1) -> Bits:
        """Numbers of so many bits each."""
        self._text += "".join(f"{number:0{bits}b}" for number in numbers)
        return self

    def count(self, *numbers: int) -> Bits:
        """Numbers of variable length."""
        self._text += "".join(f"{number + 1:0{2 * (number + 1).bit_length() - 1}b}" for number in numbers)
        return self

    def macroblock(self, luma: int) -> Bits:
        """One that is not compressed, without colour."""
        self.count(25)._align()
        self._text += f"{luma:08b}" * 256 + f"{128:08b}" * 128
        return self

    def unit(self, head: int) -> bytes:
        """The NAL unit with this first byte."""
        self.put(1)._align()
        written = bytearray()
        for byte in int(self._text, 2).to_bytes(len(self._text) // 8, "big"):
            if written[-2:] == bytes(2) and byte <= 3:
                written.append(3)
            written.append(byte)
        return b"\0\0\0\1" + bytes([head]) + written

    def _align(self) -> None:
        self._text += "0" * (-len(self._text) % 8)


def parameter_sets() -> bytes:
    sequence = Bits().put(77, 0, 30, bits=8).count(0, 0, 2, 1).put(0).count(SIDE - 1, SIDE // 2 - 1)
    picture = Bits().count(0, 0).put(0, 0).count(0, 0, 0).put(0, 0, 0).count(0, 0, 0).put(0, 0, 0)
    return sequence.put(0, 0, 1, 0, 0).unit(SEQUENCE_SET) + picture.unit(PICTURE_SET)


def field(number: int, bottom: bool) -> bytes:
    """A field of picture `number`, as an access unit."""
    key = number % GROUP == 0 and not bottom
    bits = Bits().count(0, 7, 0).put(number % GROUP, bits=4).put(1, int(bottom))
    bits = bits.count(0).put(0, 0) if key else bits.put(0)
    bits.count(0)
    for _ in range(SIDE * SIDE // 2):
        bits.macroblock(DARKEST + number)
    return DELIMITER + (parameter_sets() if key else b"") + bits.unit(KEY_SLICE if key else SLICE)


def begins_alone(pair: bytes) -> bytes:
    """A picture with its parameter sets: pictures that refer to no other count as key frames to FFmpeg."""
    return pair if parameter_sets() in pair else DELIMITER + parameter_sets() + pair.removeprefix(DELIMITER)


def fields() -> list[bytes]:
    """Two of each picture, top first."""
    return [field(number, bottom) for number in range(PICTURES) for bottom in (False, True)]


def transport_stream(path: Path, units: list[bytes], ticks: int) -> Path:
    """A packet for each of the units, which are so many ticks of 90 kHz apart."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16 * SIDE, 16 * SIDE, "yuv420p"
        for number, unit in enumerate(units):
            packet = av.Packet(unit)
            packet.stream, packet.time_base = stream, Fraction(1, 90_000)
            packet.pts = packet.dts = number * ticks
            container.mux(packet)
    return path


def read(path: Path) -> tuple[list[SourcePacket], list[Frame], int]:
    """The access units of a clip, its pictures, and how many access units gave none."""
    with open_source(FeedSettings(url=str(path))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        units = list(segment.packets())
        frames = [frame for unit in units for frame in decoder.decode(unit)] + decoder.flush()
    return units, frames, decoder.lost


def lumas(frames: list[Frame]) -> list[int]:
    return [int(frame.planes()[0].mean()) for frame in frames]


@pytest.mark.parametrize("together", [True, False], ids=["one time stamp", "two time stamps"])
def test_two_fields_are_one_access_unit_and_one_picture(tmp_path: Path, together: bool) -> None:
    single = fields()
    pairs = [first + second for first, second in zip(single[::2], single[1::2], strict=True)]
    clip = transport_stream(tmp_path / "clip.ts", pairs if together else single, 3600 if together else 1800)
    units, frames, lost = read(clip)
    assert [bytes(unit.packet) for unit in units] == [begins_alone(pair) for pair in pairs]
    assert [unit.packet.pts for unit in units] == [number * 3600 for number in range(PICTURES)]
    assert {unit.packet.duration for unit in units} == {3600}
    assert lumas(frames) == [DARKEST + number for number in range(PICTURES)]
    assert {frame.state for frame in frames} == {"clean"}
    assert lost == 0


def test_fields_without_time_stamps_last_as_long_as_their_picture(tmp_path: Path) -> None:
    clip = tmp_path / "clip.h264"
    clip.write_bytes(b"".join(fields()))
    units, frames, lost = read(clip)
    assert {(unit.packet.duration or 0) * unit.packet.time_base for unit in units} == {Fraction(1, 25)}
    assert (len(frames), lost) == (PICTURES, 0)


@pytest.mark.parametrize("missing", [20, 21], ids=["top", "bottom"])
def test_a_field_whose_other_one_is_missing_stays_alone(tmp_path: Path, missing: int) -> None:
    left = [unit for number, unit in enumerate(fields()) if number != missing]
    units, frames, lost = read(transport_stream(tmp_path / "clip.ts", left, 1800))
    alone = [number for number, unit in enumerate(units) if len(slices(unit)) == 1]
    assert (len(units), alone) == (PICTURES, [10])
    assert len(frames) + lost == PICTURES


@pytest.mark.parametrize("interlaced", [True, False])
def test_whole_pictures_pass_untouched(tmp_path: Path, interlaced: bool) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=5, interlaced=interlaced)
    with av.open(str(clip)) as container:
        packets = [bytes(packet) for packet in container.demux() if packet.size]
    units, _, lost = read(clip)
    assert [bytes(unit.packet) for unit in units] == packets
    assert all(unit.packet.pos is not None for unit in units), "they are what the demuxer gave"
    assert lost == 0


def test_both_fields_in_one_access_unit_wait_for_nothing() -> None:
    """As they are stored in files other than transport streams."""
    packet: av.Packet[Stream] = av.Packet(field(0, False) + field(0, True))
    source = SourcePacket(packet, "video", 0, 0, "arrival")
    assert list(FieldPairs(b"").add(source)) == [source]


def slices(unit: SourcePacket) -> list[int]:
    return [kind for kind, _, _ in nal_units(bytes(unit.packet)) if kind in (1, 5)]
