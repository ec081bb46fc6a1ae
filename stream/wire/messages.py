"""Converts messages of wire version 1 (docs/wire.md) to bytes and back. No socket, clock or thread lives here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, Any, Literal, get_args

import msgspec

from stream.codecs.orientation import UPRIGHT, Orientation
from stream.errors import WireError

VERSION = 1
"""Major version: a message of any other is refused."""

Kind = Literal["video", "source", "data", "status", "feeds"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PICTURE_KINDS: tuple[Kind, ...] = ("video", "source")
"""Kinds whose payloads refer to earlier ones, back to the last key frame."""

Side = Annotated[int, msgspec.Meta(ge=1, le=65_535)]
LARGEST_TICKS = 2**62
Ticks = Annotated[int, msgspec.Meta(ge=-LARGEST_TICKS, le=LARGEST_TICKS)]
LATEST = 2**62
Moment = Annotated[int, msgspec.Meta(ge=0, le=LATEST)]
"""Limits of header values: viewers could not store larger ones."""
LARGEST_BASE = 2**31 - 1
"""Limit of the two integers of a time base."""

FEED_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
ALL_FEEDS = "*"
"""Takes the place of a feed's name in messages of kind `feeds`, which alone are about all feeds."""
TOPICS_KEPT = 1024
"""Topics that are cached."""
TOPIC = re.compile(rf"(?P<feed>{FEED_NAME.pattern}(?!/feeds)|\*(?=/feeds))/(?P<kind>{'|'.join(KINDS)})/")


class Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the sender of a payload knows about it; keys at their default are not sent."""

    key: bool = False
    """Decoding can begin with this picture."""
    codec: str | None = None
    """`h264`, `hevc` or `av1` for enhanced pictures; FFmpeg's name of the codec for all else."""
    width: Side | None = None
    height: Side | None = None
    """Of the picture, in pixels."""
    orientation: Orientation = UPRIGHT
    """Of a camera's own picture: how it is turned and mirrored to be upright."""
    pts: Ticks | None = None
    """When to show it, in units of `time_base`."""
    dts: Ticks | None = None
    """When to decode it, in units of `time_base`, where that differs from `pts` and is known."""
    source_pts: Ticks | None = None
    """Of an enhanced picture: its time stamp as its source gave it, in units of `time_base`."""
    time_base: Fraction | None = None
    """Seconds; two integers on the wire."""
    capture_ns: Moment | None = None
    """UTC, nanoseconds since 1970: when the camera took the picture, as far as `capture_clock` knows."""
    capture_clock: str | None = None
    """`rtcp`, `klv`, `recording` or `arrival`."""
    received_ns: Moment | None = None
    """UTC, nanoseconds since 1970: when the relay read the packet."""
    state: str | None = None
    """`clean`, `concealed`, `tainted` or `stale`; anything else is not clean either."""
    mode: str | None = None
    """`enhanced` or `upscaled`."""
    model: str | None = None
    """Id of the weights."""
    source_sha256: bytes | None = None
    """SHA-256 (32 bytes) of the access unit that this picture came from."""


class Stamped(Header, frozen=True, kw_only=True, omit_defaults=True):
    """A header as it is sent: what is known about the payload, and what the publisher adds."""

    v: int
    relay: str
    """Id of the relay's run: a different one means a restart."""
    feed: str
    seq: int
    """Number of the message on its topic, from 0, without holes unless messages were lost."""
    published_ns: Moment
    """UTC, nanoseconds since 1970."""
    gop: int | None = None
    """Number of the group of pictures, from 1; 0 where no key frame has come since the source was opened."""
    au: int | None = None
    """Number of the access unit in its group, 0 for the key frame."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message, decoded."""

    kind: Kind
    header: Stamped
    payload: bytes


