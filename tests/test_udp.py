from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from ipaddress import IPv6Address
from itertools import islice
from pathlib import Path

import av
import pytest

from stream.address import UdpAddress
from stream.errors import SourceLost, SourceUnsupported
from stream.source import open_source
from stream.sources.udp import UdpReader, listen
from tests.cameras import LiveCamera
from tests.clips import UdpSender, add_video, datagrams, free_port, make_clip
from tests.clips import frame as picture_for
from tests.reading import feed, nothing_left, read, why_lost
from tests.waiting import DEADLINE, wait_until

GROUP, GROUP_OF_THE_LINK, GROUP_OF_THE_SITE = "239.255.77.8", "ff02::7777", "ff05::7777"
INTERFACES_OF_IPV6 = Path("/proc/net/if_inet6")


def two_cameras(path: Path, sending: Sequence[int] = (0, 1)) -> Path:
    """A transport stream with two cameras, 160 and 320 pixels wide, of which only those that are `sending` do."""
    with av.open(str(path), "w") as container:
        streams = [add_video(container, "libx264", 25, {}, 0) for _ in range(2)]
        for width, stream in zip((160, 320), streams, strict=True):
            stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, width * 3 // 4, "yuv420p", 300_000
            stream.codec_context.gop_size = 25
        for number in range(100):
            for stream in (streams[index] for index in sending):
                container.mux(stream.encode(picture_for(number, stream, None, False, False, False)))
    return path


def width_of(url: str) -> int | None:
    with open_source(feed(url)) as source:
        return next(source.segments()).info.width


def test_of_two_cameras_in_one_stream_the_same_one_is_relayed_wherever_it_is_joined(tmp_path: Path) -> None:
    both = two_cameras(tmp_path / "both.ts")
    widths = []
    for sixteenth in range(8):
        port = free_port()
        start = len(datagrams(both)) * sixteenth // 16
        with UdpSender(both, port, start=start, bit_rate=3_000_000):
            widths.append(width_of(f"udp://127.0.0.1:{port}"))
    assert widths == [160] * 8


def test_a_camera_that_is_announced_and_sends_nothing_is_not_waited_for(tmp_path: Path) -> None:
    one, port = two_cameras(tmp_path / "one.ts", sending=[1]), free_port()
    with UdpSender(one, port, bit_rate=1_000_000):
        assert width_of(f"udp://127.0.0.1:{port}") == 320


def test_two_senders_to_one_port_whose_streams_take_turns_are_told_as_a_loss(tmp_path: Path) -> None:
    """Else the feed would be opened again and again, without a pause or a word."""
    port = free_port()
    one = make_clip(tmp_path / "one.ts", pictures=50)
    other = make_clip(tmp_path / "other.ts", pictures=50, first_pid=0x300)
    with (
        LiveCamera(one, port),
        LiveCamera(other, port),
        open_source(feed(f"udp://127.0.0.1:{port}")) as source,
        pytest.raises(SourceLost, match=r"its streams keep changing; does another sender use this address too\?"),
    ):
        sum(1 for segment in source.segments() for _ in segment.packets())


