from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pytest
from av.packet import Packet
from av.stream import Stream
from numpy.typing import NDArray

from stream.codecs.ffmpeg_log import Line
from stream.decode import Decoder
from stream.errors import SourceLost
from stream.frame import Frame
from stream.settings import FeedSettings
from stream.source import open_source
from stream.sources import remote
from stream.sources.rtp import RtpLosses
from tests.clips import free_port, listeners_at, make_clip
from tests.impostors import Behaviour, Impostor
from tests.reading import feed, numbers, why_lost
from tests.rtsp_server import RtspServer, recording
from tests.waiting import wait_until

X265 = "log-level=none:pools=1:frame-threads=1:b-adapt=0:rc-lookahead=20:"
ENCODINGS: dict[str, dict[str, Any]] = {
    "h264": {},
    "h264, b-frames": {"b_frames": 3, "options": {"x264-params": "b-adapt=0:b-pyramid=none"}},
    "h264, pyramid": {"b_frames": 5, "options": {"x264-params": "b-adapt=0:b-pyramid=normal:ref=4"}},
    "h264, slices": {"b_frames": 2, "options": {"slices": "4"}},
    "h264, open gop": {"b_frames": 3, "options": {"x264-params": "open-gop=1"}},
    "h264, cavlc": {"options": {"x264-params": "cabac=0"}},
    "h264, interlaced": {"interlaced": True},
    "h264, intra refresh": {"options": {"intra-refresh": "1"}, "pictures": 90},
    "hevc": {"codec": "libx265"},
    "hevc, slices": {"codec": "libx265", "options": {"x265-params": X265 + "slices=3"}},
    "hevc, open gop": {"codec": "libx265", "b_frames": 4, "options": {"x265-params": X265 + "open-gop=1"}},
}
MTU = 400
"""So that small pictures have several packets."""

Luma = NDArray[np.uint8]
Seen = list[tuple[int, str, Luma]]
"""Time, state and luma of pictures: the time in pictures."""


def rtp_of(clip: Path) -> list[bytes]:
    """The datagrams that FFmpeg sends a clip in."""
    datagrams: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(0.0)
        url = f"rtp://127.0.0.1:{receiver.getsockname()[1]}?pkt_size={MTU}"
        with av.open(str(clip)) as source, av.open(url, "w", format="rtp") as output:
            stream = output.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    output.mux(packet)
                with suppress(BlockingIOError):
                    while True:
                        datagrams.append(receiver.recv(65_536))
    return datagrams


def transported(clip: Path) -> list[bytes]:
    """The datagrams of RTP that carry a transport stream (RFC 2250), two of its packets each."""
    data = clip.read_bytes()
    cut = [data[start : start + 2 * 188] for start in range(0, len(data), 2 * 188)]
    return [struct.pack(">BBHII", 0x80, 33, number, 300 * number, 7) + each for number, each in enumerate(cut)]


def sdp_file(folder: Path, codec: str, port: int) -> Path:
    file = folder / "camera.sdp"
    kind, name = {"h264": (96, "H264"), "hevc": (96, "H265"), "vp8": (96, "VP8"), "mpegts": (33, "MP2T")}[codec]
    lines = ["v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=camera", "c=IN IP4 127.0.0.1", "t=0 0"]
    lines += [f"m=video {port} RTP/AVP {kind}", f"a=rtpmap:{kind} {name}/90000"]
    file.write_text("\r\n".join(lines) + "\r\n")
    return file


def seen(settings: FeedSettings) -> Seen:
    """The pictures of a feed until it is lost."""
    pictures: Seen = []
    with suppress(SourceLost), open_source(settings) as source:
        for segment in source.segments():
            decoder = Decoder(segment.video)
            try:
                for packet in segment.packets():
                    pictures += map(told, decoder.decode(packet))
            finally:
                pictures += map(told, decoder.flush())
    return pictures


def told(frame: Frame) -> tuple[int, str, Luma]:
    return round(frame.pts * frame.time_base * 25), frame.state, frame.planes()[0].copy()


