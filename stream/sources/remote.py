"""Live sources that FFmpeg fetches over the network: RTSP, RTP by an SDP file, HTTP and HLS.

TLS keeps others from listening. It proves who the camera is only where `tls_ca_file` says who vouches for it.
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
"""The longest that packets over UDP are waited for before TCP is tried, and never more than half of the time-out."""
DATAGRAM_POLL = 0.5
"""Seconds after which a reader of UDP looks whether it is still wanted, as long as nothing has come."""
PLAYLIST_SECONDS = 20.0
"""The longest that an HLS playlist may bring nothing new, beyond the time-out: its segments are up to 10 s long."""
PLAYLIST = re.compile(r"[^/?#]+/[^?#]*\.m3u8?(?=[?#]|$)", re.IGNORECASE)
"""What follows the scheme and the credentials in the address of an HLS playlist."""

RTP_PROBING = {"probesize": "32", "fpsprobesize": "0"}
"""Options that open RTP with its first packet: an SDP has said already what it is, unless that is MPEG-TS."""
USUAL_PROBING = {"probesize": "5000000"}
"""FFmpeg's own."""
OVER_TCP = {"rtsp_transport": "tcp", "reorder_queue_size": "2"}
"""Options for RTP over TCP, where packets of a camera that has no room for them go missing: without a queue FFmpeg does
not look at their numbers."""
CHECKED = {
    "protocol_whitelist": "https,tls,tcp,httpproxy",
    "format_whitelist": "mpegts,mov,mp4,matroska,webm,flv,avi,ogg,mpeg,mpjpeg,mjpeg,h264,hevc,obu,ivf",
}
"""Options that leave no way round a check of certificates: no redirection to plain HTTP, no playlist, for whose parts
FFmpeg checks nothing."""
OTHERWISE_THE_SAME: frozenset[Reason] = frozenset({"unauthorised", "not found", "address"})
"""Reasons that no other way to open a source can change."""


class RemoteOpener:
    """Opens one feed's source, time after time; for one thread.

    It remembers which way worked, and a reader that was stuck: until that one has ended there is no other.
    """

    def __init__(self) -> None:
        self._worked: str | None = None
        self._left_behind: Reader | None = None

    def __call__(self, feed: FeedSettings, stop: threading.Event) -> Generator[Segment]:
        """The one segment of a feed, which ends by `stop` or by raising `SourceLost`."""
        remembered, failure = self._worked, None
        for way in [way for way in ways_to(feed) if remembered in (None, way.name)]:
            if failure and not worth_trying(way, failure):
                break
            if not self._alone(feed, stop):
                return
            why = yield from self._open(way, feed, stop)
            if why is None:
                return
            failure = failure if failure and way.name == "any" else why  # that way only tells more of the same
            if failure == NO_TRANSPORT and feed.transport == "auto":
                self._worked = "tcp"
        if remembered:
            self._worked = None
        if failure:
            raise lost(feed, failure)

    def _open(self, way: Way, feed: FeedSettings, stop: threading.Event) -> Generator[Segment, None, Failure | None]:
        """The segment that this way leads to; gives why it leads nowhere, or None where it was stopped."""
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
            self._left_behind = reader if reader.stuck else None
        played = feed.mode == "replay" and reader.recorded and reader.failure == ENDED
        if stop.is_set() or reader.failure is None or played:
            return None
        raise lost(feed, reader.failure)

    def _alone(self, feed: FeedSettings, stop: threading.Event) -> bool:
        """Wait for a reader that was left behind; False where stopped. Raises `SourceLost` if it does not end."""
        before, polls = self._left_behind, range(int(feed.open_timeout / POLL_SECONDS) + 1)
        for _ in polls:
            if before is None or not before.stuck:
                self._left_behind = None
                return True
            if stop.wait(POLL_SECONDS):
                return False
        if before and before.looking_up:
            raise lost(feed, NO_LOOKUP)
        raise lost(feed, Failure("the attempt before still hangs in the network", "time-out"))


def worth_trying(way: Way, failure: Failure) -> bool:
    """Whether a way can lead somewhere, after another one failed like this."""
    if way.name == "any":
        return failure.reason == "no video"
    return failure != NO_LOOKUP and failure.reason not in OTHERWISE_THE_SAME


def lost(feed: FeedSettings, failure: Failure) -> SourceLost:
    """The error for a failure."""
    return SourceLost(f"{redact(feed.url)}: {failure.words}", reason=failure.reason)


def live_segment(name: str, reader: Reader, stop: threading.Event) -> Segment:
    """The segment that a reader reads; raises `SourceLost` without video, since the next try may find some."""
    try:
        return RemoteSegment(name, reader, stop)
    except SourceUnsupported as error:
        raise SourceLost(str(error), reason=error.reason) from None


