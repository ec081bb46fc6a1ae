"""Addresses of network sources: where they lead, and the credentials in them, however they are written."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import quote, unquote

from stream.errors import SourceUnsupported
from stream.settings import redact

PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
"""Of each scheme, where the address names none."""
LONGEST_CREDENTIALS = 127
"""Characters, with escapes, that FFmpeg's RTSP client keeps of user name and password; it cuts off the rest."""
HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^\s/?#@:\[\]]+)(?::(\d{1,5}))?(?=[/?#]|$)")


@dataclass(frozen=True)
class RemoteAddress:
    """An address taken apart; its credentials are plain text, without escapes."""

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

        A user name and password may be escaped or raw. An address that has a meaning as it stands keeps it;
        otherwise all in front of the last `@` that a host follows is user and password.
        """
        scheme, _, rest = url.partition("://")
        scheme = scheme.lower()
        credentials, location = split_credentials(rest)
        match = HOST_AND_PORT.match(location)
        port = int(match[2] or PORTS[scheme]) if match else 0
        if match is None or not 0 < port < 65_536:
            form = f"{scheme}://HOST[:PORT][/PATH]"
            raise SourceUnsupported(f"{redact(url)}: the address is malformed; must be {form}", reason="address")
        username, colon, password = credentials.partition(":")
        return cls(
            scheme,
            match[1].strip("[]"),
            port,
            location,
            unquote(username) if credentials else None,
            unquote(password) if colon else None,
        )

    def with_credentials(self, username: str | None, password: str | None) -> str:
        """The address for FFmpeg, secrets and all; what is None is taken from the address itself.

        Raises `SourceUnsupported` for what cannot be sent.
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


def split_credentials(rest: str) -> tuple[str, str]:
    """What is in front of the `@`, empty where there is none, and what is behind it, of an address without scheme."""
    proper = re.split("[/?#]", rest, maxsplit=1)[0].rfind("@")
    marks = [place for place, letter in enumerate(rest) if letter == "@"]
    for at in (proper, *reversed(marks)):
        if HOST_AND_PORT.match(rest, at + 1):
            return rest[: max(at, 0)], rest[at + 1 :]
    return "", rest


def escaped(text: str | None) -> str:
    """The text with escapes for whatever has a meaning in front of a host; nothing for None."""
    return quote(text or "", safe="!$&'()*+,;=:")
