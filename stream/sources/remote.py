"""Live sources that FFmpeg fetches over the network: RTSP, RTP described by an SDP file, HTTP and HLS.

TLS encrypts the link. It proves the camera's identity only if `tls_ca_file` is set.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Generator, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from av.packet import Packet
from av.stream import Stream

from stream.address import RemoteAddress, redact
from stream.errors import Reason, SettingsError, SourceLost, SourceUnsupported
from stream.frame import CaptureClock
from stream.settings import FeedSettings
from stream.sources.camera_clock import CameraClock
from stream.sources.failures import ENDED, NO_LOOKUP, NO_TRANSPORT, NOT_KNOWN, Failure
from stream.sources.reader import POLL_SECONDS, Reader, Way
from stream.sources.recording import local_path
from stream.sources.segment import Segment
from stream.sources.udp import probing

UDP_SECONDS = 2.0
"""The longest wait for packets over UDP before TCP is tried; never more than half of the time-out."""
DATAGRAM_POLL = 0.5
"""Seconds after which a UDP reader to which nothing has come checks whether it is still wanted."""
PLAYLIST_SECONDS = 20.0
"""Time beyond the time-out that an HLS playlist may bring nothing new: its segments are up to 10 s long."""
PLAYLIST = re.compile(r"[^/?#]+/[^?#]*\.m3u8?(?=[?#]|$)", re.IGNORECASE)
"""What follows the scheme and the credentials in the address of an HLS playlist."""

RTP_PROBING = {"probesize": "32", "fpsprobesize": "0"}
"""Options that open RTP with its first packet: the SDP has already described it, unless it carries MPEG-TS."""
USUAL_PROBING = {"probesize": "5000000"}
"""FFmpeg's default."""
OVER_TCP = {"rtsp_transport": "tcp", "reorder_queue_size": "2"}
"""Options for RTP over TCP. Even here a camera without room for packets leaves some out, and FFmpeg checks sequence
numbers only if it has a reordering queue."""
CHECKED = {
    "protocol_whitelist": "https,tls,tcp,httpproxy",
    "format_whitelist": "mpegts,mov,mp4,matroska,webm,flv,avi,ogg,mpeg,mpjpeg,mjpeg,h264,hevc,obu,ivf",
}
"""Options that leave no way around the check of certificates: no redirection to plain HTTP, and no playlist, since
FFmpeg checks nothing for its parts."""
OTHERWISE_THE_SAME: frozenset[Reason] = frozenset({"unauthorised", "not found", "address"})
"""Reasons for which another way to open the source fails, too."""


class RemoteOpener:
    """Opens one feed's source, again and again; for one thread.

    It remembers which way worked, and a reader that was stuck: no other one starts until that has ended.
    """

    def __init__(self) -> None:
        self._worked: str | None = None
        self._left_behind: Reader | None = None

    def __call__(self, feed: FeedSettings, stop: threading.Event) -> Generator[Segment]:
        """The one segment of a feed. Ends by `stop`, at the end of a recording to be replayed, or by `SourceLost`."""
        remembered, failure = self._worked, None
        for way in [way for way in ways_to(feed) if remembered in (None, way.name)]:
            if failure and not worth_trying(way, failure):
                break
            if not self._alone(feed, stop):
                return
            why = yield from self._open(way, feed, stop)
            if why is None:
                return
            failure = failure if failure and way.name == "any" else why  # "any" finds nothing new
            if failure == NO_TRANSPORT and feed.transport == "auto":
                self._worked = "tcp"
        if remembered:
            self._worked = None
        if failure:
            raise source_lost(feed, failure)

    def _open(self, way: Way, feed: FeedSettings, stop: threading.Event) -> Generator[Segment, None, Failure | None]:
        """The segment that this way gives. Returns why there is none; None if it was stopped or played to its end.

        Raises `SourceLost` if the segment ends early.
        """
        reader = Reader(way, feed.age_budget)
        try:
            if not reader.wait(stop):
                return None if stop.is_set() else reader.failure
            if reader.without_video and way.name not in ("any", "http"):
                return NOT_KNOWN
            segment = live_segment(redact(feed.url), reader, stop)
            self._worked = way.name
            yield segment
        finally:
            reader.leave()
            self._left_behind = reader if reader.running else None
        played = feed.mode == "replay" and reader.recorded and reader.failure == ENDED
        if stop.is_set() or reader.failure is None or played:
            return None
        raise source_lost(feed, reader.failure)

    def _alone(self, feed: FeedSettings, stop: threading.Event) -> bool:
        """Wait for a reader that was left behind; False if stopped. Raises `SourceLost` if it does not end in time."""
        before, polls = self._left_behind, range(int(feed.open_timeout / POLL_SECONDS) + 1)
        for _ in polls:
            if before is None or not before.running:
                self._left_behind = None
                return True
            if stop.wait(POLL_SECONDS):
                return False
        if before and before.looking_up:
            raise source_lost(feed, NO_LOOKUP)
        raise source_lost(feed, Failure("the previous connection attempt is still blocked", "time-out"))


