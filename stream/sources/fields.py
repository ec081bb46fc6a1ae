"""Joins the two fields of an interlaced H.264 picture if each comes as an access unit of its own."""

from __future__ import annotations

from collections.abc import Iterator

from av.packet import Packet
from av.stream import Stream
from msgspec.structs import replace

from stream.codecs.h264 import Headers, Slice
from stream.frame import SourcePacket


class FieldPairs:
    """Joins two fields into one access unit; all others pass untouched. Pure, for the video of one segment."""

    def __init__(self, parameter_sets: bytes) -> None:
        """`parameter_sets` (Annex B) are those from outside the stream."""
        self._headers = Headers(parameter_sets)
        self._waiting: tuple[SourcePacket, Slice] | None = None  # a first field that waits for its second

    def add(self, source: SourcePacket) -> Iterator[SourcePacket]:
        """The access units that this one completes, in order. A first field waits for what comes after it."""
        unit = bytes(source.packet)
        header = self._headers.first_slice(unit)
        if self._waiting is not None and header is not None and self._waiting[1].is_completed_by(header):
            first, self._waiting = self._waiting[0], None
            yield replace(first, packet=joined(first.packet, source.packet))
            return
        yield from self.flush()
        if header is None or header.field is None or any(map(header.is_completed_by, self._headers.slices(unit))):
            yield source
        else:
            self._waiting = source, header

    def flush(self) -> Iterator[SourcePacket]:
        """The first field that still waits, if any, since its second will not come."""
        if self._waiting is not None:
            field, self._waiting = self._waiting[0], None
            yield field


def joined(first: Packet[Stream], second: Packet[Stream]) -> Packet[Stream]:
    """One packet of two fields; if the second has no time of its own, the first one's duration covers both."""
    whole = rewritten(first, bytes(first) + bytes(second))
    if second.pts not in (None, first.pts):
        whole.duration = (first.duration or 0) + (second.duration or 0)
    whole.is_corrupt = first.is_corrupt or second.is_corrupt
    return whole


def rewritten(packet: Packet[Stream], data: bytes) -> Packet[Stream]:
    """A copy of the packet with other bytes, and without side data."""
    other: Packet[Stream] = Packet(data)
    other.stream, other.time_base = packet.stream, packet.time_base
    other.pts, other.dts, other.duration = packet.pts, packet.dts, packet.duration
    other.is_keyframe, other.is_corrupt = packet.is_keyframe, packet.is_corrupt
    return other
