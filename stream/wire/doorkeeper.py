"""Who may listen to an encrypted relay (CurveZMQ, ZeroMQ RFC 26; its viewers are judged by ZAP, RFC 27)."""

from __future__ import annotations

import logging
from errno import EMFILE, ENFILE
from pathlib import Path
from time import monotonic

import zmq
from zmq.auth.thread import ThreadAuthenticator

from stream.errors import WireError
from stream.settings import CurveSettings
from stream.wire.keys import check_public_keys, key_files, read_keys

TOLD_SECONDS = 10.0
"""Between two lines about viewers that were turned away: there may be very many."""

log = logging.getLogger(__name__)


def encrypt(socket: zmq.SyncSocket, curve: CurveSettings) -> ThreadAuthenticator | None:
    """Make a socket that is not bound yet a CURVE server, where the settings hold its key.

    Returns whoever checks the viewers' keys, to be stopped after the socket. Raises `WireError`.
    """
    if curve.server_secret_key_file is None:
        return None
    try:
        public, secret = read_keys(curve.server_secret_key_file)
        folder = curve.client_keys_folder
        if folder is not None:
            check_public_keys(folder)  # fails here rather than turning viewers away later
    except (OSError, ValueError) as error:
        raise WireError(f"CURVE keys that cannot be read: {error}") from None
    if secret is None:
        raise WireError(f"{curve.server_secret_key_file} holds no secret key")
    socket.set(zmq.CURVE_SERVER, 1)
    socket.set(zmq.CURVE_PUBLICKEY, public)
    socket.set(zmq.CURVE_SECRETKEY, secret)
    if folder is None:
        return None
    doorkeeper = Doorkeeper(socket.context)
    doorkeeper.start()
    doorkeeper.configure_curve_callback(credentials_provider=Guests(folder))
    return doorkeeper


class Doorkeeper(ThreadAuthenticator):
    """Judges viewers, in a thread of its own; one that cannot be judged at this moment is to come again."""

    async def handle_zap_message(self, msg: list[bytes]) -> None:
        """Answer one request (RFC 27)."""
        try:
            await super().handle_zap_message(msg)
        except OSError:
            version, request = msg[:2]
            self.zap_socket.send_multipart([version, request, b"300", b"keys cannot be read now", b"", b""])


class Guests:
    """Viewers whose public keys lie in a folder at the moment they connect, as `NAME.key`. Asked by one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unreadable: set[Path] = set()
        """Files that were told of."""
        self._turned_away = 0
        """Viewers that were not told of yet."""
        self._quiet_until = 0.0

    def callback(self, _domain: str, key: bytes) -> bool:
        """Whether the viewer with this public key (Z85, 40 characters) is let in.

        Raises `OSError` where that cannot be known at this moment, and nothing else: that would end the thread that
        asks, and nobody would be let in any more.
        """
        try:
            is_known = any(key == theirs for theirs in map(self._read, key_files(self._folder)))
        except OSError as error:
            self._tell(f"viewers are kept waiting: {self._folder} cannot be read: {error.strerror}")
            raise
        if not is_known:
            others = f", after {self._turned_away} others" if self._turned_away else ""
            why = f"its public key {key.decode('ascii', 'replace')} is not in {self._folder}"
            told = self._tell(f"a viewer was turned away{others}: {why}")
            self._turned_away = 0 if told else self._turned_away + 1
        return is_known

    def _read(self, path: Path) -> bytes | None:
        """The public key in a file; None where there is none, which is told once. Raises `OSError` where the process
        or the machine may open no more files."""
        try:
            key, _ = read_keys(path)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in (EMFILE, ENFILE):
                raise
            if path not in self._unreadable:
                log.warning("a viewer's key that cannot be read lets nobody in: %s", error)
                self._unreadable.add(path)
            return None
        self._unreadable.discard(path)
        return key

    def _tell(self, line: str) -> bool:
        """Whether a line was logged: none is within `TOLD_SECONDS` of another one."""
        now = monotonic()
        if now < self._quiet_until:
            return False
        log.warning("%s", line)
        self._quiet_until = now + TOLD_SECONDS
        return True