def worth_trying(way: Way, failure: Failure) -> bool:
    """Whether a way can succeed after another one failed like this."""
    if way.name == "any":
        return failure.reason == "no video"
    return failure != NO_LOOKUP and failure.reason not in OTHERWISE_THE_SAME


def source_lost(feed: FeedSettings, failure: Failure) -> SourceLost:
    """The error for a failure."""
    return SourceLost(f"{redact(feed.url)}: {failure.words}", reason=failure.reason)


def live_segment(name: str, reader: Reader, stop: threading.Event) -> Segment:
    """The segment that a reader reads; raises `SourceLost` if it has no video, since the next try may find some."""
    try:
        return RemoteSegment(name, reader, stop)
    except SourceUnsupported as error:
        raise SourceLost(str(error), reason=error.reason) from None


class RemoteSegment(Segment):
    """Packets of a reader, with capture times by the camera's own clock if it sends them."""

    def __init__(self, name: str, reader: Reader, stop: threading.Event) -> None:
        assert reader.container is not None
        super().__init__(name, reader.container, stop, recorded=reader.recorded)
        self._reader = reader
        self._clock = CameraClock(name)

    @property
    def behind(self) -> int:
        """Access units that were dropped because they were not taken in time."""
        return self._reader.behind

    def captured(self, packet: Packet[Stream], received_ns: int) -> tuple[int, CaptureClock]:
        """See `Segment.captured`."""
        return self._clock.captured(packet, received_ns)

    def demuxed(self) -> Iterator[tuple[Packet[Stream], int]]:
        """See `Segment.demuxed`."""
        untimed = self.info.container == "mpjpeg"
        begun = False
        for packet, received_ns in self._reader.arrivals(self._stop):
            if untimed:
                packet.pts = packet.dts = received_ns // 1000
                packet.time_base = Fraction(1, 1_000_000)
            if not begun and packet.pts is None:  # FFmpeg loses the first RTP time stamp, its zero
                packet.pts = 0
            begun = True
            yield packet, received_ns


def ways_to(feed: FeedSettings) -> list[Way]:
    """The ways to open a feed's source, in the order to try them; raises `SourceError`."""
    if "://" not in feed.url or feed.url.lower().startswith("file://"):
        way = sdp_way(feed)
        return [way, with_a_longer_look(way, feed, {})]
    address = RemoteAddress.of(feed.url)
    try:
        url = address.with_credentials(feed.username, password_of(feed))
    except SourceUnsupported as error:  # the password file may have changed by the next attempt
        raise SourceLost(str(error), reason=error.reason) from None
    basis = Way(
        name="tcp",
        file=url,
        open_timeout=feed.open_timeout,
        read_timeout=feed.read_timeout,
        silence=feed.read_timeout,
        options={
            "timeout": str(int(max(feed.open_timeout, feed.read_timeout) * 1_000_000)),  # for what PyAV does not end
            **tls_options(feed.tls_ca_file),
        },
        host=(address.host, address.port),
        tls=address.scheme in ("rtsps", "https"),
        ca_file=feed.tls_ca_file,
    )
    return rtsp_ways(feed, basis) if address.scheme.startswith("rtsp") else [http_way(feed, basis, address)]


def tls_options(ca_file: Path | None) -> dict[str, str]:
    """Options that make FFmpeg check a server's certificate and name against those in a file; None: no check."""
    return {"tls_verify": "1", "ca_file": str(ca_file)} if ca_file else {"tls_verify": "0"}


