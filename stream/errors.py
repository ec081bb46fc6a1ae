"""What can go wrong on the path of a picture, split by whose fault it is.

StreamError
 ├── SettingsError        what you wrote: the message names file, table, key, value and what is allowed
 ├── SourceError          the outside world, with one word for the reason
 │    ├── SourceLost         it went away, refused or timed out: trying again can help
 │    └── SourceUnsupported  it holds nothing that can be relayed: trying again cannot help
 ├── CodecError           a decoder or an encoder that is asked for cannot work here
 └── WireError            the other side of the wire sent nonsense, or cannot be reached
"""

from __future__ import annotations

from typing import ClassVar, Literal

Reason = Literal["refused", "unauthorised", "not found", "no video", "codec", "time-out", "lost", "address"]
"""Why a source gives no packets:

- `refused`: nothing listens there, or the peer refuses the connection, TLS or this transport
- `unauthorised`: user name or password is missing or wrong
- `not found`: no such host, path or file
- `no video`: what comes holds no video, or has an unknown format
- `codec`: its video codec is not supported
- `time-out`: nothing came for too long, or host names cannot be looked up at the moment
- `lost`: it was there and ended
- `address`: the address itself is malformed
"""


class StreamError(Exception):
    """Anything that stops a picture on its path."""


class SettingsError(StreamError, ValueError):
    """Settings that cannot be used."""


class SourceError(StreamError):
    """A source that gives no packets."""

    usual: ClassVar[Reason] = "lost"

    def __init__(self, message: str, *, reason: Reason | None = None) -> None:
        """`message` is for people, in one line and without credentials; `reason` is for programs."""
        super().__init__(message)
        self.reason: Reason = reason or self.usual


class SourceLost(SourceError):
    """A source that went away, refused or timed out."""


class SourceUnsupported(SourceError):
    """A source without a video stream that can be decoded."""

    usual = "no video"


class CodecError(StreamError):
    """A decoder or an encoder that cannot be opened or cannot go on."""


class WireError(StreamError):
    """Bytes that are no message of wire version 1, or an endpoint that cannot be used."""
