"""Parameter sets, which say how pictures are to be decoded, in front of key frames that come without them."""

from __future__ import annotations

from av.packet import Packet
from av.stream import Stream

from stream.sources.fields import rewritten

START_CODE = b"\x00\x00\x01"
DELIMITERS = {"h264": 9, "hevc": 35}
"""What an access unit may begin with, before its parameter sets."""
KINDS: dict[str, tuple[int, int, frozenset[int]]] = {
    "h264": (0, 0x1F, frozenset({7, 8})),
    "hevc": (1, 0x3F, frozenset({32, 33, 34})),
    "mpeg4": (0, 0xFF, frozenset({*range(0x30), 0xB0, 0xB5})),
}
"""By codec: where the first byte behind a start code says what follows, in which bits, and the kinds that are meant."""


class ParameterSets:
    """Gives each key frame its parameter sets, so that decoding can begin with it. For the video of one segment."""

    def __init__(self, codec: str, stored: bytes) -> None:
        """`stored` (Annex B) are those that came apart from the pictures, as in the SDP of a camera."""
        self._codec = codec
        self._latest = parameter_sets(codec, stored)

    def complete(self, packet: Packet[Stream]) -> Packet[Stream]:
        """The access unit as it is, or, if it is a key frame without parameter sets, with the latest ones."""
        if packet.is_keyframe:
            unit = bytes(packet)
            if own := parameter_sets(self._codec, unit):
                self._latest = own
            elif self._latest:
                begin = len(delimiter(self._codec, unit))
                return rewritten(packet, unit[:begin] + self._latest + unit[begin:])
        return packet


def parameter_sets(codec: str, unit: bytes) -> bytes:
    """Those of an access unit of H.264, HEVC (Annex B) or MPEG-4; of others nothing."""
    if codec not in KINDS:
        return b""
    _, *parts = unit.split(START_CODE)
    return b"".join(START_CODE + part for part in parts if part and kind(codec, part) in KINDS[codec][2])


def delimiter(codec: str, unit: bytes) -> bytes:
    """The access unit delimiter that an access unit begins with; nothing where there is none."""
    before, *parts = unit.split(START_CODE, 2)
    if codec in DELIMITERS and len(parts) > 1 and parts[0] and kind(codec, parts[0]) == DELIMITERS[codec]:
        return before + START_CODE + parts[0]
    return b""


def kind(codec: str, part: bytes) -> int:
    """What stands behind a start code, by the numbers of its codec."""
    shift, bits, _ = KINDS[codec]
    return part[0] >> shift & bits
