"""Puts parameter sets, which say how to decode pictures, into key frames that come without them."""

from __future__ import annotations

from av.packet import Packet
from av.stream import Stream

from stream.sources.fields import rewritten

START_CODE = b"\x00\x00\x01"
DELIMITERS = {"h264": 9, "hevc": 35}
"""Types of the delimiter that an access unit may begin with, before its parameter sets."""
KINDS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "h264": (0, 0x1F, (7, 8)),
    "hevc": (1, 0x3F, (32, 33, 34)),
    "mpeg4": (0, 0xFF, (0xB0, 0xB5, *range(0x30))),
}
"""By codec: shift and mask that extract the type from the first byte after a start code, and the types of parameter
sets, in the order in which they depend on each other."""


class ParameterSets:
    """Gives each key frame its parameter sets, so that decoding can begin with it. For the video of one segment."""

    def __init__(self, codec: str, stored: bytes) -> None:
        """`stored` (Annex B) are parameter sets that came apart from the pictures, as in a camera's SDP."""
        self._codec = codec
        self._latest = parameter_sets(codec, stored)

    def complete(self, packet: Packet[Stream]) -> Packet[Stream]:
        """The access unit as it is, or with the latest parameter sets if it is a key frame that lacks some."""
        if packet.is_keyframe and self._codec in KINDS:
            unit = bytes(packet)
            own = parameter_sets(self._codec, unit)
            missing = self._latest.keys() - own.keys()
            self._latest |= own
            if missing:
                begin = len(delimiter(self._codec, unit))
                whole = b"".join(self._latest.get(each, b"") for each in KINDS[self._codec][2])
                return rewritten(packet, unit[:begin] + whole + unit[begin:])
        return packet


def parameter_sets(codec: str, unit: bytes) -> dict[int, bytes]:
    """Parameter sets in an access unit of H.264, HEVC (Annex B) or MPEG-4, by type; none for other codecs."""
    found: dict[int, bytes] = {}
    if codec in KINDS:
        _, *parts = unit.split(START_CODE)
        for part in parts:
            if part and (number := kind(codec, part)) in KINDS[codec][2]:
                found[number] = found.get(number, b"") + START_CODE + part
    return found


def delimiter(codec: str, unit: bytes) -> bytes:
    """The access unit delimiter that an access unit begins with; empty if there is none."""
    before, *parts = unit.split(START_CODE, 2)
    if codec in DELIMITERS and len(parts) > 1 and parts[0] and kind(codec, parts[0]) == DELIMITERS[codec]:
        return before + START_CODE + parts[0]
    return b""


def kind(codec: str, part: bytes) -> int:
    """The type, as numbered by the codec, of what follows a start code."""
    shift, bits, _ = KINDS[codec]
    return part[0] >> shift & bits