class Status(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A feed's status: the payload of kind `status`. Counts are since the feed began; `received` is the sum of
    `published`, all of `dropped`, all of `lost`, and `under_way`."""

    state: str
    """`connecting`, `live`, `ended` or `failed`."""
    received: int
    """Access units that came from the source."""
    published: int
    """Enhanced pictures."""
    under_way: int
    """Access units between source and wire at this moment."""
    dropped: dict[str, int]
    """Pictures thrown away on purpose, by reason."""
    lost: dict[str, int]
    """Access units that gave no picture, by reason."""
    reason: str | None = None
    """Human-readable reason why the feed is `connecting` again, has `failed`, or gives no pictures although it is live;
    holds no password."""


class Numbering:
    """Numbers the messages of one topic."""

    def __init__(self, kind: Kind) -> None:
        self._pictures = kind in PICTURE_KINDS
        self._seq, self._gop, self._au = -1, 0, -1
        self._begun = False  # there was a key frame that the next pictures refer to

    def begin_anew(self) -> None:
        """Mark the next pictures, up to a key frame, as referring to none of those before them."""
        self._begun, self._au = False, -1

    def stamp(self, header: Header, relay: str, feed: str, published_ns: int) -> Stamped:
        """The header of the topic's next message."""
        self._seq += 1
        if self._pictures:
            self._gop, self._au = (self._gop + 1, 0) if header.key else (self._gop, self._au + 1)
            self._begun = self._begun or header.key
        return Stamped(
            **msgspec.structs.asdict(header),
            v=VERSION,
            relay=relay,
            feed=feed,
            seq=self._seq,
            published_ns=published_ns,
            gop=(self._gop if self._begun else 0) if self._pictures else None,
            au=self._au if self._pictures else None,
        )


def ticks(stamp: int | None) -> int | None:
    """A source's time stamp, as a header allows it; None for one so wild that viewers would refuse the message."""
    return stamp if stamp is not None and abs(stamp) <= LARGEST_TICKS else None


def moment(utc_ns: int) -> int | None:
    """A time, as a header allows it; None for one before 1970 or so late that viewers would refuse the message."""
    return utc_ns if 0 <= utc_ns <= LATEST else None


@lru_cache(TOPICS_KEPT)
def topic(feed: str, kind: Kind) -> bytes:
    """The first part of a message, and the prefix to subscribe to. Raises `WireError` for invalid names."""
    if not TOPIC.fullmatch(name := f"{feed}/{kind}/"):
        raise WireError(
            f"the topic {name!r}; a feed's name is 1 to 64 of a-z, 0-9, _ and -, "
            f"beginning with a letter or digit, and a kind is one of {', '.join(KINDS)}; feeds goes with {ALL_FEEDS}"
        )
    return name.encode()


def split_topic(part: bytes) -> tuple[str, Kind]:
    """Feed and kind of a topic. Raises `WireError`."""
    match = TOPIC.fullmatch(part.decode(errors="replace"))
    if match is None:
        raise WireError(f"the topic {part[:100]!r} is not FEED/KIND/ of wire version {VERSION}")
    return match["feed"], match["kind"]  # type: ignore[return-value]  # the pattern allows kinds only


def encode_message(topic: bytes, header: Stamped, payload: bytes) -> list[bytes]:
    """The three parts of a message."""
    return [topic, _header_encoder.encode(header), payload]


def decode_message(parts: Sequence[bytes]) -> Message:
    """A message from its parts; keys and parts that version 1 does not know are ignored.

    Raises `WireError` for another major version and for anything that is not a message.
    """
    if len(parts) < 3:
        raise WireError(f"a message of {len(parts)} parts; wire version {VERSION} has topic, header and payload")
    feed, kind = split_topic(parts[0])
    try:
        version = _version_decoder.decode(parts[1]).v
        if version != VERSION:
            raise WireError(f"feed {feed} speaks wire version {version}; this program speaks version {VERSION}")
        header = _header_decoder.decode(parts[1])
    except msgspec.MsgspecError as error:
        raise WireError(f"a message of {feed}/{kind}/ has a header that cannot be read: {error}") from error
    if header.feed != feed:
        raise WireError(f"a message on the topic of feed {feed} has a header of feed {header.feed[:100]!r}")
    return Message(kind, header, parts[2])


def encode_status(status: Status) -> bytes:
    """The payload of a message of kind `status`."""
    return msgspec.msgpack.encode(status)


def decode_status(payload: bytes) -> Status:
    """What a message of kind `status` says. Raises `WireError`."""
    try:
        return _status_decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise WireError(f"cannot read a status message: {error}") from error


def encode_feeds(feeds: Mapping[str, Status]) -> bytes:
    """The payload of a message of kind `feeds`: how each feed is doing, by its name."""
    return msgspec.msgpack.encode(feeds)


def decode_feeds(payload: bytes) -> dict[str, Status]:
    """What a message of kind `feeds` says. Raises `WireError`."""
    try:
        return _feeds_decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise WireError(f"cannot read the list of feeds: {error}") from error


class _Version(msgspec.Struct):
    v: int


def _fraction_out(value: Any) -> tuple[int, int]:
    if isinstance(value, Fraction):
        return value.as_integer_ratio()
    raise TypeError(f"{type(value).__name__} cannot travel in a header")


def _fraction_in(_: type, value: Any) -> Fraction:
    match value:
        case [int(numerator), int(denominator)] if 0 < numerator <= LARGEST_BASE and 0 < denominator <= LARGEST_BASE:
            return Fraction(numerator, denominator)
    raise ValueError(f"a time base is two positive integers of 31 bits, not {value!r}")


_header_encoder = msgspec.msgpack.Encoder(enc_hook=_fraction_out)
_header_decoder = msgspec.msgpack.Decoder(Stamped, dec_hook=_fraction_in)
_version_decoder = msgspec.msgpack.Decoder(_Version)
_status_decoder = msgspec.msgpack.Decoder(Status)
_feeds_decoder = msgspec.msgpack.Decoder(dict[str, Status])
