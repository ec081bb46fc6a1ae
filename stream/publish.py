"""The one socket that all feeds leave by."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from stream.errors import WireError
from stream.settings import CurveSettings, RelaySettings
from stream.wire import Header, Kind, Numbering, encode_message, topic

LINGER_MS = 500
"""How long a closed publisher's last messages may still be on their way."""

HEARTBEAT_MS, VIEWER_LOST_MS = 2_000, 10_000
"""A viewer that has not answered for this long is cut off, and what waits for it is freed."""

JOIN_INTERVAL = 1.0
"""Seconds between key frames that a feed makes for new viewers."""


class Publisher:
    """Publishes all feeds of one run of the relay, at one endpoint. A context manager; any thread may call it.

    It never waits for a viewer: for each of them `high_water_mark` messages are kept, further ones are lost for that
    viewer alone. `relay_id` must differ from run to run. Raises `WireError`.
    """

    def __init__(self, settings: RelaySettings, relay_id: str) -> None:
        self._settings = settings
        self._relay_id = relay_id
        self._lock = threading.Lock()
        self._socket: zmq.SyncSocket | None = None
        self._doorkeeper: ThreadAuthenticator | None = None
        self._numbers: dict[bytes, Numbering] = {}
        self._joins = Joins(JOIN_INTERVAL)
        self.endpoint = settings.endpoint
        """Where viewers connect; inside the `with` block with its real port."""

    def __enter__(self) -> Self:
        context: zmq.SyncContext = zmq.Context.instance()
        socket = context.socket(zmq.XPUB)
        try:
            socket.set(zmq.XPUB_VERBOSE, 1)  # tells of every viewer, not only of a topic's first
            socket.set(zmq.SNDHWM, self._settings.high_water_mark)
            socket.set(zmq.SNDBUF, self._settings.send_buffer)
            socket.set(zmq.LINGER, LINGER_MS)
            socket.set(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
            socket.set(zmq.HEARTBEAT_TIMEOUT, VIEWER_LOST_MS)
            self._doorkeeper = encrypt(socket, self._settings.curve)
            socket.bind(self._settings.endpoint)
        except zmq.ZMQError as error:
            self._close(socket)
            raise WireError(f"cannot publish at {self._settings.endpoint}: {zmq.strerror(error.errno or 0)}") from None
        except BaseException:
            self._close(socket)
            raise
        self._socket = socket
        self.endpoint = socket.get_string(zmq.LAST_ENDPOINT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            socket, self._socket = self._socket, None
            if socket is not None:
                self._close(socket)

    def publish(self, feed: str, kind: Kind, header: Header, payload: bytes) -> int:
        """Send one message and tell its `seq`; relay, feed, numbers and the time of publishing are added here."""
        name = topic(feed, kind)
        with self._lock:
            socket = self._open_socket()
            self._hear_viewers(socket)
            numbers = self._numbers.setdefault(name, Numbering(kind))
            stamped = numbers.stamp(header, self._relay_id, feed, time.time_ns())
            socket.send_multipart(encode_message(name, stamped, payload), zmq.DONTWAIT)
            return stamped.seq

    def take_join(self, feed: str) -> bool:
        """Whether the feed is to begin a key frame: True once after viewers have come, at most once a second."""
        with self._lock:
            self._hear_viewers(self._open_socket())
            return self._joins.take(topic(feed, "video"), time.monotonic())

    def _open_socket(self) -> zmq.SyncSocket:
        if self._socket is None:
            raise WireError("the publisher is closed: use it inside its `with` block")
        return self._socket

    def _hear_viewers(self, socket: zmq.SyncSocket) -> None:
        while socket.poll(0):
            self._joins.add(socket.recv())

    def _close(self, socket: zmq.SyncSocket) -> None:
        socket.close()
        if self._doorkeeper is not None:
            self._doorkeeper.stop()


class Joins:
    """Which topics have had new subscriptions. Pure; knows as many prefixes as viewers hold at this moment."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._count = 0
        self._subscribed: dict[bytes, int] = {}
        """Number of the latest subscription to each prefix."""
        self._taken: dict[bytes, tuple[int, float]] = {}
        """Number of the latest subscription that was taken for a topic, and when."""

    def add(self, event: bytes) -> None:
        """Take what XPUB received: a byte 1 (comes) or 0 (has left) and the prefix; all else is ignored."""
        if event[:1] == b"\1":
            self._count += 1
            self._subscribed[event[1:]] = self._count
        elif event[:1] == b"\0":
            self._subscribed.pop(event[1:], None)

    def take(self, topic: bytes, now: float) -> bool:
        """Whether somebody subscribed to the topic since this was last True; True once an interval at most."""
        latest = max(self._subscribed.get(topic[:length], 0) for length in range(len(topic) + 1))
        taken, when = self._taken.get(topic, (0, -self._interval))
        if latest <= taken or now - when < self._interval:
            return False
        self._taken[topic] = (latest, now)
        return True


def encrypt(socket: zmq.SyncSocket, curve: CurveSettings) -> ThreadAuthenticator | None:
    """Make a socket that is not bound yet a CURVE server, where the settings hold its key.

    Returns whoever checks the viewers' keys, to be stopped after the socket. Raises `WireError`.
    """
    if curve.server_secret_key_file is None:
        return None
    try:
        public, secret = zmq.auth.load_certificate(curve.server_secret_key_file)
        folder = curve.client_keys_folder
        if folder is not None:
            zmq.auth.load_certificates(folder)  # fails here rather than turning all viewers away later
    except (OSError, ValueError) as error:
        raise WireError(f"CURVE keys that cannot be read: {error}") from None
    if secret is None:
        raise WireError(f"{curve.server_secret_key_file} holds no secret key")
    socket.set(zmq.CURVE_SERVER, 1)
    socket.set(zmq.CURVE_PUBLICKEY, public)
    socket.set(zmq.CURVE_SECRETKEY, secret)
    if folder is None:
        return None
    doorkeeper = ThreadAuthenticator(socket.context)
    doorkeeper.start()
    doorkeeper.configure_curve(location=str(folder))
    return doorkeeper
