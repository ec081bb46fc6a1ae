from __future__ import annotations

import itertools
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import av
import pytest

from stream.decode import Decoder
from stream.errors import SourceLost
from stream.source import open_source, opener_of
from stream.sources import remote
from tests.clips import make_clip
from tests.impostors import Behaviour, Impostor, answers_until
from tests.reading import feed, nothing_left, numbers, read, take, why_lost
from tests.rtsp_server import (
    RtspServer,
    UdpSwallower,
    camera,
    make_certificate,
    microphone,
    recording,
)
from tests.waiting import takes_less_than, wait_until

USER, PASSWORD = "night watch", "p@ss:w/o#r?d%"
MOUNTS = {
    "/h264": camera(),
    "/hevc": camera("hevc"),
    "/mjpeg": camera("mjpeg"),
    "/vp8": camera("vp8"),
    "/sound": camera(sound=True),
    "/no-video": microphone(),
}


@pytest.fixture(scope="module")
def server() -> Iterator[RtspServer]:
    with RtspServer(MOUNTS) as running:
        yield running


@pytest.fixture
def guarded() -> Iterator[RtspServer]:
    with RtspServer({"/cam": camera()}, users={USER: PASSWORD}) as running:
        yield running


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    return file


# What comes


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("codec", ["h264", "hevc", "mjpeg", "vp8"])
def test_a_camera_gives_pictures_over_either_transport(server: RtspServer, codec: str, transport: str) -> None:
    with nothing_left(), open_source(feed(server.url(f"/{codec}"), transport=transport)) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        frames = [frame for unit in take(segment, 12) for frame in decoder.decode(unit)]
    assert (segment.info.codec, segment.info.width, segment.info.height) == (codec, 320, 240)
    assert segment.rate == 25
    assert len(frames) == 12
    assert {(frame.width, frame.height, frame.state) for frame in frames} == {(320, 240, "clean")}


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_every_picture_comes_once_and_in_order(tmp_path: Path, transport: str) -> None:
    clip = make_clip(tmp_path / "clip.mkv", pictures=40)
    with (
        RtspServer({"/clip": recording(clip)}) as server,
        open_source(feed(server.url("/clip"), transport=transport)) as source,
    ):
        assert numbers(next(source.segments()), 38) == list(range(38))


