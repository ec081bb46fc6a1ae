"""What can go wrong on the path of a picture, split by whose fault it is.

StreamError
 ├── SettingsError        what you wrote: the message names file, table, key, value and what is allowed
 ├── SourceError          the outside world
 │    ├── SourceLost         it went away, refused or timed out: trying again can help
 │    └── SourceUnsupported  it holds nothing that can be relayed: trying again cannot help
 ├── CodecError           a decoder or an encoder that is asked for cannot work here
 └── WireError            the other side of the wire sent nonsense, or cannot be reached
"""

from __future__ import annotations


class StreamError(Exception):
    """Anything that stops a picture on its path."""


class SettingsError(StreamError, ValueError):
    """Settings that cannot be used."""


class SourceError(StreamError):
    """A source that gives no packets."""


class SourceLost(SourceError):
    """A source that went away, refused or timed out."""


class SourceUnsupported(SourceError):
    """A source without a video stream that can be decoded."""


class CodecError(StreamError):
    """A decoder or an encoder that cannot be opened or cannot go on."""


class WireError(StreamError):
    """Bytes that are no message of wire version 1, or an endpoint that cannot be used."""
