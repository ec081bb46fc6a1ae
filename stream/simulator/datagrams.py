"""A link over UDP that loses datagrams on demand, the same ones for the same seed."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from random import Random
from types import TracebackType
from typing import ClassVar, Self
from urllib.parse import urlsplit

from stream.errors import SourceLost


def udp_address(url: str) -> tuple[str, int]:
    """Host and port of `udp://HOST:PORT`; raises `ValueError` for anything else."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not url.startswith("udp://") or not host or not port or parts.path.strip("/") or parts.query:
        raise ValueError(f"url {url!r}; must be udp://HOST:PORT, or rtsp://HOST:PORT/PATH")
    return host, port


class Datagrams:
    """A file for an MPEG-TS muxer to write into: every write is one datagram, sent or lost.

    Raises `SourceLost` if the host has no address or the network refuses.
    """

    muxer: ClassVar[str] = "mpegts"
    options: ClassVar[Mapping[str, str]] = {"pat_period": "0.5"}
    largest: ClassVar[int] = 7 * 188

    def __init__(self, url: str, loss: float = 0.0, seed: int = 0) -> None:
        """`loss` is the share that is lost, 0 to 1."""
        self.count = 0
        """Datagrams written."""
        self.lost = 0
        """Those of them that were not sent."""
        self._url = url
        self._loss = loss
        self._random = Random(seed)  # noqa: S311 (a link is no secret)
        host, port = udp_address(url)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        except socket.gaierror as error:
            raise SourceLost(f"{url}: {error.strerror}") from error
        family, kind, protocol, _, address = found[0]
        self._address = address
        self._socket = socket.socket(family, kind, protocol)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def write(self, data: bytes) -> int:
        """Send one datagram, or lose it; returns the number of bytes either way."""
        self.count += 1
        if self._random.random() < self._loss:
            self.lost += 1
            return len(data)
        try:
            return self._socket.sendto(data, self._address)
        except OSError as error:
            raise SourceLost(f"{self._url}: {error.strerror}") from error
