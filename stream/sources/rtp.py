"""Lost RTP packets: FFmpeg mentions them only in its log, and gives out the rest of a picture as if it were whole."""

from __future__ import annotations

from av.packet import Packet
from av.stream import Stream

from stream.codecs.ffmpeg_log import Line, has_line_starting_with
from stream.sources.parameter_sets import START_CODE, kind

MISSED = "RTP: missed"
"""Beginning of FFmpeg's log line about packets that it has given up."""
SLICES = {"h264": (1, range(1, 6)), "hevc": (2, range(32))}
"""By codec: bytes in the header of a NAL unit, and the NAL unit types of slices."""
SEEN_BY_FFMPEG = {"mjpeg", "vp8"}
"""Codecs whose pictures with a missing packet FFmpeg leaves out, or marks together with those that refer to them."""


class RtpLosses:
    """Marks access units that packets may be missing from. Pure, for the video of one source.

    FFmpeg does not say which stream lost a packet: if data is read too, it may have been that.
    """

    def __init__(self, lines: list[Line]) -> None:
        """`lines` collects what FFmpeg logs; each line is removed once it has been looked at."""
        self._lines = lines
        self._missed = False  # since the last access unit
        self._doubtful = False  # the beginning of the next access unit may be missing

    def note(self) -> None:
        """Look at what FFmpeg has logged."""
        self._missed = self._missed or has_line_starting_with(self._lines, MISSED)
        self._lines.clear()

    def mark(self, packet: Packet[Stream], codec: str) -> None:
        """Mark an access unit as corrupt if a part of it may be missing; to be called for each one, as it is read.

        FFmpeg knows the end of a picture by the beginning of the next, so a packet missed between may belong to either.
        """
        self.note()
        missed, self._missed = self._missed, False
        if codec in SEEN_BY_FFMPEG or not (missed or self._doubtful):
            return
        headless = self._doubtful and not begins_whole(codec, bytes(packet))
        packet.is_corrupt = packet.is_corrupt or missed or headless
        self._doubtful = missed or headless


def begins_whole(codec: str, unit: bytes) -> bool:
    """Whether the first slice of an access unit (Annex B) is the first one of its picture.

    H.264 (7.3.3) says so by `first_mb_in_slice`, HEVC (7.3.6.1) by `first_slice_segment_in_pic_flag`: the first bit
    after the header in both. Access units of other codecs always begin with the beginning of a picture.
    """
    if codec not in SLICES:
        return True
    header, kinds = SLICES[codec]
    slices = (part for part in unit.split(START_CODE)[1:] if part and kind(codec, part) in kinds)
    first = next(slices, b"")
    return len(first) > header and first[header] & 0x80 > 0
