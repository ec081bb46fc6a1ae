"""MPEG-TS over UDP, unicast or multicast, as a source."""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from ipaddress import IPv6Address
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream

from stream.address import UdpAddress, redact, version_of
from stream.errors import SourceLost, SourceUnsupported
from stream.settings import FeedSettings
from stream.sources.failures import NO_LOOKUP, NOT_KNOWN, Failure, lookup_failure, no_video_for, silence
from stream.sources.programs import Programs
from stream.sources.segment import Segment

LARGEST_DATAGRAM = 65_536
POLL_SECONDS = 0.1
"""The longest that a stopped source still waits for a datagram."""
ARRIVALS_KEPT = 8_192
"""Number of datagrams whose arrival time is remembered: 10 MB of MPEG-TS."""
ADD_SOURCE_MEMBERSHIP = 39
"""Linux's IP_ADD_SOURCE_MEMBERSHIP, missing from Python's `socket`."""
MULTICAST_ALL = 49
"""Linux's IP_MULTICAST_ALL, missing from Python's `socket`: whether a socket also receives datagrams for its group on
interfaces where only other sockets have joined it."""
BIND_TO_INTERFACE = 62
"""Linux's SO_BINDTOIFINDEX, missing from Python's `socket`."""
INTERFACES_OF_IPV6 = Path("/proc/net/if_inet6")
"""Linux's list of interface addresses: one per line, followed by the index of the interface."""
SO_TIMESTAMPNS = 35
"""Linux's SO_TIMESTAMPNS, missing from Python's `socket`: the kernel adds its arrival time to each datagram."""
MOMENT = struct.Struct("@ll")
"""Format of that time: UTC, seconds since 1970 and nanoseconds."""

FIRST_KEY_SECONDS = 20.0
"""Time beyond `open_timeout` that opening waits for a key frame if pictures come: FFmpeg needs one, or 31 pictures."""
SILENT_STREAM_SECONDS = 2.5
"""The longest that opening waits for streams that are announced but send nothing."""
HOPELESS_SECONDS = 2.0
"""Time beyond the feed's `age_budget` after which all waiting datagrams are skipped: dropping late pictures alone will
not let a reader so far behind catch up."""
LOG_INTERVAL_SECONDS = 60.0
"""The shortest time between two log lines about that."""
MOST_CHANGES, CHANGES_SECONDS = 8, 10.0
"""A feed whose streams change this often, within less than this many seconds, is given up."""

log = logging.getLogger(__name__)


def open_udp(feed: FeedSettings, stop: threading.Event) -> Generator[Segment]:
    """The segments of a feed over UDP: a new one whenever its streams change. Ends by `stop` or `SourceLost`."""
    changes: deque[float] = deque(maxlen=MOST_CHANGES)  # times of the latest ones
    address = looked_up(feed, stop)
    if address is None:
        return
    with UdpReader(feed, stop, address) as reader:
        yield from open_programs(feed, stop, reader)
        while reader.go_on():
            changes.append(time.monotonic())
            if len(changes) == MOST_CHANGES and changes[-1] - changes[0] < CHANGES_SECONDS:
                words = "its streams keep changing; does another sender use this address too?"
                raise SourceLost(f"{redact(feed.url)}: {words}", reason="lost")
            yield from open_programs(feed, stop, reader)


def looked_up(feed: FeedSettings, stop: threading.Event) -> UdpAddress | None:
    """The feed's address with a numeric host; None if stopped before that is known. Raises `SourceLost`."""
    address = UdpAddress.of(feed.url)
    if not address.host or version_of(address.host):
        return address
    lookup = Lookup.of(address.host)
    end = time.monotonic() + feed.open_timeout
    while lookup.is_alive() and time.monotonic() < end and not stop.is_set():
        lookup.join(POLL_SECONDS)
    if stop.is_set():
        return None
    if not lookup.found:
        raise SourceLost(f"{redact(feed.url)}: {lookup.failure.words}", reason=lookup.failure.reason)
    return replace(address, host=lookup.found)


