"""Detects loss in H.264 access units (Annex B): whether pictures are missing that later ones refer to. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Self

START = b"\x00\x00\x01"
SLICE, IDR_SLICE, MESSAGES, SEQUENCE_SET, PICTURE_SET = 1, 5, 6, 7, 8
"""Types of NAL units; messages are supplemental enhancement information (SEI)."""
RECOVERY_POINT = 6
"""Type of the SEI message after which decoding leads to complete pictures (clause D.2.8)."""
SLICE_HEADER_BYTES = 40
"""More than a slice header takes up to its picture order count."""
SEQUENCE_SET_BYTES, PICTURE_SET_BYTES = 4096, 64
"""More than the part of parameter sets that is read."""
MESSAGES_BYTES = 1024
"""More than SEI messages take up to the end of a recovery point."""
MOST_MESSAGES = 8
"""SEI NAL units that are searched for a recovery point, which comes in one of the first."""
MOST_SEQUENCE_SETS, MOST_PICTURE_SETS = 32, 256
"""Most that the standard allows in a stream; they are numbered from 0."""
LONGEST_CODE = 31
"""Leading zeros of an Exp-Golomb code, at most."""
MOST_NAL_UNITS = 256
"""More than a picture has, of slices and what comes before them."""
WITH_CHROMA_FORMAT = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244}
"""Profiles whose sequence parameter sets say their chroma format."""
SEPARATE_PLANES = 3
"""Chroma format 4:4:4, the only one in which colour planes may be coded separately."""
ORDERS_KEPT = 256
"""Remembered picture order counts, of the latest pictures; a repetition further back tells nothing new."""


class ReferenceCheck:
    """Finds missing access units of one stream by the counters of those that come, in decoding order.

    `frame_num` (clause 7.4.3) counts reference pictures, so a gap means that at least one of them is missing. Picture
    order counts restart at an IDR picture and otherwise never repeat (8.2.1), so a repetition means that one is
    missing. A loss of exactly as many pictures as a counter has values goes unnoticed.
    """

    def __init__(self, parameter_sets: bytes = b"") -> None:
        """`parameter_sets` (Annex B) are those from outside the stream."""
        self._headers = Headers(parameter_sets)
        self.announces_refresh = False
        """Whether the last access unit is a recovery point, which says when all pictures shown will be complete."""
        self.completes_refresh_of: int | None = None
        """Number of the recovery point that is complete from the last access unit on."""
        self._last: int | None = None  # `frame_num` of the last reference picture
        self._renewals: dict[int, int] = {}  # numbers of recovery points, by the `frame_num` that completes them
        self._order_counts = OrderCountCheck()

    @property
    def sequence_changed(self) -> bool:
        """Whether the last access unit has replaced a sequence parameter set by a different one."""
        return self._headers.sequence_changed

    def is_missing(self, unit: bytes, key: int | None = None) -> bool:
        """Whether pictures are missing before this access unit, since the last IDR picture or the last gap.

        False if that cannot be known, because headers are damaged or parameter sets have not come. `key` is the number
        of an access unit that may be a recovery point.
        """
        self.announces_refresh, self.completes_refresh_of = False, None
        first = self._headers.first_slice(unit)
        if first is None:
            return False
        sequence, last = first.sequence, self._last
        if first.referred:
            self.completes_refresh_of = self._renewals.pop(first.number, None)
        if key is not None:
            self._begin_renewal(first, key)
        before = (first.number - 1) % (1 << sequence.frame_num_bits)
        if first.idr or last is None or sequence.gaps_allowed:
            hole = False
        elif first.number == last:  # the second field of a picture has the number of the first
            hole = first.field is None
        else:
            hole = last != before
        if first.referred or hole:
            self._last = first.number if first.referred else before
        return self._order_counts.repeats(first) or hole

    def _begin_renewal(self, first: Slice, number: int) -> None:
        """Note when a recovery point completes: one later than it says, since FFmpeg's first may be unfinished."""
        if first.idr:
            self._renewals.clear()
        size, count = 1 << first.sequence.frame_num_bits, recovery_count(self._headers.messages)
        if count is not None and count + 1 < size:
            self._renewals[(first.number + count + 1) % size] = number
            self.announces_refresh = True


