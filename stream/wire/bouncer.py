"""Cuts off viewers that send what no viewer needs to, before it fills libzmq.

XPUB reads everything that a connection sends before a call returns: endless subscriptions block every `publish`,
whatever the limits of messages are. So a thread that does not depend on the publisher watches how many bytes the kernel
has received on each connection.

XPUB also stores all that a connection subscribes to, at up to 80 bytes for each byte sent: a viewer that slowly
subscribes to ever new topics would use up all memory. So the subscriptions of each connection are limited as well.
"""

from __future__ import annotations

import logging
import os
import resource
import struct
import threading
import time
from dataclasses import dataclass, field
from errno import EBADF, ENOTSOCK
from socket import IPPROTO_TCP, SHUT_RDWR, TCP_INFO, socket

import zmq
from zmq.utils.monitor import recv_monitor_message

BURST, RATE = 65_536, 8_192
"""Bytes that a viewer may send at once, and per second: handshake and subscriptions, then heartbeats and requests for
key frames, of 50 bytes each, or 120 if encrypted."""
SUBSCRIBED_MOST, PREFIX_EXTRA = 65_536, 32
"""Bytes of all distinct prefixes that a viewer may subscribe to while it is connected, and what is added to each.

That is enough for 600 topics of the longest names, or 1,400 of usual ones. In libzmq those of one connection take 3 MB
at most, or 6 MB if sent in one `BURST`, before it is cut off; all is freed when it goes. For viewers that speak ZMTP 1
or 2, libzmq does not say who subscribes: such a viewer may send that many bytes in total.
"""
LOOK_SECONDS = 0.1
SHARE_OF_FILES = 4
"""Viewers may use one in so many of the process's file descriptors; the newest beyond that are cut off."""
TELL_SECONDS = 10.0
"""Minimum time between two log lines."""
BYTES_RECEIVED = struct.Struct("=128xQ")
"""Where Linux's `tcp_info` has `tcpi_bytes_received`."""
GONE = (EBADF, ENOTSOCK)
"""Errors for a file descriptor that is not a socket any more; after any other error the guest is still there."""

log = logging.getLogger(__name__)


@dataclass
class Guest:
    """An accepted connection."""

    inode: int
    """Of its socket: file descriptors are reused."""
    received: int = 0
    level: float = 0.0
    """Bytes that it has sent beyond `RATE`."""
    looked: float = 0.0
    prefixes: set[bytes] = field(default_factory=set)
    """All that it has subscribed to since it came."""
    subscribed: int = 0
    """Their bytes, as `SUBSCRIBED_MOST` counts them."""
    unwanted: str = ""
    """Why it is to be cut off."""


class Bouncer:
    """Watches the TCP connections of a socket, from construction until `stop`; on Linux, which counts their bytes."""

    def __init__(self, publisher: zmq.SyncSocket) -> None:
        """`publisher` must not be bound yet."""
        self._publisher = publisher
        self._events = publisher.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED)
        self._guests: dict[int, Guest] = {}
        self._nameless = 0
        """Bytes of prefixes whose subscriber libzmq did not name, as `SUBSCRIBED_MOST` counts them."""
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // SHARE_OF_FILES
        self._stopping = threading.Event()
        self._told, self._untold = -TELL_SECONDS, 0
        self._thread = threading.Thread(target=self._run, name="nightbridge-bouncer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; the publisher's socket must still be open."""
        self._stopping.set()
        self._thread.join()
        self._publisher.disable_monitor()
        self._events.close(linger=0)

    def hear(self, event: zmq.Frame) -> None:
        """Take an event from the publisher's socket, in whichever thread reads it.

        What a closed connection had sent may count for the one that has taken its place.
        """
        kind, prefix = event.bytes[:1], event.bytes[1:]
        if kind != b"\1":
            return
        try:
            guest = self._guests.get(int(event.get(zmq.SRCFD)))
        except zmq.ZMQError:
            self._nameless += len(prefix) + PREFIX_EXTRA
            return
        if guest is None or guest.unwanted or prefix in guest.prefixes:
            return
        guest.prefixes.add(prefix)
        guest.subscribed += len(prefix) + PREFIX_EXTRA
        if guest.subscribed > SUBSCRIBED_MOST:
            guest.unwanted = f"it subscribed to {len(guest.prefixes)} different topics"

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self._events.poll(round(LOOK_SECONDS * 1000)):
                event = recv_monitor_message(self._events)
                self._note(event["event"], event["value"])
            for number, guest in list(self._guests.items()):
                if time.monotonic() - guest.looked >= LOOK_SECONDS:
                    self._look_at(number, guest)

    def _note(self, event: int, number: int) -> None:
        """Note that a connection has come or gone."""
        if event != zmq.EVENT_ACCEPTED:
            self._guests.pop(number, None)
            return
        try:
            self._guests[number] = Guest(os.fstat(number).st_ino)
        except OSError:  # it has gone already
            return
        if len(self._guests) > self._most:
            self._guests[number].unwanted = f"more than {self._most} viewers"

    def _look_at(self, number: int, guest: Guest) -> None:
        now = time.monotonic()
        try:
            with connection_of(number, guest) as connection:
                (received,) = BYTES_RECEIVED.unpack_from(
                    connection.getsockopt(IPPROTO_TCP, TCP_INFO, BYTES_RECEIVED.size)
                )
                allowed = RATE * (now - guest.looked) if guest.looked else 0.0
                guest.level = max(0.0, guest.level + received - guest.received - allowed)
                guest.received, guest.looked = received, now
                nameless = not guest.prefixes and self._nameless > SUBSCRIBED_MOST
                if guest.level > BURST or (nameless and received > SUBSCRIBED_MOST):
                    guest.unwanted = f"it sent {received} bytes"
                if guest.unwanted:
                    self._cut_off(connection, guest.unwanted)
                    self._guests.pop(number)
        except (OSError, struct.error) as error:
            if isinstance(error, OSError) and error.errno in GONE:
                self._guests.pop(number)

    def _cut_off(self, connection: socket, why: str) -> None:
        who = connection.getpeername()[0]
        connection.shutdown(SHUT_RDWR)
        self._untold += 1
        if time.monotonic() - self._told >= TELL_SECONDS:
            log.warning("%d viewers were cut off; the last one at %s: %s", self._untold, who, why)
            self._told, self._untold = time.monotonic(), 0


def connection_of(number: int, guest: Guest) -> socket:
    """A guest's connection under a duplicated file descriptor. Raises `OSError`, one of `GONE` if it is gone."""
    copy = os.dup(number)
    if os.fstat(copy).st_ino != guest.inode:
        os.close(copy)
        raise OSError(EBADF, os.strerror(EBADF))
    return socket(fileno=copy)