class Lookup(threading.Thread):
    """Looks up a host name. A lookup cannot be cancelled: one that hangs goes on, and the next caller waits for it."""

    _latest: ClassVar[dict[str, Lookup]] = {}
    _lock = threading.Lock()

    def __init__(self, host: str) -> None:
        super().__init__(name="nightbridge-lookup", daemon=True)
        self.found = ""
        """The numeric host; empty until it is known, and if the lookup fails."""
        self.failure = NO_LOOKUP
        """Why `found` is empty."""
        self._host = host

    @classmethod
    def of(cls, host: str) -> Lookup:
        """The lookup of this name that is under way, or a new one; for any thread."""
        with cls._lock:
            lookup = cls._latest.get(host)
            if lookup is None or not lookup.is_alive():
                lookup = cls._latest[host] = cls(host)
                lookup.start()
            return lookup

    def run(self) -> None:
        """Look up the host."""
        try:
            self.found = str(socket.getaddrinfo(self._host, None, type=socket.SOCK_DGRAM)[0][4][0])
        except (OSError, ValueError) as error:
            self.failure = lookup_failure(error)


def open_programs(feed: FeedSettings, stop: threading.Event, reader: UdpReader) -> Generator[Segment]:
    """One segment, which lasts until the feed's streams change; raises `SourceLost` for an early end."""
    failure: Failure | None = None
    try:
        container = av.open(reader, "r", format="mpegts", options=probing(feed), metadata_errors="replace")
    except av.FFmpegError as error:
        other = Failure(error.strerror or f"unknown FFmpeg error {error.errno}", "lost")
        failure = NOT_KNOWN if isinstance(error, av.InvalidDataError) else other
    else:
        with container:
            if reader.failure is None and not stop.is_set():
                reader.opened()
                segment = live_segment(redact(feed.url), container, stop, reader)
                yield segment
                failure = Failure(segment.failure, "lost") if segment.failure else None
    failure = reader.failure or failure
    if failure and not stop.is_set() and not reader.changed:
        raise SourceLost(f"{redact(feed.url)}: {failure.words}", reason=failure.reason)


def live_segment(name: str, container: InputContainer, stop: threading.Event, reader: UdpReader) -> Segment:
    """The segment of an opened feed; raises `SourceLost` if it has no video, since the next sender may have some."""
    try:
        return Segment(name, container, stop, recorded=False, clock="arrival", capture_ns=reader.arrival)
    except SourceUnsupported as error:
        raise SourceLost(str(error), reason=error.reason) from None


def probing(feed: FeedSettings) -> dict[str, str]:
    """FFmpeg options that open a feed at its first key frame and the three frames that give the frame rate."""
    seconds = min(SILENT_STREAM_SECONDS, feed.open_timeout / 2)
    return {"fpsprobesize": "3", "analyzeduration": str(int(seconds * 1_000_000))}