def test_key_frames_of_a_camera_that_tells_their_parameter_sets_once_bring_them_along(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mkv", pictures=40, key_interval=10)
    launch = recording(clip).replace("config-interval=-1", "config-interval=0")  # in the SDP alone
    viewers = av.CodecContext.create("h264", "r")
    assert isinstance(viewers, av.VideoCodecContext)
    with RtspServer({"/clip": launch}) as server, open_source(feed(server.url("/clip"), transport="tcp")) as source:
        frames = [frame for unit in take(next(source.segments()), 30) for frame in viewers.decode(unit.packet)]
    assert len(frames) >= 29


def test_of_two_cameras_at_one_address_the_first_is_relayed_although_the_other_sends_more() -> None:
    first, second = camera(rate=10, key_interval=50), camera(size=(160, 120), rate=25, key_interval=10)
    both = first.removesuffix(")") + second.removeprefix("(").replace("pay0", "pay1")
    with RtspServer({"/both": both}) as server:
        for _ in range(3):
            with open_source(feed(server.url("/both"), transport="tcp")) as source:
                segment = next(source.segments())
                decoder = Decoder(segment.video)
                frames = [frame for unit in take(segment, 5) for frame in decoder.decode(unit)]
                assert {frame.width for frame in frames} == {320}


def test_time_stamps_begin_with_the_first_picture(server: RtspServer) -> None:
    units = read(feed(server.url("/h264")), 5)
    assert [unit.packet.pts for unit in units] == [0, 3600, 7200, 10800, 14400]


def test_the_first_picture_comes_soon(server: RtspServer) -> None:
    def seconds_to_open() -> float:
        began = time.monotonic()
        assert read(feed(server.url("/mjpeg")), 1)
        return time.monotonic() - began

    assert takes_less_than(1.0, seconds_to_open), "FFmpeg alone would look at 5 s of it"


def test_sound_stays_at_the_camera(server: RtspServer) -> None:
    with open_source(feed(server.url("/sound"))) as source:
        segment = next(source.segments())
        assert take(segment, 3)
    assert segment.info.ignored == ()


def test_a_camera_is_read_over_tls(tmp_path: Path) -> None:
    with RtspServer({"/cam": camera()}, certificate=make_certificate(tmp_path)) as server:
        assert server.url("/cam").startswith("rtsps://")
        assert len(read(feed(server.url("/cam")), 5)) == 5


def test_a_camera_that_nobody_vouches_for_is_not_read_where_somebody_should(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    ours = make_certificate(tmp_path / "ours")
    ca_file = make_certificate(tmp_path).with_name("certificate.pem")
    with RtspServer({"/cam": camera()}, certificate=tmp_path / "server.pem") as server:
        assert len(read(feed(server.url("/cam"), tls_ca_file=ca_file), 5)) == 5
    with RtspServer({"/cam": camera()}, certificate=ours) as server:
        lost = why_lost(feed(server.url("/cam"), tls_ca_file=ca_file))
    assert lost.reason == "refused"
    assert str(lost) == f"{server.url('/cam')}: its certificate is not trusted: self-signed certificate"


def test_a_camera_whose_certificate_is_made_out_to_another_is_not_read(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "DNS:elsewhere.example")
    with RtspServer({"/cam": camera()}, certificate=certificate) as server:
        lost = why_lost(feed(server.url("/cam"), tls_ca_file=tmp_path / "certificate.pem"))
    assert lost.reason == "refused"
    assert "its certificate is not trusted: IP address mismatch" in str(lost)


def test_a_camera_that_sends_us_elsewhere_is_read_there(server: RtspServer) -> None:
    with Impostor(answers_until(b"DESCRIBE", redirection(server.url("/h264")))) as elsewhere:
        assert len(read(feed(f"rtsp://127.0.0.1:{elsewhere.port}/x", transport="tcp"), 3)) == 3


def test_a_redirection_does_not_lead_out_of_tls(server: RtspServer, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with RtspServer({"/cam": camera()}, certificate=certificate) as guarded:
        for target, reason in ((guarded.url("/cam"), None), (server.url("/h264"), "refused")):
            behaviour = answers_until(b"DESCRIBE", redirection(target))
            with Impostor(over_tls(behaviour, certificate)) as elsewhere:
                settings = feed(f"rtsps://127.0.0.1:{elsewhere.port}/x", tls_ca_file=tmp_path / "certificate.pem")
                if reason is None:
                    assert len(read(settings, 3)) == 3
                else:
                    assert why_lost(settings).reason == reason


def redirection(url: str) -> bytes:
    return f"RTSP/1.0 302 Moved\r\nCSeq: NUMBER\r\nLocation: {url}\r\n\r\n".encode()


def over_tls(behaviour: Behaviour, certificate: Path) -> Behaviour:
    """The same, with a PEM file of a key and a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def behave(connection: socket.socket, stop: threading.Event) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            behaviour(secured, stop)

    return behave


# Transport


def test_auto_takes_udp_where_it_can(tmp_path: Path) -> None:
    with RtspServer({"/cam": camera()}, transport="udp") as server:
        assert len(read(feed(server.url("/cam")), 3)) == 3


def test_auto_takes_tcp_where_the_server_offers_no_udp(server: RtspServer) -> None:
    with RtspServer({"/cam": camera()}, transport="tcp") as only_tcp:
        settings = feed(only_tcp.url("/cam"))
        opener = opener_of(settings)
        try:
            units = read(settings, 3, opener)
        except SourceLost:  # this server cannot yet serve, so soon after it refused UDP
            units = read(settings, 3, opener)
        assert len(units) == 3


def test_auto_takes_tcp_where_no_packets_come_and_remembers_it(
    server: RtspServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "UDP_SECONDS", 5.0)
    with nothing_left(), UdpSwallower(server.port) as link:
        settings = feed(f"rtsp://127.0.0.1:{link.port}/h264", open_timeout=20.0)
        opener = opener_of(settings)
        began = time.monotonic()
        assert len(read(settings, 3, opener)) == 3
        first = time.monotonic() - began
        assert len(read(settings, 3, opener)) == 3
        second = time.monotonic() - began - first
    assert second < 4.5 < first < 20


def test_a_transport_that_fails_is_forgotten(server: RtspServer) -> None:
    with UdpSwallower(server.port) as link:
        settings = feed(f"rtsp://127.0.0.1:{link.port}/h264", open_timeout=2.0)
        opener = opener_of(settings)
        read(settings, 1, opener)
    assert why_lost(settings, opener).reason == "refused"
    with RtspServer({"/cam": camera()}, transport="udp") as only_udp:
        assert len(read(feed(only_udp.url("/cam")), 3, opener)) == 3


def test_udp_that_does_not_come_through_is_a_time_out(server: RtspServer) -> None:
    with nothing_left(), UdpSwallower(server.port) as link:
        lost = why_lost(feed(f"rtsp://127.0.0.1:{link.port}/h264", transport="udp", open_timeout=1.0))
    assert lost.reason == "time-out"
    assert "no packet for" in str(lost)


def test_a_transport_that_the_server_does_not_offer_is_told() -> None:
    with RtspServer({"/cam": camera()}, transport="tcp") as server:
        lost = why_lost(feed(server.url("/cam"), transport="udp"))
    assert lost.reason == "refused"
    assert str(lost).endswith("the server does not offer this transport")


# Credentials


@pytest.mark.parametrize("scheme", ["basic", "digest"])
def test_credentials_of_any_characters_open_a_camera(scheme: Literal["basic", "digest"], password_file: Path) -> None:
    with RtspServer({"/cam": camera()}, users={USER: PASSWORD}, scheme=scheme) as server:
        settings = feed(server.url("/cam"), username=USER, password_file=password_file)
        assert len(read(settings, 3)) == 3
        raw = server.url("/cam").replace("://", f"://{USER}:{PASSWORD}@")
        assert len(read(feed(raw), 3)) == 3


@pytest.mark.parametrize("credentials", ["", f"{USER}:wrong@", "nobody:nothing@"])
def test_a_camera_that_does_not_know_us_says_so_at_once(guarded: RtspServer, credentials: str) -> None:
    with nothing_left():
        began = time.monotonic()
        lost = why_lost(feed(guarded.url("/cam").replace("://", f"://{credentials}"), open_timeout=20.0))
    assert time.monotonic() - began < 10
    assert lost.reason == "unauthorised"
    assert str(lost).endswith("user name or password is missing or wrong")


def test_no_credential_is_told_to_anybody(
    guarded: RtspServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "v3ry$ecret"
    settings = feed(guarded.url("/cam").replace("://", f"://watch:{secret}@"))
    with caplog.at_level("DEBUG"):
        lost = why_lost(settings)
    seen = [str(lost), repr(lost), repr(lost.__context__), repr(lost.__cause__), caplog.text, *capfd.readouterr()]
    seen += [thread.name for thread in threading.enumerate()]
    assert not any(secret in text or "watch" in text for text in seen)


def test_probe_takes_a_password_from_a_file_and_shows_it_nowhere(
    guarded: RtspServer, password_file: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tools", "--log-level", "debug", "probe", guarded.url("/cam"), "--seconds", "0.4"]
    command += ["--username", USER, "--password-file", str(password_file), "--transport", "tcp"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert "video.width" in done.stdout
    password_file.write_text("wrong-one")
    refused = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert refused.returncode == 1
    assert refused.stderr.endswith(f"nightbridge: {guarded.url('/cam')}: user name or password is missing or wrong\n")
    assert PASSWORD not in done.stdout + done.stderr
    assert "wrong-one" not in refused.stdout + refused.stderr


# What goes wrong


def test_a_path_that_is_not_there_is_told(server: RtspServer) -> None:
    lost = why_lost(feed(server.url("/nothing")))
    assert lost.reason == "not found"
    assert "not found" in str(lost)


def test_a_camera_without_video_says_what_it_holds(server: RtspServer) -> None:
    lost = why_lost(feed(server.url("/no-video")))
    assert lost.reason == "no video"
    assert str(lost).endswith("no video in it; it holds audio pcm_alaw")


def test_a_server_that_speaks_no_tls_is_told(server: RtspServer) -> None:
    lost = why_lost(feed(server.url("/h264").replace("rtsp", "rtsps", 1)))
    assert lost.reason == "refused"
    assert str(lost).endswith("the TLS connection fails")


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_camera_that_hangs_is_lost_after_the_read_timeout(transport: str) -> None:
    def seconds_to_lose() -> float:
        with RtspServer({"/cam": camera()}) as server:
            settings = feed(server.url("/cam"), transport=transport, read_timeout=0.7)
            with nothing_left(), open_source(settings) as source:
                segment = next(source.segments())
                assert take(segment, 10)
                server.freeze()
                began = time.monotonic()
                list(segment.packets())
                with pytest.raises(SourceLost, match=r"no packet for 0\.7 s") as lost:
                    next(source.segments())
        assert lost.value.reason == "time-out"
        return time.monotonic() - began

    assert takes_less_than(2.5, seconds_to_lose)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_camera_that_goes_away_is_lost_at_once(transport: str) -> None:
    with RtspServer({"/cam": camera()}) as server:
        settings = feed(server.url("/cam"), transport=transport, read_timeout=20.0)
        with nothing_left(), open_source(settings) as source:
            segment = next(source.segments())
            assert take(segment, 3)
            server.kill()
            began = time.monotonic()
            list(segment.packets())
            with pytest.raises(SourceLost, match="the server ended the stream") as lost:
                next(source.segments())
            assert time.monotonic() - began < 10
    assert lost.value.reason == "lost"


def test_a_camera_that_hangs_is_stopped_within_a_second() -> None:
    def seconds_to_stop() -> float:
        stop = threading.Event()
        with RtspServer({"/cam": camera()}) as server:
            settings = feed(server.url("/cam"), transport="tcp", read_timeout=3.0)
            with nothing_left():
                with open_source(settings, stop) as source:
                    segment = next(source.segments())
                    assert take(segment, 3)
                    server.freeze()
                    timer = threading.Timer(0.2, stop.set)
                    timer.start()
                    began = time.monotonic()
                    list(segment.packets())
                    assert list(source.segments()) == []
                taken = time.monotonic() - began
                timer.join()
        return taken

    assert takes_less_than(1.2, seconds_to_stop)


def test_a_camera_that_is_restarted_ten_times_is_found_ten_times() -> None:
    server = RtspServer({"/cam": camera()})
    with server:
        settings = feed(server.url("/cam"), transport="tcp")
        opener = opener_of(settings)
        read(settings, 1, opener)
    with nothing_left():
        for _ in range(10):
            assert why_lost(settings, opener).reason == "refused"
            with server:
                assert read(settings, 1, opener)


def test_fifty_connections_leave_nothing_behind(server: RtspServer) -> None:
    settings = feed(server.url("/mjpeg"), transport="tcp")
    opener = opener_of(settings)
    read(settings, 1, opener)
    with nothing_left():
        for _ in range(50):
            assert read(settings, 1, opener)


# Time


def test_the_cameras_own_clock_is_used_as_soon_as_it_tells_it(server: RtspServer) -> None:
    with open_source(feed(server.url("/h264"), transport="tcp", read_timeout=5.0)) as source:
        seen = []
        for packet in next(source.segments()).packets():
            seen.append(packet)
            if packet.capture_clock == "rtcp" and len(seen) > 10 and seen[-8].capture_clock == "rtcp":
                break
            assert len(seen) < 400, "the camera never told its clock"
    told = seen[-8:]
    assert seen[0].capture_clock == "arrival"
    assert seen[0].capture_ns == seen[0].received_ns
    for packet in told:
        assert 0 <= packet.received_ns - packet.capture_ns < 500_000_000
    steps = [after.capture_ns - before.capture_ns for before, after in itertools.pairwise(told)]
    assert all(abs(step - 40_000_000) < 20_000_000 for step in steps[3:])


def test_a_feed_that_falls_behind_goes_on_with_a_key_frame(server: RtspServer) -> None:
    settings = feed(server.url("/h264"), transport="tcp", age_budget=0.3)
    with open_source(settings) as source:
        segment = next(source.segments())
        packets = segment.packets()
        seen = [next(packets).packet.pts for _ in range(5)]
        wait_until(lambda: segment.behind, "a drop")
        went_on = next(packets)
    assert segment.behind == (went_on.packet.pts or 0) // 3600 - (seen[-1] or 0) // 3600 - 1 > 0
    assert went_on.packet.is_keyframe
