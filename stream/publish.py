"""The publisher: one socket for all feeds."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from errno import EADDRINUSE
from pathlib import Path
from socket import AF_UNIX
from socket import socket as system_socket
from types import TracebackType
from typing import Self

import msgspec
import zmq
from zmq.auth.thread import ThreadAuthenticator

from stream.errors import WireError
from stream.settings import RelaySettings
from stream.wire.bouncer import Bouncer
from stream.wire.doorkeeper import encrypt
from stream.wire.messages import ALL_FEEDS, FEED_NAME, KINDS, Header, Kind, Numbering, Stamped, encode_message, topic

LINGER_MS = 500
"""How long a closed publisher's last messages have to be delivered."""

VIEWER_LOST = 10.0
"""Seconds after which a viewer whose machine has taken nothing is cut off, and what waits for it is freed."""

PATIENCE = 30.0
"""Seconds that a lossless publisher waits for one viewer."""

UNDER_WAY_MOST = 8
"""Messages queued for each viewer of a lossless publisher: it waits for room, so more would gain nothing."""

LONGEST_LINGER = UNDER_WAY_MOST * PATIENCE
"""Seconds in which all of them can leave, however slowly; over TCP a viewer that takes none is cut off much earlier."""

HURRIED: tuple[Kind, ...] = ("status", "feeds")
"""Kinds for which no publisher waits long: the next message supersedes them."""

HURRIED_PATIENCE = 0.3
"""Seconds that a lossless publisher waits for one viewer with those. Sent only to viewers with room, they would make
libzmq skip the other viewers for the next messages, too."""

LEAST_BUFFER = 65_536
"""Smallest kernel send buffer for each viewer of a lossless publisher, in bytes: with less, libzmq may end a connection
before all of the last message has left."""

ROOM_INTERVAL = 0.002
VIEWER_INTERVAL = 0.02
"""Seconds between two checks for room, and for a viewer: ZeroMQ's XPUB signals neither."""

HANDSHAKE_MS = 5_000
"""How long a connection's handshake may take."""

LOOK_INTERVAL = 0.005
"""Seconds between two looks at new subscriptions, at least, however many pictures are published meanwhile."""

AT_ONCE, MORE_TO_COME = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)
"""Flags as plain integers: `send_multipart` combines enumeration members for every part, which costs more than sending.
"""

EVENTS_SECONDS = 0.002
"""How long one call reads subscriptions, at most: a flood of them must not hold up the pictures."""

LONGEST_EVENT = 1024
"""Largest message from a viewer, in bytes: viewers send nothing but subscriptions."""

SUBSCRIPTIONS_KEPT = 10_000
"""Distinct prefixes that are remembered; beyond them a new one is assumed to match everything."""

JOIN_INTERVAL = 1.0
"""Minimum seconds between key frames that a feed makes for new viewers."""
JOINS_AT_ONCE, LONG_RUN_INTERVAL = 3, 2.0
"""Key frames after which they come only every `LONG_RUN_INTERVAL` seconds, until fewer are requested: each costs all
viewers of the feed bandwidth, and endless requests must not cost more than the usual `key_interval`."""