class UdpReader:
    """A file for a demuxer to read from. A context manager; it reads in one thread, any thread may set `stop`.

    Reading ends (`read` returns no bytes) when `stop` is set; when for too long no video comes or nothing that can be
    opened, or the socket fails (see `failure`); and just before the feed's streams change (see `changed`). Time-outs
    count only the time spent waiting for datagrams, not what the caller does between reads.
    """

    name = "udp"

    def __init__(self, feed: FeedSettings, stop: threading.Event, address: UdpAddress) -> None:
        """Start listening at `address`, whose host is numeric; raises `SourceLost` if the address cannot be used."""
        self.failure: Failure | None = None
        """Why reading ended; None while it goes on, if it was stopped, and if the streams changed."""
        self.changed = False
        """Whether reading ended because the streams of the feed change."""
        self._stop = stop
        self._feed = feed
        self._rest = b""
        self._latest = b""  # some networks deliver a datagram twice, which FFmpeg would take for two
        self._programs = Programs()
        self._following = b""  # what has come after a change of streams
        self._following_ns = 0  # and its arrival time
        self._position = 0
        self._arrivals: deque[tuple[int, int]] = deque(maxlen=ARRIVALS_KEPT)
        self._opened = False
        self._waited = 0.0  # seconds since the last video packet; while opening, since the first datagram
        self._silent = 0.0  # seconds since the last datagram
        self._quiet_until = 0.0  # until then, skipped datagrams are not logged
        try:
            self._socket = listen(address, feed.receive_buffer)
        except OSError as error:
            words = f"{redact(feed.url)}: cannot listen on this address: {error.strerror or error}"
            raise SourceLost(words, reason="refused") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def opened(self) -> None:
        """Note that the demuxer knows the streams."""
        self._opened, self._waited = True, 0.0

    def go_on(self) -> bool:
        """Begin anew after a change of streams, as if with a new file; False if there was none, or `stop` is set."""
        if not self.changed or self._stop.is_set():
            return False
        associations, self._programs = self._programs.associations, Programs()
        self.changed = self._opened = False
        self._waited = self._silent = 0.0
        self._arrivals.clear()
        self._position = 0
        self._rest = self._accept(associations + self._following, self._following_ns)
        return True

    def arrival(self, packet: Packet[Stream]) -> int:
        """When the first byte of a packet arrived: UTC, nanoseconds since 1970."""
        if packet.stream.type == "video":
            self._waited = 0.0
        if packet.pos is None or not self._arrivals:
            return time.time_ns()
        after = bisect_right(self._arrivals, packet.pos, key=lambda arrival: arrival[0])
        return self._arrivals[max(after - 1, 0)][1]

    def read(self, size: int) -> bytes:
        """Wait for 1 to `size` bytes and return them; no bytes once reading has ended."""
        if not self._rest:
            self._rest = self._receive()
        head, self._rest = self._rest[:size], self._rest[size:]
        return head

    def _receive(self) -> bytes:
        """One datagram, or no bytes at the end."""
        while not self._stop.is_set() and self.failure is None and not self.changed:
            began = time.monotonic()
            datagram, came_ns = self._poll()
            self._count_wait(time.monotonic() - began, heard=bool(datagram))
            age = (time.time_ns() - came_ns) / 1e9
            if datagram and self._opened and age > self._feed.age_budget + HOPELESS_SECONDS:
                self._skip_ahead(age)
            doubled, self._latest = datagram == self._latest, datagram
            if datagram and not doubled and (accepted := self._accept(datagram, came_ns)):
                return accepted
        return b""

    def _skip_ahead(self, age: float) -> None:
        """Skip all waiting datagrams: the reader is too slow, and would fall ever further behind."""
        skipped, end = 0, time.monotonic() + 1
        self._socket.setblocking(False)
        with suppress(BlockingIOError):
            while time.monotonic() < end:
                self._socket.recv(LARGEST_DATAGRAM)
                skipped += 1
        self._socket.settimeout(POLL_SECONDS)
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + LOG_INTERVAL_SECONDS
            words = "%s: this machine is too slow: %d datagrams were skipped, since the next one was %.1f s old"
            log.warning(words, redact(self._feed.url), skipped, age)

    def _accept(self, datagram: bytes, came_ns: int) -> bytes:
        """The part of a datagram to read: all of it, or what comes before a change of streams."""
        change = self._programs.change_in(datagram)
        if change is not None:
            self.changed, self._following, self._following_ns = True, datagram[change:], came_ns
            datagram = datagram[:change]
        self._arrivals.append((self._position, came_ns))
        self._position += len(datagram)
        return datagram

    def _poll(self) -> tuple[bytes, int]:
        """One datagram, or no bytes if none came for a while, and its arrival time: UTC, nanoseconds since 1970."""
        try:
            return receive(self._socket)
        except TimeoutError:
            return b"", 0
        except OSError as error:
            self.failure = Failure(error.strerror or str(error), "lost")
            return b"", 0

    def _count_wait(self, seconds: float, heard: bool) -> None:
        first = heard and not self._arrivals
        self._waited = 0.0 if first else self._waited + seconds
        self._silent = 0.0 if heard else self._silent + seconds
        limit = patience = self._feed.read_timeout if self._opened else self._feed.open_timeout
        if not self._opened and self._programs.pictures_come:
            patience += FIRST_KEY_SECONDS
        if self._silent > limit or self._waited > patience:
            self.failure = silence(limit) if self._silent > limit / 2 else no_video_for(patience)


