"""Cuts off viewers that send what no viewer has to say, before it fills libzmq.

XPUB takes in all that a connection sends before it gives a call back: one that subscribes without an end stops every
`publish`, whatever the limits of messages are. So the bytes that the kernel has received are looked at, connection by
connection, from a thread that needs nothing of the publisher.
"""

from __future__ import annotations

import logging
import os
import resource
import struct
import threading
import time
from dataclasses import dataclass
from errno import EBADF, ENOTSOCK
from socket import IPPROTO_TCP, SHUT_RDWR, TCP_INFO, socket

import zmq
from zmq.utils.monitor import recv_monitor_message

BURST, RATE = 65_536, 16_384
"""Bytes that a viewer may send at once, and in every second: it shakes hands and subscribes, and then it is silent."""
LOOK_SECONDS = 0.1
SHARE_OF_FILES = 4
"""Viewers may have one in so many of the files that the process may open; the newest beyond them are cut off."""
TELL_SECONDS = 10.0
"""Between two lines of the log."""
BYTES_RECEIVED = struct.Struct("=128xQ")
"""Where Linux's `tcp_info` has `tcpi_bytes_received`."""
GONE = (EBADF, ENOTSOCK)
"""What the system says of a number that is no socket any more; after any other error the guest is still there."""

log = logging.getLogger(__name__)


@dataclass
class Guest:
    """A connection that was let in."""

    inode: int
    """Of its socket: a number of a file is given to others when it is gone."""
    received: int = 0
    level: float = 0.0
    """What it has sent beyond `RATE`, bytes."""
    looked: float = 0.0
    unwanted: str = ""
    """Why it is to be cut off."""


class Bouncer:
    """Watches the TCP connections of a socket, from its making until `stop`; on Linux, which counts their bytes."""

    def __init__(self, publisher: zmq.SyncSocket) -> None:
        """`publisher` must not be bound yet."""
        self._publisher = publisher
        self._events = publisher.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED)
        self._guests: dict[int, Guest] = {}
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

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self._events.poll(round(LOOK_SECONDS * 1000)):
                event = recv_monitor_message(self._events)
                self._note(event["event"], event["value"])
            for number, guest in list(self._guests.items()):
                if time.monotonic() - guest.looked >= LOOK_SECONDS:
                    self._look_at(number, guest)

    def _note(self, event: int, number: int) -> None:
        """A connection has come, or gone."""
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
                if guest.level > BURST:
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
    """A guest's connection under a number of its own. Raises `OSError`, one of `GONE` where it has gone."""
    copy = os.dup(number)
    if os.fstat(copy).st_ino != guest.inode:
        os.close(copy)
        raise OSError(EBADF, os.strerror(EBADF))
    return socket(fileno=copy)
