"""Parses addresses of network sources, and the credentials in them, however they are written.

Anything else raises `SourceUnsupported`; its message names the address, redacted, and what is allowed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from stream.errors import SourceUnsupported

PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
"""Default port of each scheme."""
LONGEST_CREDENTIALS = 127
"""Characters of user name and password, escapes included, that FFmpeg's RTSP client keeps; it cuts off the rest."""
BYTES = "surrogateescape"
"""Error handler by which text keeps bytes that are not UTF-8, as in a Latin-1 password."""
HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%[\w.~-]+)?\]|[^\s/?#@:\[\]]+)(?::(\d{1,5}))?(?=[/?#]|$)")
INTERFACE_NAME = re.compile(r"[^\s/:]{1,15}")
"""What Linux accepts as the name of a network interface."""

_SECRET_PARAMETER = re.compile(
    r"((?:usr|user|login|pass|psw|pw|token|jwt|secret|key|auth|sig|credential|session)[^=&?/]*="
    r"|[?&](?:u|p|st|_?sid)=)[^&]*",
    re.IGNORECASE,
)


def redact(url: str) -> str:
    """The URL without user name, password and secret parameters, safe to be shown.

    A password may contain any character, so everything before the last `@` is hidden: rather too much than too little.
    """
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    credentials, at, address = rest.rpartition("@")
    if credentials and (mark or ":" in credentials):
        rest = f"***{at}{address}"
    if mark or "?" in rest:
        rest = _SECRET_PARAMETER.sub(r"\1***", rest)
    return scheme + mark + rest


def form_of(url: str) -> str:
    """How addresses of this one's scheme are written."""
    scheme = url.partition("://")[0].lower()
    return (
        "udp://HOST:PORT, for multicast also ?localaddr=ADDRESS of an interface, of IPv6 also its name, "
        "and SOURCE@ in front of an IPv4 group"
        if scheme == "udp"
        else f"{scheme}://HOST[:PORT][/PATH]"
    )


def malformed(url: str) -> SourceUnsupported:
    """The error for an address not in its scheme's form."""
    return SourceUnsupported(f"{redact(url)}: the address is malformed; must be {form_of(url)}", reason="address")


@dataclass(frozen=True)
class RemoteAddress:
    """A parsed address; its credentials are plain text, without escapes."""

    scheme: str
    host: str
    port: int
    location: str = field(repr=False)
    """Host, port, path and all that follows, as written."""
    username: str | None = field(repr=False)
    password: str | None = field(repr=False)

    @classmethod
    def of(cls, url: str) -> Self:
        """The parts of `SCHEME://[USER[:PASSWORD]@]HOST[:PORT][/PATH]`; raises `SourceUnsupported`.

        User name and password may be escaped or raw. An address that is valid as it stands is taken literally;
        otherwise everything before the last `@` that a host follows is user name and password.
        """
        scheme, _, rest = url.partition("://")
        scheme = scheme.lower()
        credentials, location = split_credentials(rest)
        match = HOST_AND_PORT.match(location)
        port = int(match[2] or PORTS[scheme]) if match else 0
        if match is None or not 0 < port < 65_536:
            raise malformed(url)
        username, colon, password = credentials.partition(":")
        return cls(
            scheme,
            match[1].strip("[]"),
            port,
            location,
            unescaped(username) if credentials else None,
            unescaped(password) if colon else None,
        )

    def with_credentials(self, username: str | None, password: str | None) -> str:
        """The address for FFmpeg, with credentials; None takes them from the address itself.

        Raises `SourceUnsupported` for credentials that cannot be sent.
        """
        username = self.username if username is None else username
        password = self.password if password is None else password
        if username is None and password is None:
            return f"{self.scheme}://{self.location}"
        if ":" in (username or ""):
            raise self._malformed("a user name must not hold a colon")
        credentials = f"{escaped(username)}:{escaped(password)}"
        if len(credentials) > LONGEST_CREDENTIALS:
            allowed = f"{LONGEST_CREDENTIALS} characters at most, with their escapes"
            raise self._malformed(f"user name and password must have {allowed}")
        return f"{self.scheme}://{credentials}@{self.location}"

    def _malformed(self, why: str) -> SourceUnsupported:
        return SourceUnsupported(f"{redact(f'{self.scheme}://{self.location}')}: {why}", reason="address")


@dataclass(frozen=True)
class UdpAddress:
    """Where to listen: an address of this machine or a multicast group."""

    host: str
    """Empty: every address of this machine."""
    port: int
    interface: str = ""
    """Network interface that joins a multicast group, by address or for IPv6 by name; empty: the system's choice."""
    source: str = ""
    """IPv4 address of the only sender to a multicast group that is listened to; empty: all senders."""

    @property
    def multicast(self) -> bool:
        """Whether `host` is a multicast group."""
        try:
            return ip_address(self.host.partition("%")[0]).is_multicast
        except ValueError:
            return False

    def excludes(self, other: UdpAddress) -> bool:
        """Whether this address and `other` cannot both be listened on."""
        if self.port != other.port or (self.multicast and other.multicast):
            return False
        return self.host == other.host or self._covers(other) or other._covers(self)

    def _covers(self, other: UdpAddress) -> bool:
        """Whether `host` is a wildcard address, of IPv4 or of all, that includes the host of `other`."""
        try:
            everywhere = not self.host or ip_address(self.host).is_unspecified
        except ValueError:
            return False
        return everywhere and (":" in self.host or ":" not in other.host)

    @classmethod
    def of(cls, url: str) -> Self:
        """The address in `udp://[[SOURCE]@][HOST]:PORT[?localaddr=INTERFACE]`; raises `SourceUnsupported`."""
        try:
            parts = urlsplit(url)
            options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
            port = parts.port
        except ValueError:
            port, options = None, {}
        if not port or parts.path.strip("/") or options.keys() - {"localaddr"}:
            raise malformed(url)
        source = parts.netloc.rpartition("@")[0]
        address = cls(parts.hostname or "", port, options.get("localaddr", ""), source)
        if source and not (address.multicast and version_of(source) == version_of(address.host) == 4):
            raise malformed(url)
        if address.multicast and address.interface and not address._may_be_joined:
            raise malformed(url)
        return address

    @property
    def _may_be_joined(self) -> bool:
        """Whether `interface` is valid: an address of the group's IP version, or for IPv6 a name."""
        version = version_of(self.interface)
        if version:
            return version == version_of(self.host)
        return version_of(self.host) == 6 and bool(INTERFACE_NAME.fullmatch(self.interface))


def version_of(text: str) -> int:
    """The IP version of an address, 4 or 6; 0 if the text is not an address."""
    try:
        return ip_address(text).version
    except ValueError:
        return 0


def address_of(url: str) -> RemoteAddress | UdpAddress:
    """The address of a network source; raises `SourceUnsupported`."""
    return UdpAddress.of(url) if is_udp(url) else RemoteAddress.of(url)


def is_udp(url: str) -> bool:
    """Whether a URL is a UDP address."""
    return url.lower().startswith("udp://")


def split_credentials(rest: str) -> tuple[str, str]:
    """The credentials before the `@` (empty if there are none) and what follows it, of an address without scheme."""
    proper = re.split("[/?#]", rest, maxsplit=1)[0].rfind("@")
    marks = [place for place, letter in enumerate(rest) if letter == "@"]
    for at in (proper, *reversed(marks)):
        if HOST_AND_PORT.match(rest, at + 1):
            return rest[: max(at, 0)], rest[at + 1 :]
    return "", rest


def escaped(text: str | None) -> str:
    """The text, percent-encoded for use in front of a host; empty for None."""
    return quote(text or "", safe="!$&'()*+,;=:", errors=BYTES)


def unescaped(text: str) -> str:
    """The text without its escapes."""
    return unquote(text, errors=BYTES)