def rtsp_ways(feed: FeedSettings, basis: Way) -> list[Way]:
    """UDP and TCP, as the settings say; then one with longer probing and with sound, to recognise a lack of video.

    The others leave sound at the camera: on a thin link it costs as much as the picture. Data is fetched if wanted.
    """
    options = basis.options | RTP_PROBING | wanted_media(feed) | {"buffer_size": str(feed.receive_buffer)}
    allowed = "rtsps,rtp,udp,tcp,tls,httpproxy" if basis.tls else "rtsp,rtp,udp,tcp"  # rtsps for redirections
    options |= {"protocol_whitelist": allowed}
    tcp = replace(basis, format="rtsp", options=options | OVER_TCP)
    udp = replace(
        tcp,
        name="udp",
        read_timeout=min(DATAGRAM_POLL, feed.read_timeout),
        options=options | {"rtsp_transport": "udp"},
        polls=True,
    )
    if feed.transport == "udp" and not basis.tls:
        ways = [udp]
    elif feed.transport == "tcp" or basis.tls:
        ways = [tcp]
    else:
        ways = [in_a_hurry(udp), tcp]
    last = ways[-1]
    return [*ways, with_a_longer_look(last, feed, {"allowed_media_types": "video+audio+data"})]


def with_a_longer_look(way: Way, feed: FeedSettings, options: dict[str, str]) -> Way:
    """The same way with longer probing and more options, for MPEG-TS in RTP: not every packet says what it holds."""
    return replace(way, name="any", options=way.options | USUAL_PROBING | probing(feed) | options)


def wanted_media(feed: FeedSettings) -> dict[str, str]:
    """The option that keeps FFmpeg from fetching other media, whose losses it reports in the same words."""
    return {"allowed_media_types": "video+data" if feed.publish_data else "video"}


def in_a_hurry(udp: Way) -> Way:
    """The same way, but given up early if no packets come."""
    seconds = min(UDP_SECONDS, udp.open_timeout / 2)
    read_timeout = min(udp.read_timeout, seconds / 2)
    return replace(udp, open_timeout=seconds - read_timeout, read_timeout=read_timeout)


def http_way(feed: FeedSettings, basis: Way, address: RemoteAddress) -> Way:
    """HTTP and HLS. What comes may refer to other web addresses, and to nothing else."""
    patience = feed.read_timeout + (PLAYLIST_SECONDS if PLAYLIST.match(address.location) else 0.0)
    options = {
        **basis.options,
        **probing(feed),
        "fpsprobesize": "0",  # three pictures to measure the rate may take longer than the time-out
        "protocol_whitelist": "http,https,tcp,tls,crypto,httpproxy",
        "rw_timeout": str(int(feed.read_timeout * 1_000_000)),
        "live_start_index": "-2",  # the last segment but one: as fresh as it gets without a stall
        "icy": "0",
        **(CHECKED if basis.tls and basis.ca_file else {}),
        "merge_pmt_versions": "1",  # video that moves to another PID stays in the stream that PyAV knows; a new stream
        "seg_format_options": "merge_pmt_versions=1",  # would go unnoticed, and the reader would never end
    }
    return replace(basis, name="http", options=options, read_timeout=patience, silence=patience)


def sdp_way(feed: FeedSettings) -> Way:
    """RTP over UDP, as an SDP file describes it; the file cannot refer to anything else."""
    path = local_path(feed.url)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceLost(f"{path}: {error.strerror}", reason="not found") from None
    media = wanted_media(feed) if b"m=video" in content else {}  # else all, to name in the error
    return Way(
        name="sdp",
        file=content,
        format="sdp",
        open_timeout=feed.open_timeout,
        read_timeout=min(DATAGRAM_POLL, feed.read_timeout),
        silence=feed.read_timeout,
        options=RTP_PROBING | media | {"protocol_whitelist": "rtp,udp", "buffer_size": str(feed.receive_buffer)},
        polls=True,
    )


def password_of(feed: FeedSettings) -> str | None:
    """The feed's current password; raises `SourceLost` if its file cannot be read."""
    try:
        password = feed.password()
    except SettingsError as error:
        raise SourceLost(f"{redact(feed.url)}: {error}", reason="unauthorised") from None
    return password.get_secret_value() if password else None