def received(folder: Path, codec: str, datagrams: list[bytes], spacing: float = 0.001) -> Seen:
    """What becomes of RTP that is sent like this, with so many seconds between datagrams."""
    port = free_port() & ~1
    return seen_while(lambda: send_once(datagrams, port, spacing), sdp_file(folder, codec, port))


def send_once(datagrams: Iterable[bytes], port: int, spacing: float = 0.001) -> None:
    """Send datagrams as soon as somebody listens, with so many seconds between them."""
    wait_until(lambda: listeners_at(port), "somebody listens")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for datagram in datagrams:
            sender.sendto(datagram, ("127.0.0.1", port))
            time.sleep(spacing)


def seen_while(send: Callable[[], None], sdp: Path) -> Seen:
    """The pictures of what an SDP file describes, while another thread sends it."""
    thread = threading.Thread(target=send)
    thread.start()
    try:
        return seen(feed(sdp, read_timeout=0.6, age_budget=10.0))
    finally:
        thread.join()


def numbered(pictures: Seen) -> dict[int, tuple[str, Luma]]:
    """State and luma by the number of the picture, which is told by its time: the first one must be there."""
    return {time - pictures[0][0]: (state, luma) for time, state, luma in pictures}


def states_of_wrong(pictures: Seen, whole: Seen) -> dict[int, str]:
    """The states of the pictures that are not what they should be, by number."""
    right = numbered(whole)
    return {number: state for number, (state, luma) in numbered(pictures).items() if (luma != right[number][1]).any()}


@pytest.fixture(scope="module", params=list(ENCODINGS.values()), ids=list(ENCODINGS))
def sent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[bytes], Seen]:
    """Codec, datagrams and pictures of a clip, once for each encoding."""
    made = {"pictures": 60, "key_interval": 20} | request.param
    clip = make_clip(tmp_path_factory.mktemp("clip") / "clip.ts", **made)
    codec = {"libx264": "h264", "libx265": "hevc"}[made.get("codec", "libx264")]
    return codec, rtp_of(clip), seen(FeedSettings(url=str(clip)))


Sent = tuple[str, list[bytes], Seen]


def test_rtp_that_comes_whole_and_out_of_order_is_clean(tmp_path: Path, sent: Sent) -> None:
    codec, datagrams, whole = sent
    shuffled = [*datagrams[:40], *(datagrams[number ^ 1] for number in range(40, 200)), *datagrams[200:]]
    pictures = received(tmp_path, codec, shuffled)
    assert len(pictures) >= len(whole) - 1
    assert {state for _, state, _ in pictures} == {"clean"}
    assert states_of_wrong(pictures, whole) == {}


