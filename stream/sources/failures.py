"""What FFmpeg's errors mean: a message for people, and a `Reason`."""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import traceback
from dataclasses import dataclass
from pathlib import Path

import av

from stream.errors import Reason

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """Why a source gives no packets, or no more."""

    words: str
    """For people; without credentials."""
    reason: Reason


NO_LOGIN = Failure("user name or password is missing or wrong", "unauthorised")
NO_PLAY = Failure("the server refuses to play: it has no video, or no room for another viewer", "no video")
TLS_FAILED = Failure("the TLS connection fails", "refused")
NO_TRANSPORT = Failure("the server does not offer this transport", "refused")
NOT_KNOWN = Failure("its data is in no known format", "no video")
NOT_CHECKED = Failure(
    "tls_ca_file cannot be enforced: it is a playlist, or redirects to an address without TLS", "refused"
)
OTHER_CODEC = Failure("the codec of its video has changed", "lost")
OTHER_PARAMETERS = Failure("the size or profile of its video has changed", "lost")
ENDED = Failure("the server ended the stream", "lost")
BROKEN_OFF = Failure("the connection broke off", "lost")
NO_HOST = Failure("no such host", "not found")
NO_LOOKUP = Failure("the host name cannot be looked up at the moment", "time-out")

MEANINGS: dict[type[Exception], Failure] = {
    av.HTTPUnauthorizedError: NO_LOGIN,
    av.HTTPForbiddenError: Failure("the server denies access", "unauthorised"),
    av.HTTPNotFoundError: Failure("not found: the server has nothing at this path", "not found"),
    av.HTTPOtherClientError: NO_PLAY,
    av.HTTPBadRequestError: Failure("the server does not understand the address", "refused"),
    av.HTTPTooManyRequestsError: Failure("the server gets too many requests", "refused"),
    av.HTTPServerError: Failure("the server reports an internal error", "refused"),
    av.ConnectionRefusedError: Failure("connection refused", "refused"),
    av.ConnectionResetError: Failure("the server closed the connection", "lost"),
    av.BrokenPipeError: Failure("the server closed the connection", "lost"),
    av.EOFError: Failure("the server closed the connection", "lost"),
    av.InvalidDataError: NOT_KNOWN,
    av.DemuxerNotFoundError: NOT_KNOWN,
    av.ProtocolNotFoundError: Failure("it redirects to a kind of address that is not allowed", "refused"),
    av.DecoderNotFoundError: Failure("its video codec is not supported", "codec"),
}
NUMBERS: dict[int, Failure] = {
    errno.EIO: NOT_KNOWN,
    errno.EPERM: Failure("the server closed the connection instead of playing", "refused"),  # FFmpeg's -1: "an error"
    errno.EPROTONOSUPPORT: NO_TRANSPORT,
    errno.EHOSTUNREACH: Failure("no route to the host", "refused"),
    errno.ENETUNREACH: Failure("no route to the host", "refused"),
    errno.EINVAL: Failure("it redirects to an address that is invalid or not allowed", "refused"),
}


def failure_of(error: Exception, seconds: float, limit: float) -> Failure:
    """What an error means that came after `seconds`, in something that may take `limit` seconds.

    FFmpeg's RTSP client says "invalid data" if an answer did not come in time.
    """
    timed_out = isinstance(error, av.ExitError | av.TimeoutError | TimeoutError)
    if timed_out or (isinstance(error, av.InvalidDataError) and seconds >= 0.95 * limit):
        return silence(limit)
    for kind, failure in MEANINGS.items():
        if isinstance(error, kind):
            return failure
    if isinstance(error, av.FFmpegError):
        return NUMBERS.get(error.errno or 0, Failure(error.strerror or type(error).__name__, "lost"))
    place = "".join(traceback.format_tb(error.__traceback__))  # without the message, which may hold credentials
    log.error("unexpected %s while a source was read:\n%s", type(error).__name__, place)
    return Failure(f"unexpected {type(error).__name__}", "lost")


def lookup_failure(error: Exception) -> Failure:
    """What an error in looking up a name means; the name itself may be invalid."""
    if isinstance(error, socket.gaierror):
        return NO_LOOKUP if error.errno in (socket.EAI_AGAIN, socket.EAI_MEMORY) else NO_HOST
    return NO_LOOKUP if isinstance(error, OSError) else NO_HOST  # Python turns EAI_SYSTEM into another OSError


def silence(seconds: float) -> Failure:
    """The failure that nothing came for so long."""
    return Failure(f"no packet for {seconds:g} s", "time-out")


def no_video_for(seconds: float) -> Failure:
    """The failure that packets came for so long, but no video."""
    return Failure(f"packets come, but no video for {seconds:g} s", "no video")


def tls_failure(host: str, port: int, ca_file: Path | None, timeout: float) -> Failure | None:
    """Why TLS with a server fails, which FFmpeg does not say; None if it works.

    `ca_file` holds the certificates that must vouch for the server's; None: any certificate will do.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if ca_file:
            context.load_verify_locations(ca_file)
        else:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        with (
            socket.create_connection((host, port), timeout) as connection,
            context.wrap_socket(connection, server_hostname=host),
        ):
            return None
    except ssl.SSLCertVerificationError as error:
        return Failure(f"its certificate is not trusted: {error.verify_message.rstrip('.')}", "refused")
    except OSError:
        return TLS_FAILED
