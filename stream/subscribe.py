"""Receives messages for a viewer: without gaps and never stale, whatever the viewer or the network does."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import AF_INET6, SOCK_STREAM, getaddrinfo
from types import TracebackType
from typing import Self

import zmq
from zmq.utils.monitor import recv_monitor_message

from stream.errors import WireError
from stream.wire.inbox import Inbox, Reason
from stream.wire.keys import read_keys
from stream.wire.messages import ALL_FEEDS, Kind, Message, decode_message, topic

POLL_MS = 100
"""How often an idle receiver checks whether it is to end."""

RECEIVE_BUFFER = 65_536
"""Kernel receive buffer, in bytes: small, since what waits there becomes stale."""

RECONNECT_MS, LONGEST_RECONNECT_MS = 100, 500
"""First and longest interval between attempts to reach a relay that is not there."""

LAST_ONES_MS = 500
"""How long a closed lossless subscriber reads, at most, what was still on its way."""

LOOKUP_SECONDS = 1.0
"""How long connecting waits, at most, to learn whether a name has an IPv4 address."""

HEARTBEAT_MS, RELAY_LOST_MS = 1_000, 5_000
"""Heartbeat interval, and the silence or connection time after which a connection is made anew, without end."""

WAITING_MOST = 1_000
"""High-water mark of messages that wait for a lossless reader; beyond it the socket is left unread."""

UNREAD_MOST = 8
"""High-water mark, in messages, of a socket that is left unread."""

REFUSALS = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
"""ZeroMQ's events for a relay that refuses this viewer's key, or requires one; ZeroMQ does not try again then."""

HANDSHAKES = REFUSALS | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_SUCCEEDED
"""Events that are monitored while a connection begins."""

BROKEN_MOST = 5
"""Consecutive failed handshakes after which a warning is logged."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ViewerKeys:
    """CURVE keys of a viewer, as files that `zmq.auth` writes."""

    server_public_key_file: Path
    secret_key_file: Path