@pytest.mark.parametrize("seed", range(2))
def test_no_wrong_picture_passes_as_clean_where_rtp_is_lost(tmp_path: Path, sent: Sent, seed: int) -> None:
    codec, datagrams, whole = sent
    random = np.random.default_rng(seed)
    lost = {int(number) for number in random.integers(len(datagrams) // 5, len(datagrams) // 2, 4)}
    lost |= {number + 1 for number in lost if number % 2}
    pictures = received(tmp_path, codec, [each for number, each in enumerate(datagrams) if number not in lost])
    assert "clean" not in states_of_wrong(pictures, whole).values()
    assert pictures[-1][1] == "clean", "a key frame ends the damage"


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_key_frame_of_vp8_is_clean_after_a_packet_was_lost(tmp_path: Path, place: Literal["first", "last"]) -> None:
    """Without its first packet FFmpeg gives no picture, without its last one a part."""
    clip = make_clip(
        tmp_path / "clip.mkv",
        codec="libvpx",
        pictures=40,
        key_interval=20,
        bit_rate=1_000_000,
        options={"deadline": "realtime", "cpu-used": "8"},
    )
    datagrams = rtp_of(clip)
    ends = [number for number, datagram in enumerate(datagrams) if datagram[1] & 0x80]  # RFC 3550, 5.1: the marker bit
    lost = {"first": ends[11] + 1, "last": ends[12]}[place]
    pictures = received(tmp_path, "vp8", datagrams[:lost] + datagrams[lost + 1 :])
    wrong, states = states_of_wrong(pictures, seen(FeedSettings(url=str(clip)))), dict(numbered(pictures))
    assert "clean" not in wrong.values()
    assert (12 in states, 12 in wrong) == (place == "last",) * 2
    assert {states[number][0] for number in (*range(12), *range(20, 40))} == {"clean"}


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_broken_key_frame_of_a_transport_stream_in_rtp_does_not_pass_as_clean(tmp_path: Path, share: float) -> None:
    clip = make_clip(tmp_path / "clip.ts", codec="libx265", pictures=50, key_interval=20)
    datagrams = transported(clip)
    begin = [number for number, each in enumerate(datagrams) for at in (12, 200) if each[at:].startswith(b"\x47\x41\0")]
    lost = round(begin[20] + share * (begin[21] - begin[20]))
    pictures = received(tmp_path, "mpegts", datagrams[:lost] + datagrams[lost + 1 :])
    wrong = states_of_wrong(pictures, seen(FeedSettings(url=str(clip))))
    assert wrong
    assert "clean" not in wrong.values()
    assert pictures[-1][1] == "clean", "a key frame ends the damage"


def test_a_codec_that_changes_within_a_transport_stream_in_rtp_is_noticed(tmp_path: Path) -> None:
    """FFmpeg's decoder goes on with the first one, and makes no picture any more."""
    clips = [make_clip(tmp_path / f"{codec}.ts", codec=codec, pictures=50) for codec in ("libx264", "libx265")]
    both = tmp_path / "both.ts"
    both.write_bytes(clips[0].read_bytes() + 4 * clips[1].read_bytes())
    port = free_port() & ~1
    settings, enough = feed(sdp_file(tmp_path, "mpegts", port)), threading.Event()
    datagrams = itertools.takewhile(lambda _: not enough.is_set(), transported(both))
    sending = threading.Thread(target=send_once, args=(datagrams, port, 0.005))
    sending.start()
    try:
        assert "the codec of its video has changed" in str(why_lost(settings))
        with open_source(settings) as source:
            segment = next(source.segments())
            assert segment.info.codec == "hevc"
            assert len(numbers(segment, 10)) >= 10
    finally:
        enough.set()
        sending.join()


def test_a_key_frame_that_takes_longer_than_a_look_around_is_not_torn_in_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "DATAGRAM_POLL", 0.1)
    datagrams = rtp_of(make_clip(tmp_path / "clip.ts", pictures=30, key_interval=10, options={"crf": "5"}))
    assert sum(len(datagram) == MTU for datagram in datagrams[:20]) > 14, "the key frame takes more than 0.2 s"
    pictures = received(tmp_path, "h264", datagrams, spacing=0.015)
    assert len(pictures) >= 29
    assert {state for _, state, _ in pictures[10:]} == {"clean"}, "the first group may be joined in its middle"


def test_an_sdp_file_is_no_recording_whatever_its_size(tmp_path: Path) -> None:
    datagrams = rtp_of(make_clip(tmp_path / "clip.ts", pictures=10))
    port = free_port() & ~1
    with open_source(feed(sdp_file(tmp_path, "h264", port))) as source:
        segments = source.segments()
        sending = threading.Thread(target=send_once, args=(datagrams, port))
        sending.start()
        assert not next(segments).recorded
        sending.join()


def test_sound_that_is_lost_beside_them_damages_no_pictures(tmp_path: Path) -> None:
    """As long as nobody reads the sound: FFmpeg does not say of which stream it misses packets."""
    clip = make_clip(tmp_path / "clip.ts", pictures=40, key_interval=10)
    video, sound = free_port() & ~1, free_port() & ~1
    sdp = sdp_file(tmp_path, "h264", video)
    sdp.write_text(sdp.read_text() + f"m=audio {sound} RTP/AVP 8\r\na=rtpmap:8 PCMA/8000\r\n")

    def send() -> None:
        wait_until(lambda: listeners_at(video), "somebody listens")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for number, datagram in enumerate(rtp_of(clip)):
                header = struct.pack(">BBHII", 0x80, 8, 2 * number, 160 * number, 7)  # every second one is missing
                sender.sendto(header + bytes(160), ("127.0.0.1", sound))
                sender.sendto(datagram, ("127.0.0.1", video))
                time.sleep(0.001)

    pictures = seen_while(send, sdp)
    assert len(pictures) == 40
    assert {state for _, state, _ in pictures} == {"clean"}


def swallows(server_port: int, lost: set[int]) -> Behaviour:
    """Pass all on to and from an RTSP server but these packets of RTP over TCP, which are counted from 0."""

    def behave(client: socket.socket, _: threading.Event) -> None:
        count = itertools.count()
        with socket.create_connection(("127.0.0.1", server_port)) as server:
            thread = threading.Thread(target=pass_on, args=(client, server))
            thread.start()
            answers = server.makefile("rb")
            while start := answers.read(1):
                if start == b"$":  # RFC 2326, 10.12
                    head = answers.read(3)
                    body = answers.read(int.from_bytes(head[1:], "big"))
                    if head[0] == 0 and next(count) in lost:
                        continue
                    start += head + body
                client.sendall(start)
            thread.join()

    return behave


def pass_on(giver: socket.socket, taker: socket.socket) -> None:
    with suppress(OSError):
        while data := giver.recv(65_536):
            taker.sendall(data)
    with suppress(OSError):
        taker.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_packets_that_a_camera_leaves_out_over_tcp_are_noticed(tmp_path: Path, codec: str) -> None:
    clip = make_clip(
        tmp_path / "clip.mkv", codec=codec, pictures=50, key_interval=20, size=(320, 240), bit_rate=2_000_000
    )
    launch = recording(clip) if codec == "libx264" else recording(clip).replace("h264", "h265")
    whole = seen(FeedSettings(url=str(clip)))
    with RtspServer({"/clip": launch}) as server, Impostor(swallows(server.port, {60, 61})) as link:
        pictures = seen(feed(f"rtsp://127.0.0.1:{link.port}/clip", transport="tcp", age_budget=10.0))
    wrong = states_of_wrong(pictures, whole)
    assert wrong
    assert "clean" not in wrong.values()
    assert {state for time, state, _ in pictures if time > pictures[0][0] + 20} == {"clean"}


# What is marked


def packet(codec: str, begins: bool = True) -> Packet[Stream]:
    """An access unit with one slice, the first one of its picture or another one."""
    head = {"h264": b"\x41", "hevc": b"\x02\x01"}[codec]
    return Packet(b"\x00\x00\x00\x01" + head + (b"\x80" if begins else b"\x20"))


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_the_access_unit_after_a_loss_is_marked_too_if_its_beginning_is_missing(codec: str) -> None:
    for begins, expected in ((True, [False, True, False, False]), (False, [False, True, True, False])):
        lines: list[Line] = []
        losses, units = RtpLosses(lines), [packet(codec), packet(codec), packet(codec, begins), packet(codec)]
        for number, unit in enumerate(units):
            lines += [(24, "rtsp", "max delay reached. need to consume packet\n")]
            lines += [(24, "rtsp", "RTP: missed 3 packets\n")] if number == 1 else []
            losses.mark(unit, codec)
        assert [unit.is_corrupt for unit in units] == expected
        assert lines == []


def test_what_is_noted_while_nothing_comes_is_told_of_the_next_access_unit() -> None:
    lines: list[Line] = [(24, "sdp", "RTP: missed 1 packets\n")]
    losses, unit = RtpLosses(lines), packet("h264")
    losses.note()
    assert lines == []
    losses.mark(unit, "h264")
    assert unit.is_corrupt


def test_a_picture_of_jpeg_is_whole_whatever_was_missed() -> None:
    lines: list[Line] = [(24, "sdp", "RTP: missed 1 packets\n")]
    unit = packet("h264")
    RtpLosses(lines).mark(unit, "mjpeg")
    assert not unit.is_corrupt
