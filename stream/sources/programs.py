"""What an MPEG transport stream says about itself: which programs it holds, and which streams they have."""

from __future__ import annotations

import zlib

PACKET_BYTES = 188
SYNC = 0x47
ASSOCIATIONS_PID = 0
"""PID of the program association table (PAT), which gives the PID of each program map table (PMT)."""
ASSOCIATIONS, PROGRAM_MAP = 0x00, 0x02
"""Identifiers (`table_id`) of the two tables."""
SOUND = {0x03, 0x04, 0x0F, 0x11, 0x81, 0x83, 0x84, 0x87}
"""Stream types that may come and go without any effect on a feed."""
PICTURES = {0x01, 0x02, 0x10, 0x1B, 0x24}
"""Stream types of MPEG-1 and MPEG-2 video, MPEG-4, H.264 and HEVC."""

MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Each byte with its bits reversed: a table's checksum takes the highest bit first, zlib's the lowest."""
INTACT = 0xFFFF_FFFF
"""zlib's checksum of an intact section, its own checksum included."""

Entries = tuple[tuple[int, int], ...]


class Programs:
    """Notices where the programs of a transport stream, or their video and data streams, change. Pure.

    Tables larger than one transport packet are ignored.
    """

    def __init__(self) -> None:
        self.associations = b""
        """The last transport packet with the program association table."""
        self.pictures_come = False
        """Whether packets have come of a stream with one of the types `PICTURES`."""
        self._pictures: set[int] = set()  # PIDs of such streams
        self._known: dict[tuple[int, int], Entries] = {}  # by PID, and number of the program or of the PAT's section
        self._maps: dict[int, set[int]] = {}  # numbers of the programs by the PID of their map

    def change_in(self, data: bytes) -> int | None:
        """Offset in `data`, whole transport packets, of the first packet whose table differs from before; None: none.

        A table that comes for the first time is no change. Bytes that are not a transport packet are ignored.
        """
        for start in range(0, len(data) - PACKET_BYTES + 1, PACKET_BYTES):
            packet = data[start : start + PACKET_BYTES]
            pid = (packet[1] & 0x1F) << 8 | packet[2]
            self.pictures_come = self.pictures_come or pid in self._pictures
            if packet[0] != SYNC or not (pid == ASSOCIATIONS_PID or pid in self._maps):
                continue
            said = section_of(packet, ASSOCIATIONS if pid == ASSOCIATIONS_PID else PROGRAM_MAP)
            if said is None:
                continue
            number, entries = said
            if pid == ASSOCIATIONS_PID:
                self.associations = packet
                for program, of_map in entries:
                    self._maps.setdefault(of_map, set()).add(program)
            elif number not in self._maps[pid]:
                continue
            else:
                self._pictures.update(place for kind, place in entries if kind in PICTURES)
            if self._known.setdefault((pid, number), entries) != entries:
                return start
        return None


def section_of(packet: bytes, table: int) -> tuple[int, Entries] | None:
    """For a PAT: number of the section, and program number and PID of the map of each program in it.

    For a PMT: program number, and type and PID of each stream except sound. None for anything else.
    """
    damaged, begins, has_payload = packet[1] & 0x80, packet[1] & 0x40, packet[3] & 0x10
    start = 4 + (1 + packet[4] if packet[3] & 0x20 else 0)
    if damaged or not begins or not has_payload or start >= PACKET_BYTES:
        return None
    section = packet[start + 1 + packet[start] :]
    if len(section) < 12 or section[0] != table or not section[5] & 1:  # describes a later state
        return None
    size = 3 + ((section[1] & 0x0F) << 8 | section[2])
    if size > len(section) or zlib.crc32(section[:size].translate(MIRRORED)) != INTACT:
        return None
    end = size - 4  # without the checksum
    if table == ASSOCIATIONS:
        return section[6], programs(section[8:end])
    return section[3] << 8 | section[4], streams(section[10:end])


def programs(body: bytes) -> Entries:
    """Program number and PID of the map of each program in the body of a PAT."""
    rows = (body[at : at + 4] for at in range(0, len(body) - 3, 4))
    return tuple((row[0] << 8 | row[1], (row[2] & 0x1F) << 8 | row[3]) for row in rows if row[0] or row[1])


def streams(body: bytes) -> Entries:
    """Type and PID of each stream except sound, in the body of a PMT from `program_info_length` on."""
    found = []
    at = 2 + ((body[0] & 0x0F) << 8 | body[1]) if len(body) > 1 else len(body)
    while at + 5 <= len(body):
        if body[at] not in SOUND:
            found.append((body[at], (body[at + 1] & 0x1F) << 8 | body[at + 2]))
        at += 5 + ((body[at + 3] & 0x0F) << 8 | body[at + 4])
    return tuple(found)