class Subscriber:
    """Receives from one relay; an iterator of messages and a context manager, for one reader.

    A thread of its own drains the socket continuously. Messages delayed by more than `max_age` seconds, on the way or
    by waiting for the reader, are dropped; pictures up to the next key frame. A key frame that is late only because of
    its size, by a second at most, is still read, and so is what follows it. After a gap or a drop the relay is asked
    for a key frame, at most once a second per feed, and pictures resume with it; a restarted relay is no gap. If
    everything has been late for a second, the connection is made anew, which discards the backlog of a thin link.
    Attempts that do not help for long are made ever more rarely.

    With `max_age` None nothing is too old: at most `WAITING_MOST` messages wait for the reader, then the socket is read
    only as fast as the reader takes them; what has arrived when it is closed is still delivered. `feed` None means all
    feeds; messages of kind `feeds` cover all feeds in any case. Repeated failed handshakes are warned of once, except
    by a subscriber to `status` or `feeds` alone: the viewer's subscriber to pictures warns already.

    Raises `WireError`, also from the reader's calls: for an endpoint that cannot be used, for a relay that wants other
    keys, and for messages that are not of wire version 1.
    """

    def __init__(
        self,
        endpoint: str,
        feed: str | None = None,
        kinds: Sequence[Kind] = ("video",),
        max_age: float | None = 0.5,
        keys: ViewerKeys | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._prefixes = [topic(ALL_FEEDS if kind == "feeds" else feed, kind) for kind in kinds] if feed else [b""]
        self._endings = tuple(f"/{kind}/".encode() for kind in kinds)
        self._receives_status_only = {"status", "feeds"}.issuperset(kinds)
        self._lossless = max_age is None
        self._keys = keys
        self._inbox = Inbox(max_age)
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._last_ones_end = 0.0
        self._is_drained = True
        """Whether nothing more will come to the inbox."""
        self._failure: Exception | None = None
        self._broken = 0
        """Consecutive failed handshakes."""
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        socket = self._connect()
        self._is_drained = False
        self._thread = threading.Thread(target=self._drain, args=(socket,), name="nightbridge-subscriber", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """End the reader's loop, from any thread."""
        with self._changed:
            if not self._closing.is_set():
                self._last_ones_end = time.monotonic() + LAST_ONES_MS / 1_000
            self._closing.set()
            self._changed.notify_all()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closing.is_set()

    def __iter__(self) -> Iterator[Message]:
        """Messages as they come, until the subscriber is closed."""
        while (message := self.receive()) is not None:
            yield message

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message; None if none came within `timeout` seconds (None: no limit), or once closed."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self._lossless or not self._closing.is_set():
                if (message := self._inbox.take(time.monotonic_ns())) is not None:
                    self._changed.notify_all()  # there is room again
                    return message
                if self._closing.is_set() and self._is_drained:
                    return None
                if self._failure is not None:
                    raise self._failure
                remaining = None if end is None else end - time.monotonic()
                if remaining is not None and remaining <= 0:
                    return None
                self._changed.wait(remaining)
        return None

    @property
    def received(self) -> int:
        """Messages that came in, dropped ones included."""
        return self._inbox.received

    @property
    def lost(self) -> int:
        """Messages that were published but did not arrive, counted by gaps in `seq`."""
        return self._inbox.lost

    @property
    def dropped(self) -> dict[Reason, int]:
        """Messages that came in and were not given to the reader, by reason."""
        with self._changed:
            return dict(self._inbox.dropped)

    @property
    def states(self) -> dict[str, int]:
        """Enhanced pictures that came in, by the state in their headers."""
        with self._changed:
            return dict(self._inbox.states)

    @property
    def trouble(self) -> str | None:
        """What may be wrong if every handshake fails; None if connections succeed."""
        if self._broken < BROKEN_MOST:
            return None
        others = (
            "or an encrypted relay, which needs --relay-key and --secret-key (docs/deploy.md)"
            if self._keys is None
            else f"or its key is not the one in {self._keys.server_public_key_file}, "
            "or it cannot read its viewers' keys at the moment"
        )
        return f"connections to {self.endpoint} fail in the handshake: what listens there is not a relay, {others}"

    def _connect(self) -> zmq.SyncSocket:
        try:
            context: zmq.SyncContext = zmq.Context.instance()
            with ExitStack() as opened:
                socket = context.socket(zmq.SUB)
                opened.callback(shut, socket)
                socket.set(zmq.LINGER, 0)
                socket.set(zmq.IPV6, is_ipv6_only(self.endpoint))  # else a name with both is looked up as IPv6 alone
                socket.set(zmq.RCVBUF, RECEIVE_BUFFER)
                socket.set(zmq.RECONNECT_IVL, RECONNECT_MS)
                socket.set(zmq.RECONNECT_IVL_MAX, LONGEST_RECONNECT_MS)
                notice_lost_relay(socket, self._lossless)
                if self._keys is not None:
                    use_keys(socket, self._keys)
                for prefix in self._prefixes:
                    socket.subscribe(prefix)
                socket.get_monitor_socket(HANDSHAKES)
                socket.connect(self.endpoint)
                opened.pop_all()
                return socket
        except zmq.ZMQError as error:
            raise WireError(
                f"cannot subscribe at {self.endpoint!r} ({zmq.strerror(error.errno or 0)}); "
                "an endpoint looks like tcp://HOST:PORT or ipc:///PATH"
            ) from None

    def _drain(self, socket: zmq.SyncSocket) -> None:
        try:
            while True:
                try:
                    self._listen(socket, socket.get_monitor_socket())
                finally:
                    shut(socket)
                if self._closing.is_set():
                    return
                socket = self._connect()
                with self._changed:
                    self._inbox.begin_anew(time.monotonic_ns())
        except Exception as error:  # the reader must not wait for what will never come
            self._fail(error)
        finally:
            with self._changed:
                self._is_drained = True
                self._changed.notify_all()

    def _listen(self, socket: zmq.SyncSocket, handshakes: zmq.SyncSocket) -> None:
        """Receive until the subscriber is closed, or this connection delivers only messages that are too old.

        Raises `WireError` if the relay refuses.
        """
        subscribed = set(self._prefixes)
        while not self._closing.is_set() or self._has_last_ones(socket):
            self._wait_for_room()
            if not socket.poll(POLL_MS):
                while handshakes.poll(0):
                    self._judge(recv_monitor_message(handshakes)["event"])
                continue
            parts = socket.recv_multipart()
            if not parts[0].endswith(self._endings):  # a kind not asked for, or a later addition to version 1
                continue
            message, now_ns = decode_message(parts), time.monotonic_ns()
            with self._changed:
                key_frame_is_wanted = self._inbox.add(message, now_ns)
                is_behind = self._inbox.is_behind(now_ns)
                self._changed.notify_all()
            if is_behind:
                return
            if key_frame_is_wanted:
                ask_for_key_frame(socket, parts[0], subscribed)

    def _judge(self, handshake: int) -> None:
        """Act on the result of a handshake. Raises `WireError` for a refusal."""
        if handshake & REFUSALS:
            raise self._refused(handshake)
        if handshake == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._broken = 0
            return
        self._broken += 1
        if self._broken == BROKEN_MOST and not self._receives_status_only:
            log.warning("%s; still retrying", self.trouble)

    def _refused(self, event: int) -> WireError:
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return WireError(
                f"the relay at {self.endpoint} rejected this viewer: "
                "its public key must be in the relay's client_keys_folder"
            )
        if self._keys is None:
            return WireError(
                f"the relay at {self.endpoint} is encrypted and needs --relay-key and --secret-key (docs/deploy.md)"
            )
        return WireError(f"the relay at {self.endpoint} is not encrypted: leave out --relay-key and --secret-key")

    def _has_last_ones(self, socket: zmq.SyncSocket) -> bool:
        """Whether a closed lossless subscriber still has messages to read.

        Messages in the kernel are behind those in the socket, and take a moment to move up.
        """
        remaining_ms = min(POLL_MS, int((self._last_ones_end - time.monotonic()) * 1_000))
        has_room = self._lossless and len(self._inbox) < WAITING_MOST
        return has_room and remaining_ms > 0 and bool(socket.poll(remaining_ms))

    def _wait_for_room(self) -> None:
        with self._changed:
            while self._lossless and len(self._inbox) >= WAITING_MOST and not self._closing.is_set():
                self._changed.wait()

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._failure = error
            self._changed.notify_all()


def is_ipv6_only(endpoint: str) -> bool:
    """Whether the host of an endpoint has IPv6 addresses and none of IPv4; False if that is not known soon."""
    scheme, _, rest = endpoint.partition("://")
    host = rest.rpartition(":")[0]
    if scheme != "tcp" or "[" in host:
        return "[" in host
    found: set[int] = set()

    def look_up() -> None:
        with suppress(OSError, ValueError):
            found.update([family for family, *_ in getaddrinfo(host, None, type=SOCK_STREAM)])

    thread = threading.Thread(target=look_up, name="nightbridge-lookup", daemon=True)  # it cannot be cancelled
    thread.start()
    thread.join(LOOKUP_SECONDS)
    return found == {AF_INET6}


def shut(socket: zmq.SyncSocket) -> None:
    """Close a socket and its monitor."""
    with suppress(zmq.ZMQError):  # there may be no monitor yet, and no descriptors for one
        handshakes = socket.get_monitor_socket(HANDSHAKES)
        socket.disable_monitor()
        handshakes.close()
    socket.close()


def ask_for_key_frame(socket: zmq.SyncSocket, topic: bytes, subscribed: set[bytes]) -> None:
    """Ask for a key frame by subscribing to a topic once more; nothing is missed meanwhile."""
    socket.subscribe(topic)
    if topic in subscribed:
        socket.unsubscribe(topic)  # ZeroMQ counts subscriptions: the first one stays
    subscribed.add(topic)


def notice_lost_relay(socket: zmq.SyncSocket, lossless: bool) -> None:
    """Make a socket that is not connected yet notice when its relay is gone.

    libzmq up to 4.3.5 takes an unread socket for a dead connection, and its heartbeats then abort the whole process
    (github.com/zeromq/libzmq/issues/3937). So heartbeats are used only for a socket that is always read and has no
    high-water mark; a lossless one uses TCP keep-alive.
    """
    socket.set(zmq.CONNECT_TIMEOUT, RELAY_LOST_MS)  # the kernel retries ever more rarely: slow on a restored link
    socket.set(zmq.HANDSHAKE_IVL, RELAY_LOST_MS)
    if lossless:
        socket.set(zmq.RCVHWM, UNREAD_MOST)
        socket.set(zmq.TCP_KEEPALIVE, 1)
        socket.set(zmq.TCP_KEEPALIVE_IDLE, RELAY_LOST_MS // 2_000)
        socket.set(zmq.TCP_KEEPALIVE_INTVL, 1)
        socket.set(zmq.TCP_KEEPALIVE_CNT, RELAY_LOST_MS // 2_000)
    else:
        socket.set(zmq.RCVHWM, 0)
        socket.set(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.set(zmq.HEARTBEAT_TIMEOUT, RELAY_LOST_MS)


def use_keys(socket: zmq.SyncSocket, keys: ViewerKeys) -> None:
    """Make a socket that is not connected yet a CURVE client. Raises `WireError`."""
    try:
        server, _ = read_keys(keys.server_public_key_file)
        public, secret = read_keys(keys.secret_key_file)
    except (OSError, ValueError) as error:
        raise WireError(f"cannot read the CURVE keys: {error}") from None
    if secret is None:
        raise WireError(f"{keys.secret_key_file} holds no secret key")
    socket.set(zmq.CURVE_SERVERKEY, server)
    socket.set(zmq.CURVE_PUBLICKEY, public)
    socket.set(zmq.CURVE_SECRETKEY, secret)