def test_a_slow_camera_is_opened_with_its_next_key_frame_although_that_is_far_away(tmp_path: Path) -> None:
    """Over a thin link, where FFmpeg would open without one only after 31 pictures."""
    clip = make_clip(tmp_path / "clip.ts", pictures=40, key_interval=20, rate=5)
    port, size = free_port(), clip.stat().st_size
    with (
        UdpSender(clip, port, start=len(datagrams(clip)) // 8, bit_rate=size * 8 // 16),
        open_source(feed(f"udp://127.0.0.1:{port}", open_timeout=2.0)) as source,
    ):
        assert next(source.segments()).info.width == 160


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_datagram_that_the_network_brings_twice_counts_once(tmp_path: Path, codec: str) -> None:
    clip = make_clip(tmp_path / "clip.ts", codec=codec, pictures=40, key_interval=20)
    units = [bytes(unit.packet) for unit in read(feed(clip), 40)]
    doubled = tmp_path / "doubled.ts"
    doubled.write_bytes(b"".join(each * (2 if number % 3 else 1) for number, each in enumerate(datagrams(clip))))
    port = free_port()
    with UdpSender(doubled, port):
        received = [unit.packet for unit in read(feed(f"udp://127.0.0.1:{port}"), 38)]
    assert [bytes(packet) for packet in received] == units[:38]
    assert not any(packet.is_corrupt for packet in received)


def test_a_picture_that_is_read_late_counts_as_captured_when_it_came(tmp_path: Path) -> None:
    clip, port = make_clip(tmp_path / "clip.ts", pictures=50), free_port()
    with (
        UdpSender(clip, port, bit_rate=clip.stat().st_size * 8) as sender,
        open_source(feed(f"udp://127.0.0.1:{port}", read_timeout=0.5)) as source,
    ):
        packets = next(source.segments()).packets()
        seen = [next(packets)]
        assert sender.wait()
        seen += packets
    came = [sender.sent_ns[(packet.packet.pos or 0) // 1316] for packet in seen]
    late = [packet.capture_ns - sent for packet, sent in zip(seen, came, strict=True)]
    assert len(seen) == 50
    assert max(packet.received_ns - sent for packet, sent in zip(seen, came, strict=True)) > 500_000_000
    assert max(late) < 100_000_000


def test_a_reader_that_is_far_too_slow_skips_what_waits_and_goes_on_with_what_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("stream.sources.udp.HOPELESS_SECONDS", 0.0)
    clip, port = make_clip(tmp_path / "clip.ts", pictures=50, key_interval=5), free_port()
    with LiveCamera(clip, port), open_source(feed(f"udp://127.0.0.1:{port}", age_budget=0.5)) as source:
        packets = next(source.segments()).packets()
        first = next(packets)
        wait_until(lambda: time.time_ns() - first.received_ns > 3_000_000_000, "three seconds of pictures that wait")
        behind = [(packet.received_ns - packet.capture_ns) / 1e9 for packet in islice(packets, 40)]
    assert max(behind) > 2
    assert max(behind[-10:]) < 1
    told = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith(f"udp://127.0.0.1:{port}: this machine is too slow: ")


def test_who_skips_what_waits_does_not_wait_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.sources.udp.HOPELESS_SECONDS", 0.0)
    port = free_port()
    with (
        UdpReader(
            feed(f"udp://127.0.0.1:{port}", age_budget=0.1, read_timeout=60.0),
            threading.Event(),
            UdpAddress("127.0.0.1", port),
        ) as reader,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        reader.opened()
        sender.connect(("127.0.0.1", port))
        stuffing = [b"\x47\x1f\xff\x10" + bytes([number]) * 184 for number in range(6)]
        for packet in stuffing[:5]:
            sender.send(packet)
        sent_ns = time.time_ns()
        wait_until(lambda: time.time_ns() - sent_ns > 100_000_000, "packets that are too old")
        assert reader.read(188) == stuffing[0]
        sender.send(stuffing[5])
        assert reader.read(188) == stuffing[5]


# Groups


def test_a_name_is_listened_at_where_it_leads(tmp_path: Path) -> None:
    clip, port = make_clip(tmp_path / "clip.ts", pictures=50), free_port()
    with UdpSender(clip, port, repeat=True):
        assert width_of(f"udp://localhost:{port}") == 160


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (socket.gaierror(socket.EAI_NONAME, "?"), "not found", "no such host"),
        (UnicodeError("label too long"), "not found", "no such host"),
        (socket.gaierror(socket.EAI_AGAIN, "?"), "time-out", "the host name cannot be looked up at the moment"),
    ],
)
def test_a_name_that_leads_nowhere_is_told(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str, words: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with nothing_left():
        lost = why_lost(feed("udp://camera:5000"))
    assert (lost.reason, str(lost)) == (reason, f"udp://camera:5000: {words}")


def test_a_name_whose_looking_up_hangs_is_told_and_does_not_keep_a_feed_from_stopping(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, answer, stop = threading.Event(), threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> None:
        asked.set()
        answer.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with nothing_left():
        lost = why_lost(feed("udp://camera:5000", open_timeout=0.3))
        assert (lost.reason, str(lost)) == (
            "time-out",
            "udp://camera:5000: the host name cannot be looked up at the moment",
        )
        asked.clear()
        camera = open_source(feed("udp://another:5000", open_timeout=60.0), stop)
        ended = threading.Thread(target=lambda: list(camera.segments()), daemon=True)
        ended.start()
        assert asked.wait(DEADLINE)
        stop.set()
        ended.join(1)
        assert not ended.is_alive()
        answer.set()


def test_a_name_whose_looking_up_hangs_is_asked_for_once_however_often_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, answer = list[object](), threading.Event()

    def hang(host: object, *_: object, **__: object) -> None:
        asked.append(host)
        answer.wait()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with nothing_left():
        words = [str(why_lost(feed("udp://camera:5000", open_timeout=0.2))).rpartition(": ")[2] for _ in range(3)]
        assert words == ["the host name cannot be looked up at the moment"] * 3
        assert asked == ["camera"]
        assert sum(thread.name == "nightbridge-lookup" for thread in threading.enumerate()) == 1
        answer.set()
    assert why_lost(feed("udp://camera:5000")).reason == "not found"
    assert asked == ["camera"] * 2, "it is asked for again once there was an answer"


def interface_of_ipv6() -> tuple[str, str]:
    """Name and address of one with an address of its link, where groups of the link are; skips where there is none."""
    lines = (
        [line.split() for line in INTERFACES_OF_IPV6.read_text().splitlines()] if INTERFACES_OF_IPV6.exists() else []
    )
    for digits, _, _, scope, _, name in lines:
        if scope == "20":
            return name, str(IPv6Address(bytes.fromhex(digits)))
    pytest.skip("no IPv6 here")


def test_a_group_of_the_link_is_joined_at_the_interface_that_the_address_names() -> None:
    (name, address), port = interface_of_ipv6(), free_port()
    options = [f"?localaddr={way}" for way in (name, address, address.replace(":", "%3A"), f"{address}%25{name}")]
    urls = [f"udp://[{GROUP_OF_THE_LINK}]:{port}{option}" for option in options]
    for url in (*urls, f"udp://[{GROUP_OF_THE_LINK}%{name}]:{port}"):
        with (
            listen(UdpAddress.of(url), 65_536) as listener,
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender,
        ):
            sender.sendto(b"here", (GROUP_OF_THE_LINK, port, 0, socket.if_nametoindex(name)))
            listener.settimeout(5)
            assert listener.recv(100) == b"here"


def test_an_address_that_no_interface_has_is_told() -> None:
    interface_of_ipv6()
    with pytest.raises(OSError, match=r"^no interface has the address 2001:db8::7$"):
        listen(UdpAddress.of("udp://[ff05::5]:5000?localaddr=2001:db8::7"), 65_536)


def test_what_comes_to_a_group_of_ipv6_at_another_interface_is_not_read() -> None:
    (name, _), port = interface_of_ipv6(), free_port()
    here, there = (
        UdpAddress.of(f"udp://[{GROUP_OF_THE_SITE}]:{port}?localaddr={interface}") for interface in ("::1", name)
    )
    with (
        listen(here, 65_536) as listener,
        listen(there, 65_536) as member,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender,
    ):
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(name))
        member.settimeout(5)
        for words in (b"one", b"two"):  # with the second the first has come to all
            sender.sendto(words, (GROUP_OF_THE_SITE, port))
            assert member.recv(100) == words
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.recv(100)


def test_only_the_source_that_the_address_names_is_listened_to() -> None:
    port = free_port()
    url = f"udp://127.0.0.2@{GROUP}:{port}?localaddr=127.0.0.1"
    with listen(UdpAddress.of(url), 65_536) as listener:
        for host in ("127.0.0.1", "127.0.0.2"):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
                sender.bind((host, 0))
                sender.sendto(host.encode(), (GROUP, port))
        listener.settimeout(5)
        assert listener.recv(100) == b"127.0.0.2"


def test_what_comes_to_a_group_where_only_others_have_joined_it_is_not_read() -> None:
    port, here = free_port(), socket.inet_aton("127.0.0.1")
    other = socket.inet_aton(address_beyond_this_machine())
    with (
        listen(UdpAddress.of(f"udp://{GROUP}:{port}?localaddr=127.0.0.1"), 65_536) as listener,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as member,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        member.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        member.bind((GROUP, port))
        member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + other)
        for interface, words in ((other, b"there"), (here, b"here")):
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
            sender.sendto(words, (GROUP, port))
        for receiver, heard in ((member, b"there"), (listener, b"here")):
            receiver.settimeout(5)
            assert receiver.recv(100) == heard


def address_beyond_this_machine() -> str:
    """The IPv4 address of an interface that is not the loopback; skips where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("no network here")
        return str(asking.getsockname()[0])


@pytest.mark.parametrize(
    ("group", "interface"),
    [
        (GROUP, "eth0"),
        (GROUP, "fe80::1"),
        (GROUP, "10.0.0"),
        ("[ff05::5]", "10.0.0.1"),
        ("[ff05::5]", "fe80::g"),
        ("[ff05::5]", "longer-than-sixteen"),
    ],
)
def test_an_interface_that_can_never_join_the_group_is_refused(group: str, interface: str) -> None:
    with pytest.raises(SourceUnsupported, match=r"localaddr=ADDRESS of an interface, of IPv6 also its name"):
        UdpAddress.of(f"udp://{group}:5000?localaddr={interface}")


@pytest.mark.parametrize(
    "url", ["udp://10.0.0.5@10.0.0.1:5000", "udp://me@239.1.1.1:5000", "udp://10.0.0.5@[ff05::1]:5000"]
)
def test_a_source_that_cannot_be_chosen_is_refused(url: str) -> None:
    with pytest.raises(SourceUnsupported, match="malformed"):
        UdpAddress.of(url)