class OrderCountCheck:
    """Detects picture order counts (clause 8.2.1.1) that repeat since the last IDR picture.

    Not every encoder conforms: a stream is trusted only if its previous group of pictures had no repetition.
    """

    def __init__(self) -> None:
        self._believed = self._repeated = False
        self._recent: deque[tuple[int, int]] = deque(maxlen=ORDERS_KEPT)  # with which field it is
        self._last = 0  # of the last reference picture

    def repeats(self, picture: Slice) -> bool:
        """Whether a picture is the first of its group with a repeated count, in a trusted stream."""
        if picture.order is None or picture.sequence.order_bits is None:
            return False
        if picture.idr:
            self._believed = not self._repeated if len(self._recent) > 1 else self._believed
            self._repeated = False
            self._recent.clear()
            self._last = 0
        order = nearest(picture.order, self._last, picture.sequence.order_bits)
        if picture.referred:
            self._last = order
        own = order, picture.field or 0
        first = own in self._recent and not self._repeated
        self._repeated = self._repeated or first
        self._recent.append(own)
        return first and self._believed


@dataclass(frozen=True, slots=True)
class Slice:
    """What a slice header says about its picture."""

    sequence: Sequence
    number: int
    """`frame_num`: the same for both fields of a picture."""
    idr: bool
    referred: bool
    """Whether others may refer to the picture."""
    field: int | None
    """0: it is a top field, 1: a bottom field, None: a whole picture."""
    order: int | None
    """Lowest bits of the picture order count; None if it follows from `frame_num`."""

    def is_completed_by(self, other: Slice) -> bool:
        """Whether `other`, next in decoding order, is of the second field of the same picture."""
        return (
            {self.field, other.field} == {0, 1}
            and (self.number, self.referred) == (other.number, other.referred)
            and (self.idr or not other.idr)
        )


class Headers:
    """Reads the headers of one stream's access units, in decoding order."""

    def __init__(self, parameter_sets: bytes = b"") -> None:
        """`parameter_sets` (Annex B) are those from outside the stream."""
        self.sequence_changed = False
        """Whether the last access unit has replaced a sequence parameter set by a different one."""
        self.messages: list[bytes] = []
        """Bodies of the SEI NAL units before the last slice that was read."""
        self._sequences: dict[int, Sequence] = {}
        self._pictures: dict[int, int] = {}  # number of the sequence set by the number of the picture set
        self.first_slice(parameter_sets)

    def first_slice(self, unit: bytes) -> Slice | None:
        """The first readable slice of an access unit; parameter sets before it are stored."""
        return next(self.slices(unit), None)

    def slices(self, unit: bytes) -> Iterator[Slice]:
        """The readable slices of an access unit, in order; parameter sets before each are stored."""
        self.sequence_changed = False
        self.messages = []
        for kind, referred, body in islice(nal_units(unit), MOST_NAL_UNITS):
            try:
                if kind == SEQUENCE_SET:
                    self._take(Sequence.of(body[:SEQUENCE_SET_BYTES].rstrip(b"\x00")))
                elif kind == PICTURE_SET:
                    bits = Bits(body[:PICTURE_SET_BYTES])
                    picture, sequence = bits.count(MOST_PICTURE_SETS - 1), bits.count(MOST_SEQUENCE_SETS - 1)
                    self._pictures[picture] = sequence
                elif kind == MESSAGES:
                    self.messages.append(body)
                elif kind in (SLICE, IDR_SLICE):
                    yield self._slice(kind == IDR_SLICE, referred, body)
            except (EOFError, KeyError):
                continue

    def _take(self, sequence: Sequence) -> None:
        self.sequence_changed |= self._sequences.get(sequence.number, sequence) != sequence
        self._sequences[sequence.number] = sequence

    def _slice(self, idr: bool, referred: bool, body: bytes) -> Slice:
        bits = Bits(body[:SLICE_HEADER_BYTES])
        bits.count()  # first macroblock
        bits.count()  # type of slice
        sequence = self._sequences[self._pictures[bits.count()]]
        bits.take(2 if sequence.separate_planes else 0)
        number = bits.take(sequence.frame_num_bits)
        field = None if sequence.frames_only or not bits.take(1) else bits.take(1)
        if idr:
            bits.count()  # number of the IDR picture
        order = None if sequence.order_bits is None else bits.take(sequence.order_bits)
        return Slice(sequence, number, idr, referred, field, order)