class Publisher:
    """Publishes all feeds of one run of the relay, at one endpoint. A context manager; any thread may call it.

    It never waits for a viewer: up to `high_water_mark` messages are queued for each, and further ones are lost for
    that viewer alone. The queue must hold what all feeds publish at one moment: 64 suffice for pictures, source and
    data of 16 feeds; with fewer, even a healthy viewer of all of them sees gaps. It does not decide how old pictures
    get: viewers drop old ones themselves.

    With `lossless` it does wait: `publish` returns when every viewer has room, so the slowest viewer sets the pace of
    what it subscribed to. A viewer that takes nothing for `PATIENCE` seconds still loses messages, as does one that has
    not taken the last ones within `linger` seconds of the end.

    `relay_id` must differ from run to run. Raises `WireError`.
    """

    def __init__(self, settings: RelaySettings, relay_id: str, lossless: bool = False) -> None:
        self._settings = settings
        self.relay_id = relay_id
        """Id of this run."""
        self._lossless = lossless
        self._lock = threading.Lock()
        """Guards the socket; held for moments only."""
        self._context: zmq.SyncContext | None = None
        self._socket: zmq.SyncSocket | None = None
        self._doorkeeper: ThreadAuthenticator | None = None
        self._bouncer: Bouncer | None = None
        self._sequences: dict[bytes, TopicSequence] = {}
        self._joins = Joins(JOIN_INTERVAL)
        self._next_look = 0.0
        """When to read subscriptions again; seconds of `time.monotonic`."""
        self.endpoint = settings.endpoint
        """Where viewers connect; inside the `with` block with its real port."""
        self.linger = settings.stop_timeout if lossless else LINGER_MS / 1000
        """Seconds that the last messages have to be delivered after the end; to be changed before it."""

    def __enter__(self) -> Self:
        self._context = zmq.Context()  # its own: ending it waits until the last messages have left
        socket = self._context.socket(zmq.XPUB)
        try:
            self._set_options(socket)
            if self._settings.endpoint.startswith("tcp:"):
                self._bouncer = Bouncer(socket)
            self._doorkeeper = encrypt(socket, self._settings.curve)
            if reason := refusal(self._settings.endpoint):
                raise WireError(f"cannot publish at {self._settings.endpoint}: {reason}")
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
        """Close, from any thread; a `publish` that waits raises `WireError`.

        The last messages have `linger` seconds to leave: half a second, or `stop_timeout` for a lossless publisher.
        """
        with self._lock:
            socket, self._socket = self._socket, None
        if socket is None:
            return
        if self._lossless and kind is None and self.endpoint.startswith("ipc:"):
            self._see_viewers_off(socket)
        self._close(socket)

    def publish(self, feed: str, kind: Kind, header: Header, payload: bytes) -> int:
        """Send one message and return its `seq`; relay, feed, numbers and publishing time are added here.

        A lossless publisher waits for room; messages of `HURRIED` kinds are lost for all viewers if there is none soon.
        """
        name = topic(feed, kind)
        sequence = self._sequence(name, kind)
        with sequence.turn:
            stamped = sequence.numbers.stamp(header, self.relay_id, feed, time.time_ns())
            end, is_over = time.monotonic() + (HURRIED_PATIENCE if kind in HURRIED else PATIENCE), False
            while not self._send(name, stamped, payload, lossy=is_over and kind not in HURRIED) and not is_over:
                time.sleep(ROOM_INTERVAL)
                is_over = time.monotonic() >= end
        return stamped.seq

    def begin_anew(self, feed: str, kind: Kind) -> None:
        """Number the next messages as pictures that refer to none of those before them."""
        sequence = self._sequence(topic(feed, kind), kind)
        with sequence.turn:
            sequence.numbers.begin_anew()

    def _sequence(self, name: bytes, kind: Kind) -> TopicSequence:
        return self._sequences.get(name) or self._sequences.setdefault(name, TopicSequence(kind))

    def take_join(self, feed: str) -> bool:
        """Whether the feed is to make a key frame: True once after viewers have joined, at most once a second, and in
        the long run at most every two seconds."""
        if time.monotonic() >= self._next_look:
            with self._lock:
                self._hear_viewers(self._open_socket())
        return self._joins.take(topic(feed, "video"), time.monotonic())

    def wait_for_viewer(self, feed: str, timeout: float) -> bool:
        """Whether there is a subscriber to any topic of the feed, waiting up to `timeout` seconds for one."""
        end = time.monotonic() + timeout
        while not self._has_viewer(feed):
            if time.monotonic() >= end:
                return False
            time.sleep(VIEWER_INTERVAL)
        return True

    def _has_viewer(self, feed: str) -> bool:
        with self._lock:
            self._hear_viewers(self._open_socket())
            return self._joins.has_any(f"{feed}/".encode())

    def _send(self, name: bytes, stamped: Stamped, payload: bytes, lossy: bool) -> bool:
        """Send a message to all viewers; False, having sent it to none, if one that must not lose it has no room."""
        with self._lock:
            socket = self._open_socket()
            self._hear_viewers(socket)
            if self._lossless:
                stamped = msgspec.structs.replace(stamped, published_ns=time.time_ns())
                socket.set(zmq.XPUB_NODROP, not lossy)
            try:
                *parts, last = encode_message(name, stamped, payload)
                for part in parts:
                    socket.send(part, MORE_TO_COME)
                socket.send(last, AT_ONCE)
            except zmq.Again:
                return False
            return True

    def _set_options(self, socket: zmq.SyncSocket) -> None:
        socket.set(zmq.IPV6, "[" in self._settings.endpoint)
        socket.set(zmq.XPUB_VERBOSE, 1)  # reports every subscription, not only a topic's first
        socket.set(zmq.MAXMSGSIZE, LONGEST_EVENT)
        socket.set(zmq.RCVHWM, 0)  # in libzmq 4.3.5 a full inlet and a reset connection end the process; see `Bouncer`
        socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        socket.set(zmq.SNDHWM, UNDER_WAY_MOST if self._lossless else self._settings.high_water_mark)
        least = LEAST_BUFFER if self._lossless else 0
        socket.set(zmq.SNDBUF, max(least, self._settings.send_buffer))
        drop_lost_viewers(socket, PATIENCE if self._lossless else VIEWER_LOST)

    def _open_socket(self) -> zmq.SyncSocket:
        if self._socket is None:
            raise WireError("the publisher is closed: use it inside its `with` block")
        return self._socket

    def _hear_viewers(self, socket: zmq.SyncSocket) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        end, self._next_look = now + EVENTS_SECONDS, now + LOOK_INTERVAL
        with suppress(zmq.Again):
            while time.monotonic() < end:
                event = socket.recv(zmq.DONTWAIT, copy=False)
                self._joins.add(event.bytes)
                if self._bouncer is not None:
                    self._bouncer.hear(event)

    def _see_viewers_off(self, socket: zmq.SyncSocket) -> None:
        """Give viewers time to read what is in the kernel: when an ipc connection ends, libzmq discards it in a viewer
        that left its socket unread; over TCP it does not."""
        end = time.monotonic() + min(self.linger, PATIENCE)
        while self._joins.has_any(b"") and time.monotonic() < end:
            time.sleep(VIEWER_INTERVAL)
            self._hear_viewers(socket)

    def _close(self, socket: zmq.SyncSocket) -> None:
        if self._bouncer is not None:
            self._bouncer.stop()
            self._bouncer = None
        socket.close(linger=round(self.linger * 1000))
        if self._doorkeeper is not None:
            self._doorkeeper.stop()
        if self._context is not None:
            self._context.term()