class RemoteSegment(Segment):
    """Packets of a reader, with the camera's own times where it tells them."""

    def __init__(self, name: str, reader: Reader, stop: threading.Event) -> None:
        assert reader.container is not None
        super().__init__(name, reader.container, stop, recorded=reader.recorded)
        self._reader = reader
        self._clock = CameraClock(name)

    @property
    def behind(self) -> int:
        """Access units that were dropped since they were not taken in time."""
        return self._reader.behind

    def captured(self, packet: Packet[Stream], received_ns: int) -> tuple[int, CaptureClock]:
        """When the camera took what is in a packet, and whose clock says so."""
        return self._clock.captured(packet, received_ns)

    def demuxed(self) -> Iterator[tuple[Packet[Stream], int]]:
        """Packets and when they were read."""
        untimed = self.info.container == "mpjpeg"
        begun = False
        for packet, received_ns in self._reader.arrivals(self._stop):
            if untimed:
                packet.pts = packet.dts = received_ns // 1000
                packet.time_base = Fraction(1, 1_000_000)
            if not begun and packet.pts is None:  # FFmpeg loses the first stamp of RTP, which it counts from
                packet.pts = 0
            begun = True
            yield packet, received_ns


def ways_to(feed: FeedSettings) -> list[Way]:
    """The ways to open a feed's source, in the order in which they are tried; raises `SourceError`."""
    if "://" not in feed.url or feed.url.lower().startswith("file://"):
        way = sdp_way(feed)
        return [way, with_a_longer_look(way, feed, {})]
    address = RemoteAddress.of(feed.url)
    try:
        url = address.with_credentials(feed.username, password_of(feed))
    except SourceUnsupported as error:  # the password's file may hold another one the next time
        raise SourceLost(str(error), reason=error.reason) from None
    basis = Way(
        name="tcp",
        file=url,
        open_timeout=feed.open_timeout,
        read_timeout=feed.read_timeout,
        silence=feed.read_timeout,
        options={
            "timeout": str(int(max(feed.open_timeout, feed.read_timeout) * 1_000_000)),  # of what PyAV does not end
            **tls_options(feed.tls_ca_file),
        },
        host=(address.host, address.port),
        tls=address.scheme in ("rtsps", "https"),
        ca_file=feed.tls_ca_file,
    )
    return rtsp_ways(feed, basis) if address.scheme.startswith("rtsp") else [http_way(feed, basis, address)]


def tls_options(ca_file: Path | None) -> dict[str, str]:
    """Options that let FFmpeg check a server's certificate, and its name, against those in a file; None: not at all."""
    return {"tls_verify": "1", "ca_file": str(ca_file)} if ca_file else {"tls_verify": "0"}


def rtsp_ways(feed: FeedSettings, basis: Way) -> list[Way]:
    """UDP and TCP, as the settings say; at last with sound too, which tells a source without video, and a longer look.

    Sound is left at the camera: on a thin link it costs as much as the picture. A data stream is fetched if wanted.
    """
    options = basis.options | RTP_PROBING | wanted_media(feed) | {"buffer_size": str(feed.receive_buffer)}
    allowed = "rtsps,rtp,udp,tcp,tls,httpproxy" if basis.tls else "rtsp,rtp,udp,tcp"  # the first one for redirections
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
    """The same with more options, for RTP that holds MPEG-TS: what that holds is not told with every packet."""
    return replace(way, name="any", options=way.options | USUAL_PROBING | probing(feed) | options)


def wanted_media(feed: FeedSettings) -> dict[str, str]:
    """The option that keeps FFmpeg from other media: what is lost of them it tells in the same words."""
    return {"allowed_media_types": "video+data" if feed.publish_data else "video"}


def in_a_hurry(udp: Way) -> Way:
    """The same, but given up soon where no packets come."""
    seconds = min(UDP_SECONDS, udp.open_timeout / 2)
    read_timeout = min(udp.read_timeout, seconds / 2)
    return replace(udp, open_timeout=seconds - read_timeout, read_timeout=read_timeout)


def http_way(feed: FeedSettings, basis: Way, address: RemoteAddress) -> Way:
    """HTTP and HLS. What comes may lead to other addresses of the web, and to nothing else."""
    patience = feed.read_timeout + (PLAYLIST_SECONDS if PLAYLIST.match(address.location) else 0.0)
    options = {
        **basis.options,
        **probing(feed),
        "fpsprobesize": "0",  # three pictures that tell a rate may take longer than the time-out
        "protocol_whitelist": "http,https,tcp,tls,crypto,httpproxy",
        "rw_timeout": str(int(feed.read_timeout * 1_000_000)),
        "live_start_index": "-2",  # the last segment but one: as fresh as it gets without a stall
        "icy": "0",
        **(CHECKED if basis.tls and basis.ca_file else {}),
        "merge_pmt_versions": "1",  # pictures that move to another place stay in the stream that PyAV knows; of others
        "seg_format_options": "merge_pmt_versions=1",  # it never says a word, and a reader would never end
    }
    return replace(basis, name="http", options=options, read_timeout=patience, silence=patience)


def sdp_way(feed: FeedSettings) -> Way:
    """RTP over UDP, as an SDP file says; the file cannot name anything else."""
    path = local_path(feed.url)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceLost(f"{path}: {error.strerror}", reason="not found") from None
    media = wanted_media(feed) if b"m=video" in content else {}  # without, it is told what there is
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
    """The password in the settings, as it is now; raises `SourceLost` where its file is gone."""
    try:
        password = feed.password()
    except SettingsError as error:
        raise SourceLost(f"{redact(feed.url)}: {error}", reason="unauthorised") from None
    return password.get_secret_value() if password else None