@dataclass(frozen=True, slots=True)
class Sequence:
    """What reading slice headers requires of a sequence parameter set."""

    number: int
    frame_num_bits: int
    order_bits: int | None
    """Bits of the picture order count in a slice header."""
    separate_planes: bool
    gaps_allowed: bool
    """Whether pictures may be left out on purpose."""
    frames_only: bool
    body: bytes

    @classmethod
    def of(cls, body: bytes) -> Self:
        """The set with this body; raises `EOFError` if it is cut off or holds what the standard forbids."""
        bits = Bits(body)
        profile = bits.take(8)
        bits.take(16)  # constraints and level
        number = bits.count(MOST_SEQUENCE_SETS - 1)
        separate = profile in WITH_CHROMA_FORMAT and skip_colour(bits)
        frame_num_bits = bits.count(12) + 4
        order_bits = read_order_bits(bits)
        bits.count()  # number of reference frames
        gaps = bits.take(1) == 1
        bits.count(), bits.count()  # size in macroblocks
        return cls(number, frame_num_bits, order_bits, separate, gaps, bits.take(1) == 1, body)


class Bits:
    """Reads the body of a NAL unit bit by bit; raises `EOFError` at its end and for a number too large."""

    def __init__(self, body: bytes) -> None:
        plain = body.replace(b"\x00\x00\x03", b"\x00\x00")
        self._value = int.from_bytes(plain, "big")
        self._left = 8 * len(plain)

    def take(self, count: int) -> int:
        """The next `count` bits as a number."""
        self._left -= count
        if self._left < 0:
            raise EOFError
        return self._value >> self._left & ((1 << count) - 1)

    def count(self, most: int | None = None) -> int:
        """The next unsigned Exp-Golomb number, up to `most`."""
        zeros = self._left - (self._value & ((1 << self._left) - 1)).bit_length()
        if zeros > LONGEST_CODE:
            raise EOFError
        self.take(zeros)
        number = self.take(zeros + 1) - 1
        if most is not None and number > most:
            raise EOFError
        return number

    def extended(self) -> int:
        """The next number as SEI headers code it: a sum of bytes, of which all but the last are 255."""
        number = 0
        while (byte := self.take(8)) == 255:
            number += byte
        return number + byte

    def signed(self) -> int:
        """The next signed Exp-Golomb number: 0, 1, -1, 2, -2 and so on."""
        code = self.count()
        return (code + 1) // 2 if code % 2 else -(code // 2)


def recovery_count(messages: list[bytes]) -> int | None:
    """How many reference pictures are decoded until pictures are complete, by SEI messages; None: not stated."""
    for body in messages[:MOST_MESSAGES]:
        bits = Bits(body[:MESSAGES_BYTES])
        with suppress(EOFError):
            while True:
                kind, size = bits.extended(), bits.extended()
                if kind == RECOVERY_POINT:
                    return bits.count()
                bits.take(8 * size)
    return None


def nal_units(unit: bytes) -> Iterator[tuple[int, bool, bytes]]:
    """Type, whether it belongs to a reference picture, and body of each NAL unit."""
    start = unit.find(START)
    while 0 <= start < len(unit) - len(START):
        end = unit.find(START, start + len(START))
        head = unit[start + len(START)]
        yield head & 31, head & 96 > 0, unit[start + len(START) + 1 : end if end >= 0 else None]
        start = end


def is_idr(unit: bytes) -> bool:
    """Whether an access unit is an IDR picture, after which nothing refers to earlier pictures."""
    return any(kind == IDR_SLICE for kind, _, _ in islice(nal_units(unit), MOST_NAL_UNITS))


def skip_colour(bits: Bits) -> bool:
    """Skip chroma format, bit depths and scaling matrices; True if colour planes are coded separately."""
    chroma_format = bits.count(SEPARATE_PLANES)
    separate = chroma_format == SEPARATE_PLANES and bits.take(1) == 1
    bits.count(6), bits.count(6)  # depths of luma and chroma
    bits.take(1)  # lossless
    if bits.take(1):
        for index in range(12 if chroma_format == SEPARATE_PLANES else 8):
            if bits.take(1):
                skip_scaling_list(bits, 16 if index < 6 else 64)
    return separate


def skip_scaling_list(bits: Bits, size: int) -> None:
    """Skip the scaling factors of one kind of block."""
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last


def read_order_bits(bits: Bits) -> int | None:
    """How many bits of the picture order count a slice header holds; None if it follows from `frame_num`."""
    kind = bits.count(2)
    if kind == 0:
        return bits.count(12) + 4
    if kind == 1:
        bits.take(1)
        bits.signed(), bits.signed()
        for _ in range(bits.count(255)):
            bits.signed()
    return None


def nearest(low: int, last: int, bits: int) -> int:
    """The picture order count with these lowest bits that is nearest to the last one (clause 8.2.1.1)."""
    size = 1 << bits
    order = last - last % size + low
    if last - order >= size // 2:
        return order + size
    return order - size if order - last > size // 2 else order