class TopicSequence:
    """One topic's numbering and sending order."""

    def __init__(self, kind: Kind) -> None:
        self.numbers = Numbering(kind)
        self.turn = threading.Lock()
        """Held by whoever numbers and sends a message."""


class Joins:
    """Which topics have had new subscriptions. Pure; holds only the prefixes that viewers subscribe to at this moment.

    For one thread at a time, except `take`, which each topic may call from a thread of its own.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._count = 0
        self._subscribed: dict[bytes, int] = {}
        """Number of the latest subscription to each prefix."""
        self._taken: dict[bytes, tuple[int, float, float]] = {}
        """By topic: number of the latest subscription taken, when, and how many key frames exceed the long-run rate."""
        self._unkept = 0
        """Number of the latest subscription that found no room."""

    def add(self, event: bytes) -> None:
        """Take an event from XPUB: a byte 1 (subscribe) or 0 (unsubscribe) and the prefix; all else is ignored, and so
        is a prefix that no topic begins with."""
        prefix = event[1:]
        if event[:1] == b"\1" and begins_a_topic(prefix):
            self._count += 1
            if len(self._subscribed) < SUBSCRIPTIONS_KEPT or prefix in self._subscribed:
                self._subscribed[prefix] = self._count
            else:
                self._unkept = self._count
        elif event[:1] == b"\0":
            self._subscribed.pop(prefix, None)

    def has_any(self, beginning: bytes) -> bool:
        """Whether any topic that begins like this has, or may have, a subscriber."""
        return len(self._subscribed) >= SUBSCRIPTIONS_KEPT or any(
            prefix.startswith(beginning) or beginning.startswith(prefix) for prefix in self._subscribed
        )

    def take(self, topic: bytes, now: float) -> bool:
        """Whether the topic was subscribed to since this last returned True; limited to once an interval, and in the
        long run to once in `LONG_RUN_INTERVAL`."""
        known = (self._subscribed.get(topic[:length], 0) for length in range(len(topic) + 1))
        latest = max(self._unkept, *known)
        taken, when, beyond = self._taken.get(topic, (0, -self._interval, 0.0))
        beyond = max(0.0, beyond - (now - when) / LONG_RUN_INTERVAL)
        if latest <= taken or now - when < self._interval or beyond > JOINS_AT_ONCE - 1:
            return False
        self._taken[topic] = (latest, now, beyond + 1)
        return True


def begins_a_topic(prefix: bytes) -> bool:
    """Whether a prefix matches any possible topic."""
    feed, _, kind = prefix.decode(errors="replace").partition("/")
    named = feed == ALL_FEEDS or FEED_NAME.fullmatch(feed) is not None
    return not prefix or (named and any(f"{each}/".startswith(kind) for each in KINDS))


def refusal(endpoint: str) -> str | None:
    """Why an ipc path must be left alone, or None: ZeroMQ would silently remove what is there, even a file."""
    scheme, _, path = endpoint.partition("://")
    if scheme != "ipc":
        return None
    if os.path.lexists(path) and not Path(path).is_socket():
        return "the path exists and is not a socket"
    with system_socket(AF_UNIX) as asking:
        asking.setblocking(False)
        try:
            asking.connect(path)
        except BlockingIOError:
            pass  # another process listens, with viewers that it has not accepted yet
        except OSError:
            return None
    return os.strerror(EADDRINUSE)


def drop_lost_viewers(socket: zmq.SyncSocket, seconds: float) -> None:
    """Make a socket that is not bound yet cut off viewers whose machines have taken nothing for `seconds`.

    TCP does this. ZeroMQ's heartbeats cannot: they are not sent while a connection is full, and they abort a viewer
    that leaves its socket unread (github.com/zeromq/libzmq/issues/3937).
    """
    socket.set(zmq.TCP_MAXRT, round(seconds * 1000))
    socket.set(zmq.TCP_KEEPALIVE, 1)
    socket.set(zmq.TCP_KEEPALIVE_IDLE, max(1, round(seconds / 2)))
    socket.set(zmq.TCP_KEEPALIVE_INTVL, 1)