def listen(address: UdpAddress, receive_buffer: int) -> socket.socket:
    """A socket that receives what is sent to `address`; raises `OSError`."""
    host = address.host.partition("%")[0] if address.multicast else address.host
    found = socket.getaddrinfo(host or None, address.port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, local = found[0]
    index = interface_index(address) if address.multicast and family == socket.AF_INET6 else 0
    listener = socket.socket(family, kind, protocol)
    try:
        if address.multicast:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        widen(listener, receive_buffer)
        with suppress(OSError):  # without it, the time of reading counts as arrival
            listener.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        if index:
            local = (*local[:3], index)  # a link-local group exists on every link
            with suppress(OSError):  # only root may before Linux 5.7; other interfaces are then read too
                listener.setsockopt(socket.SOL_SOCKET, BIND_TO_INTERFACE, index)
        listener.bind(local)
        if address.multicast:
            join(listener, address, index)
        listener.settimeout(POLL_SECONDS)
    except BaseException:
        listener.close()
        raise
    return listener


def receive(listener: socket.socket) -> tuple[bytes, int]:
    """One datagram and when it arrived, maybe long before this call: UTC, nanoseconds since 1970."""
    datagram, control_messages, _, _ = listener.recvmsg(LARGEST_DATAGRAM, socket.CMSG_SPACE(MOMENT.size))
    for _, kind, moment in control_messages:
        if kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = MOMENT.unpack(moment)
            return datagram, seconds * 1_000_000_000 + nanoseconds
    return datagram, time.time_ns()


def widen(listener: socket.socket, receive_buffer: int) -> None:
    """Ask the kernel for a receive buffer of `receive_buffer` bytes; log if it grants less."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    granted = listener.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # Linux counts its own overhead too
    if granted < receive_buffer:
        log_small_buffer(granted, receive_buffer)


@cache
def log_small_buffer(granted: int, wanted: int) -> None:
    """Log, once for each pair of sizes, that bursts may be lost."""
    log.warning(
        "the kernel gives UDP feeds %d bytes of receive buffer, not %d: raise net.core.rmem_max", granted, wanted
    )


def join(listener: socket.socket, address: UdpAddress, index: int) -> None:
    """Join the multicast group that the socket is bound to; for IPv6 on the interface with this `index`."""
    if listener.family == socket.AF_INET:
        listener.setsockopt(socket.IPPROTO_IP, MULTICAST_ALL, 0)
        interface = socket.inet_aton(address.interface) if address.interface else bytes(4)
        group = socket.inet_aton(address.host) + interface
        if address.source:
            listener.setsockopt(socket.IPPROTO_IP, ADD_SOURCE_MEMBERSHIP, group + socket.inet_aton(address.source))
        else:
            listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        return
    group = socket.inet_pton(socket.AF_INET6, address.host.partition("%")[0])
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + struct.pack("@I", index))


def interface_index(address: UdpAddress) -> int:
    """Index of the interface that joins an IPv6 multicast group; 0: the system's choice. Raises `OSError`."""
    interface = address.interface or address.host.partition("%")[2]
    name = interface.rpartition("%")[2]  # a link-local address may end in %NAME
    if ":" not in name:
        return socket.if_nametoindex(name) if name else 0
    digits = IPv6Address(name).packed.hex()
    for line in INTERFACES_OF_IPV6.read_text().splitlines():
        if line.startswith(digits):
            return int(line.split()[1], 16)
    raise OSError(f"no interface has the address {name}")
