"""Decides who may subscribe to an encrypted relay (CurveZMQ, ZeroMQ RFC 26; ZAP, RFC 27, checks the viewers)."""

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

LOG_INTERVAL_SECONDS = 10.0
"""Minimum time between two log lines about rejected viewers: there may be very many."""

log = logging.getLogger(__name__)


def encrypt(socket: zmq.SyncSocket, curve: CurveSettings) -> ThreadAuthenticator | None:
    """Make a socket that is not bound yet a CURVE server, if the settings hold its key.

    Returns the authenticator of viewers' keys, if any, to be stopped after the socket. Raises `WireError`.
    """
    if curve.server_secret_key_file is None:
        return None
    try:
        public, secret = read_keys(curve.server_secret_key_file)
        folder = curve.client_keys_folder
        if folder is not None:
            check_public_keys(folder)  # fails here rather than turning viewers away later
    except (OSError, ValueError) as error:
        raise WireError(f"cannot read the CURVE keys: {error}") from None
    if secret is None:
        raise WireError(f"{curve.server_secret_key_file} holds no secret key")
    socket.set(zmq.CURVE_SERVER, 1)
    socket.set(zmq.CURVE_PUBLICKEY, public)
    socket.set(zmq.CURVE_SECRETKEY, secret)
    if folder is None:
        return None
    doorkeeper = Doorkeeper(socket.context)
    doorkeeper.start()
    doorkeeper.configure_curve_callback(credentials_provider=AllowedViewers(folder))
    return doorkeeper


class Doorkeeper(ThreadAuthenticator):
    """Authenticates viewers, in a thread of its own; one that cannot be checked at the moment is told to retry."""

    async def handle_zap_message(self, msg: list[bytes]) -> None:
        """Answer one request (RFC 27)."""
        try:
            await super().handle_zap_message(msg)
        except OSError:
            version, request = msg[:2]
            self.zap_socket.send_multipart([version, request, b"300", b"keys cannot be read now", b"", b""])


class AllowedViewers:
    """Viewers whose public keys are in a folder, as `NAME.key`, at the moment they connect. For one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unreadable: set[Path] = set()
        """Files that were already warned about."""
        self._turned_away = 0
        """Rejected viewers that were not logged yet."""
        self._quiet_until = 0.0

    def callback(self, _domain: str, key: bytes) -> bool:
        """Whether the viewer with this public key (Z85, 40 characters) is let in.

        Raises `OSError` if that cannot be known at the moment, and nothing else: any other error would end the calling
        thread, and no viewer would be let in again.
        """
        try:
            is_known = any(key == theirs for theirs in map(self._read, key_files(self._folder)))
        except OSError as error:
            self._log(f"viewers cannot be checked and will retry: {self._folder} cannot be read: {error.strerror}")
            raise
        if not is_known:
            others = f", after {self._turned_away} others" if self._turned_away else ""
            why = f"its public key {key.decode('ascii', 'replace')} is not in {self._folder}"
            logged = self._log(f"a viewer was turned away{others}: {why}")
            self._turned_away = 0 if logged else self._turned_away + 1
        return is_known

    def _read(self, path: Path) -> bytes | None:
        """The public key in a file; None if there is none, which is logged once. Raises `OSError` if the process or the
        machine has no file descriptors left."""
        try:
            key, _ = read_keys(path)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in (EMFILE, ENFILE):
                raise
            if path not in self._unreadable:
                log.warning("ignoring a viewer's key that cannot be read: %s", error)
                self._unreadable.add(path)
            return None
        self._unreadable.discard(path)
        return key

    def _log(self, line: str) -> bool:
        """Log a line, unless another was within `LOG_INTERVAL_SECONDS`; True if it was logged."""
        now = monotonic()
        if now < self._quiet_until:
            return False
        log.warning("%s", line)
        self._quiet_until = now + LOG_INTERVAL_SECONDS
        return True
