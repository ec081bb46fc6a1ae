import errno
import os
import select
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
import zmq
import zmq.auth

from stream import subscribe
from stream.errors import WireError
from stream.publish import Publisher
from stream.settings import CurveSettings, RelaySettings
from stream.subscribe import Subscriber, ViewerKeys
from stream.wire.keys import make_keys
from stream.wire.messages import ALL_FEEDS, Header, Message, Numbering, decode_message, encode_message
from tests.impostors import Impostor, hangs_up, is_mute
from tests.live import Live
from tests.published import Camera, relay
from tests.waiting import DEADLINE, wait_until


def test_pictures_arrive_in_order_from_a_key_frame_on() -> None:
    with relay() as publisher:
        camera = Camera(publisher)
        camera.show(3)
        with Subscriber(publisher.endpoint, "pier", max_age=3600) as subscriber:
            camera.wait_for_viewer()
            camera.show(25)
            messages = [subscriber.receive(DEADLINE) for _ in range(18)]
    numbers = [message.header.seq for message in messages if message]
    assert numbers == list(range(10, 28))
    assert messages[0] is not None
    assert messages[0].header.key
    assert (subscriber.lost, subscriber.received) == (0, 25)
    assert subscriber.dropped == {"no key frame": 7}
    assert subscriber.states == {"clean": 25}


def test_a_new_viewer_sees_a_picture_at_once_since_the_encoder_begins_a_key_frame() -> None:
    with relay() as publisher:
        camera = Camera(publisher, key_interval=1000.0)
        camera.show(5)
        with Subscriber(publisher.endpoint, "pier") as subscriber:
            message = None
            end = time.monotonic() + DEADLINE
            while message is None and time.monotonic() < end:
                camera.show()
                message = subscriber.receive(0.05)
        assert message is not None
        assert message.header.key
        assert message.header.gop == 2


def test_nothing_within_the_time_is_none() -> None:
    with relay() as publisher, Subscriber(publisher.endpoint, "pier") as subscriber:
        start = time.monotonic()
        assert subscriber.receive(0.1) is None
        assert 0.1 <= time.monotonic() - start < DEADLINE


def test_without_a_feed_all_feeds_arrive_and_only_the_kinds_asked_for() -> None:
    with relay() as publisher, Subscriber(publisher.endpoint, kinds=("video", "status")) as subscriber:
        wait_until(lambda: publisher.take_join("pier"), "the viewer")
        for feed in ("pier", "quay"):
            publisher.publish(feed, "data", Header(), b"data")
            publisher.publish(feed, "video", Header(key=True), b"unit")
            publisher.publish(feed, "status", Header(), b"state")
        messages = [subscriber.receive(DEADLINE) for _ in range(4)]
        assert [(message.header.feed, message.kind) for message in messages if message] == [
            ("pier", "video"),
            ("pier", "status"),
            ("quay", "video"),
            ("quay", "status"),
        ]
        assert subscriber.receive(0) is None


def test_a_relay_that_restarts_is_found_again_by_itself_and_is_no_hole() -> None:
    with relay("run-1") as publisher:
        endpoint = publisher.endpoint
        subscriber = Subscriber(endpoint, "pier").__enter__()
        camera = Camera(publisher)
        camera.wait_for_viewer()
        camera.show(4)
        first = [subscriber.receive(DEADLINE) for _ in range(4)]
    with relay("run-2", endpoint) as publisher:
        camera = Camera(publisher)
        camera.wait_for_viewer()
        camera.show(4)
        second = [subscriber.receive(DEADLINE) for _ in range(4)]
    subscriber.__exit__(None, None, None)
    assert [(m.header.relay, m.header.seq) for m in first + second if m] == [
        (run, seq) for run in ("run-1", "run-2") for seq in range(4)
    ]
    assert subscriber.lost == 0


def test_a_subscriber_may_come_before_its_relay() -> None:
    with relay() as publisher:
        endpoint = publisher.endpoint
    with Subscriber(endpoint, "pier") as subscriber, relay("run-2", endpoint) as publisher:
        camera = Camera(publisher)
        camera.wait_for_viewer()
        camera.show()
        assert subscriber.receive(DEADLINE) is not None


@dataclass(frozen=True)
class Connection:
    """A TCP connection of this machine, as Linux tells of it (proc_net_tcp)."""

    begins: bool
    """It has asked, and was not answered yet."""
    local_port: int
    is_asked_for: bool
    """The kernel looks now and then whether the other side is there."""


def connections(port: int) -> list[Connection]:
    """Those to a port."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [
        Connection(state == "02", int(local[-4:], 16), timer.startswith("02:"))
        for _, local, remote, state, _, timer, *_ in lines
        if int(remote[-4:], 16) == port and state in ("01", "02")
    ]


@pytest.mark.parametrize("max_age", [0.5, None])
def test_a_connection_that_nobody_answers_is_begun_anew_so_that_a_link_is_found_soon_when_it_is_back(
    max_age: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that is full says nothing, like a link that is down."""
    monkeypatch.setattr(subscribe, "RELAY_LOST_MS", 2_000)
    with ExitStack() as full:
        listener = full.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port: int = listener.getsockname()[1]
        for _ in range(3):
            filler = full.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        fillers = {each.local_port for each in connections(port)}
        with Subscriber(f"tcp://127.0.0.1:{port}", "pier", max_age=max_age) as subscriber:
            tried: set[int] = set()

            def has_tried_twice() -> bool:
                tried.update(each.local_port for each in connections(port) if each.begins)
                return len(tried - fillers) >= 2

            wait_until(has_tried_twice, "a second connection")
            full.close()
            with relay(endpoint=f"tcp://127.0.0.1:{port}") as publisher:
                camera = Camera(publisher)
                camera.wait_for_viewer()
                camera.show()
                assert subscriber.receive(DEADLINE) is not None


@pytest.mark.parametrize("max_age", [0.5, None])
def test_a_connection_on_which_nobody_says_who_he_is_is_begun_anew(
    max_age: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribe, "RELAY_LOST_MS", 2_000)
    with Impostor(is_mute) as mute, Subscriber(f"tcp://127.0.0.1:{mute.port}", "pier", max_age=max_age):
        wait_until(lambda: mute.accepted >= 4, "a fourth connection")


def test_a_connection_that_has_gone_silent_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a router that has forgotten it: both sides keep it, and nothing passes."""
    monkeypatch.setattr(subscribe, "HEARTBEAT_MS", 100)
    monkeypatch.setattr(subscribe, "RELAY_LOST_MS", 1_000)
    silent = 0
    """So many connections, the first ones, are."""

    def pass_on(near: socket.socket, stop: threading.Event) -> None:
        number = router.accepted
        with socket.create_connection(("127.0.0.1", int(publisher.endpoint.rpartition(":")[2]))) as far:
            while not stop.is_set():
                for end in select.select([near, far], [], [], 0.02)[0]:
                    octets = end.recv(65_536)
                    if not octets:
                        return
                    if number > silent:
                        (far if end is near else near).sendall(octets)

    with (
        relay() as publisher,
        Impostor(pass_on) as router,
        Subscriber(f"tcp://127.0.0.1:{router.port}", "pier") as subscriber,
    ):
        assert publisher.wait_for_viewer("pier", DEADLINE)
        with Live(publisher):
            assert subscriber.receive(DEADLINE) is not None
            silent = router.accepted
            wait_until(lambda: router.accepted > silent, "another connection")
            began_ns = time.time_ns()
            while (message := subscriber.receive(DEADLINE)) and message.header.published_ns < began_ns:
                pass
    assert message is not None


def test_a_reader_who_wants_everything_has_the_kernel_find_out_when_its_relay_is_gone() -> None:
    with relay() as publisher, Subscriber(publisher.endpoint, "pier", max_age=None):
        assert publisher.wait_for_viewer("pier", DEADLINE)
        port = int(publisher.endpoint.rpartition(":")[2])
        wait_until(lambda: [each.is_asked_for for each in connections(port)] == [True], "the kernel's asking")


def test_what_the_publisher_could_not_keep_is_counted_as_lost_and_skipped_to_a_key_frame() -> None:
    context: zmq.SyncContext = zmq.Context.instance()
    with relay() as publisher, context.socket(zmq.XPUB) as lossy, context.socket(zmq.SUB) as tap:
        tap.set(zmq.RCVTIMEO, int(DEADLINE * 1000))
        tap.subscribe(b"")
        tap.connect(publisher.endpoint)
        port = lossy.bind_to_random_port("tcp://127.0.0.1")
        with Subscriber(f"tcp://127.0.0.1:{port}", "pier") as subscriber:
            assert lossy.recv() == b"\1pier/video/"
            camera = Camera(publisher)
            camera.wait_for_viewer()
            camera.show(22)
            for number in range(22):
                parts = tap.recv_multipart()
                if number not in (13, 14):
                    lossy.send_multipart(parts)
            numbers: list[int] = []
            while len(numbers) < 15:
                message = subscriber.receive(DEADLINE)
                assert message is not None
                numbers.append(message.header.seq)
    assert numbers == [*range(13), 20, 21]
    assert subscriber.lost == 2
    assert subscriber.dropped == {"no key frame": 5}


def test_a_reader_that_did_not_read_gets_fresh_pictures_within_a_moment() -> None:
    with relay() as publisher, Subscriber(publisher.endpoint, "pier") as subscriber:
        assert publisher.wait_for_viewer("pier", DEADLINE)
        with Live(publisher) as feed:
            assert subscriber.receive(DEADLINE) is not None
            wait_until(lambda: subscriber.dropped.get("no key frame", 0) >= 25, "a second without a key frame")
            assert len(feed.keys) == 1, "for a reader that stands still no key frame is made"
            began = time.monotonic()
            message = subscriber.receive(DEADLINE)
            waited = time.monotonic() - began
    assert message is not None
    assert message.header.key
    assert (time.time_ns() - message.header.published_ns) / 1e9 < 1.0
    assert waited < 1.0


@pytest.mark.parametrize("feed", ["pier", None])
def test_a_key_frame_is_asked_for_by_subscribing_once_more_while_the_first_subscription_goes_on(
    feed: str | None,
) -> None:
    context: zmq.SyncContext = zmq.Context.instance()
    with context.socket(zmq.XPUB) as lossy:
        lossy.set(zmq.XPUB_VERBOSE, 1)
        lossy.set(zmq.RCVTIMEO, int(DEADLINE * 1000))
        port = lossy.bind_to_random_port("tcp://127.0.0.1")
        with Subscriber(f"tcp://127.0.0.1:{port}", feed) as subscriber:
            assert lossy.recv() == (b"\1pier/video/" if feed else b"\1")
            numbers = Numbering("video")

            def send(key: bool = False) -> None:
                stamped = numbers.stamp(Header(key=key), "run", "pier", time.time_ns())
                lossy.send_multipart(encode_message(b"pier/video/", stamped, b""))

            def is_asked_for() -> bool:
                send()
                return bool(lossy.poll(20))

            for _ in range(2):
                send(key=True)
                assert subscriber.receive(DEADLINE) is not None
                numbers._seq += 1  # a message is lost
                wait_until(is_asked_for, "a request")
                assert lossy.recv() == b"\1pier/video/"
                assert not lossy.poll(50), "no subscription has ended"


def test_one_lost_message_costs_a_round_trip_and_a_picture() -> None:
    with relay() as publisher, Subscriber(publisher.endpoint, "pier") as subscriber:
        assert publisher.wait_for_viewer("pier", DEADLINE)
        with Live(publisher) as feed:
            for _ in range(30):  # the relay makes one key frame a second, and the viewer has just joined
                assert subscriber.receive(DEADLINE) is not None
            with publisher._lock:
                publisher._lines[b"pier/video/"].numbers._seq += 1
            moment = time.monotonic()
            while (message := subscriber.receive(DEADLINE)) is not None and not message.header.key:
                assert subscriber.lost == 0, "pictures after the hole refer to what is missing"
            waited = time.monotonic() - moment
    assert message is not None
    assert (subscriber.lost, len(feed.keys)) == (1, 2)
    assert waited < 0.5


def test_many_viewers_that_come_within_a_second_bring_one_key_frame_each_second_at_most() -> None:
    with relay() as publisher, ExitStack() as stack, Live(publisher) as feed:
        wait_until(lambda: feed.keys, "the feed")
        viewers = [stack.enter_context(Subscriber(publisher.endpoint, "pier")) for _ in range(10)]
        viewers += [stack.enter_context(Subscriber(publisher.endpoint)) for _ in range(10)]
        first = [viewer.receive(DEADLINE) for viewer in viewers]
        ended = time.monotonic()
    assert all(message and message.header.key for message in first)
    assert all(after - asked >= 1.0 for asked, after in zip(feed.asked[1:], feed.keys[2:], strict=False))
    assert len(feed.keys) - 1 <= 2 + (ended - feed.keys[0])


def test_at_one_picture_a_second_the_next_picture_is_the_key_frame() -> None:
    with relay() as publisher, Live(publisher, rate=1.0) as feed:
        wait_until(lambda: feed.keys, "the first picture")
        with Subscriber(publisher.endpoint, "pier", max_age=3600) as subscriber:
            message = subscriber.receive(DEADLINE)
    assert message is not None
    assert (message.header.key, subscriber.dropped) == (True, {})


def test_with_no_highest_age_the_socket_is_read_only_as_fast_as_the_reader_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscribe, "WAITING_MOST", 10)
    with relay(lossless=True) as publisher, Subscriber(publisher.endpoint, "pier", max_age=None) as subscriber:
        assert publisher.wait_for_viewer("pier", DEADLINE)
        sent: list[int] = []

        def publish() -> None:
            for number in range(2_000):
                publisher.publish("pier", "video", Header(key=number % 50 == 0), bytes(4_000))
                sent.append(number)

        thread = threading.Thread(target=publish)
        thread.start()
        wait_until(lambda: len(sent) > 20 and stands_still(sent), "the publisher's waiting")
        assert len(sent) < 1_000
        assert subscriber.received <= 11
        messages = islice(iter(lambda: subscriber.receive(DEADLINE), None), 2_000)
        numbers = [message.header.seq for message in messages]
        thread.join()
    assert numbers == list(range(2_000))
    assert (subscriber.lost, subscriber.dropped) == (0, {})


PAUSING_READER = """
import sys, time
from stream import subscribe
subscribe.HEARTBEAT_MS, subscribe.RELAY_LOST_MS, subscribe.WAITING_MOST = 200, 2_000, 5
with subscribe.Subscriber(sys.argv[1], "pier", max_age=None) as subscriber:
    subscriber.receive()
    time.sleep(3)
    while subscriber.received < 500 and subscriber.receive(30):
        pass
    print(subscriber.received, subscriber.lost)
"""


def test_a_reader_that_pauses_for_longer_than_a_relay_is_given_up_after_loses_nothing() -> None:
    with relay(lossless=True) as publisher:
        program = subprocess.Popen(
            [sys.executable, "-c", PAUSING_READER, publisher.endpoint],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        try:
            assert publisher.wait_for_viewer("pier", DEADLINE)
            for _ in range(500):
                publisher.publish("pier", "video", Header(key=True), bytes(4_000))
            output, _ = program.communicate(timeout=DEADLINE)
        finally:
            program.kill()
            program.communicate()
    assert (program.returncode, output) == (0, "500 0\n")


def stands_still(sent: list[int]) -> bool:
    before = len(sent)
    time.sleep(0.2)
    return len(sent) == before


def test_what_has_come_but_was_not_looked_at_is_the_readers_after_closing_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a busy machine, where a recorder is stopped before its thread has seen the last pictures."""
    looking, closed = threading.Event(), threading.Event()

    def slowly(parts: list[bytes]) -> Message:
        if threading.current_thread().name == "slow":
            looking.set()
            assert closed.wait(DEADLINE)
        return decode_message(parts)

    monkeypatch.setattr(subscribe, "decode_message", slowly)
    with relay() as publisher, Subscriber(publisher.endpoint, "pier", max_age=None) as subscriber:
        assert subscriber._thread is not None
        subscriber._thread.name = "slow"
        camera = Camera(publisher)
        camera.wait_for_viewer()
        with Subscriber(publisher.endpoint, "pier", max_age=None) as witness:
            camera.wait_for_viewer()
            camera.show(20)
            assert looking.wait(DEADLINE)
            wait_until(lambda: witness.received == 20, "all messages")
        subscriber.close()
        closed.set()
        assert [message.header.seq for message in subscriber] == list(range(20))


def test_a_subscriber_that_nobody_reads_can_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribe, "WAITING_MOST", 2)
    with relay() as publisher, Subscriber(publisher.endpoint, "pier", max_age=None) as subscriber:
        assert publisher.wait_for_viewer("pier", DEADLINE)
        for _ in range(50):
            publisher.publish("pier", "video", Header(key=True), b"")
        wait_until(lambda: subscriber.received == 2, "a full inbox")


def test_closing_from_another_thread_ends_the_readers_loop() -> None:
    with relay() as publisher, Subscriber(publisher.endpoint, "pier") as subscriber:
        read: list[object] = []
        reader = threading.Thread(target=lambda: read.extend(subscriber))
        reader.start()
        subscriber.close()
        reader.join(DEADLINE)
        assert not reader.is_alive()
        assert read == []


def test_what_waits_for_a_reader_who_wants_everything_is_his_after_closing_too() -> None:
    with relay() as publisher, Subscriber(publisher.endpoint, "pier", max_age=None) as subscriber:
        camera = Camera(publisher)
        camera.wait_for_viewer()
        camera.show(50)
        wait_until(lambda: subscriber.received == 50, "all messages")
        subscriber.close()
        assert [message.header.seq for message in subscriber] == list(range(50))
        assert subscriber.receive() is None


def test_a_relay_of_another_version_ends_the_reader_with_its_number() -> None:
    context: zmq.SyncContext = zmq.Context.instance()
    with context.socket(zmq.XPUB) as foreign:
        port = foreign.bind_to_random_port("tcp://127.0.0.1")
        with Subscriber(f"tcp://127.0.0.1:{port}", "pier") as subscriber:
            assert foreign.recv() == b"\1pier/video/"
            foreign.send_multipart([b"pier/video/", b"\x81\xa1v\x02", b""])
            with pytest.raises(WireError, match="wire version 2"):
                subscriber.receive(DEADLINE)


def test_messages_of_a_kind_that_version_1_got_later_are_ignored() -> None:
    with relay() as publisher, Subscriber(publisher.endpoint) as subscriber:
        camera = Camera(publisher, "pier")
        camera.wait_for_viewer()
        assert publisher._socket is not None
        publisher._socket.send_multipart([b"pier/thermal/", b"", b""])
        camera.show()
        assert subscriber.receive(DEADLINE) is not None


def test_a_receiver_that_fails_ends_its_reader_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with relay() as publisher, Subscriber(publisher.endpoint) as subscriber:

        def add(*arguments: object) -> None:
            raise ArithmeticError("on purpose")

        monkeypatch.setattr(subscriber._inbox, "add", add)
        camera = Camera(publisher, "pier")
        camera.wait_for_viewer()
        camera.show()
        with pytest.raises(ArithmeticError, match="on purpose"):
            subscriber.receive(DEADLINE)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:5560", "tcp://127.0.0.1", "http://127.0.0.1:5560", "", "tcp://*:x"])
def test_an_endpoint_that_cannot_be_used_is_named(endpoint: str) -> None:
    with pytest.raises(WireError, match="an endpoint looks like tcp://HOST:PORT"):
        Subscriber(endpoint).__enter__()


@pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="this machine has no IPv6")  # noqa: PTH110
@pytest.mark.parametrize(("host", "called"), [("[::1]", "[::1]"), ("[::]", "[::1]"), ("[::1]", "::1")])
def test_relay_and_viewer_talk_over_ipv6(host: str, called: str) -> None:
    """Without brackets `::1` is looked up, like a name that has an address of IPv6 alone."""
    with (
        relay(endpoint=f"tcp://{host}:*") as publisher,
        Subscriber(publisher.endpoint.replace(host, called), "pier") as subscriber,
    ):
        camera = Camera(publisher)
        camera.wait_for_viewer()
        camera.show()
        assert subscriber.receive(DEADLINE) is not None


@pytest.mark.parametrize(
    ("families", "alone"),
    [
        ([socket.AF_INET6, socket.AF_INET6], True),
        ([socket.AF_INET6, socket.AF_INET], False),
        ([socket.AF_INET], False),
        (socket.gaierror("no such name"), False),
        (UnicodeError("a part of it is too long"), False),
    ],
)
def test_ipv6_is_meant_where_a_name_has_no_other_address(
    monkeypatch: pytest.MonkeyPatch, families: list[int] | Exception, alone: bool
) -> None:
    def look_up(host: str, *_: object, **__: object) -> list[tuple[int]]:
        assert host == "relay.example"
        if isinstance(families, Exception):
            raise families
        return [(family,) for family in families]

    monkeypatch.setattr(subscribe, "getaddrinfo", look_up)
    assert subscribe.has_ipv6_alone("tcp://relay.example:5560") == alone


def test_a_name_that_is_looked_up_without_an_end_holds_no_viewer_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribe, "LOOKUP_SECONDS", 0.01)
    answered = threading.Event()
    monkeypatch.setattr(subscribe, "getaddrinfo", lambda *_, **__: answered.wait(DEADLINE) and [])
    with relay() as publisher, Subscriber(publisher.endpoint, "pier") as subscriber:
        camera = Camera(publisher)
        camera.wait_for_viewer()
        camera.show()
        message = subscriber.receive(DEADLINE)
        assert not answered.is_set()
        answered.set()
    assert message is not None


def test_a_feed_with_a_wrong_name_is_refused() -> None:
    with pytest.raises(WireError, match="Pier/video/"):
        Subscriber("tcp://127.0.0.1:5560", "Pier")


def test_with_its_keys_a_viewer_reads_an_encrypted_relay(tmp_path: Path) -> None:
    for name in ("relay", "guest"):
        zmq.auth.create_certificates(tmp_path, name)
    curve = CurveSettings(server_secret_key_file=tmp_path / "relay.key_secret", client_keys_folder=tmp_path)
    keys = ViewerKeys(tmp_path / "relay.key", tmp_path / "guest.key_secret")
    with (
        Publisher(RelaySettings(endpoint="tcp://127.0.0.1:*", curve=curve), "run-1") as publisher,
        Subscriber(publisher.endpoint, "pier", keys=keys) as subscriber,
    ):
        camera = Camera(publisher)
        camera.wait_for_viewer()
        camera.show()
        assert subscriber.receive(DEADLINE) is not None
    with pytest.raises(WireError, match=r"guest\.key holds no secret key"):
        Subscriber(publisher.endpoint, keys=ViewerKeys(tmp_path / "relay.key", tmp_path / "guest.key")).__enter__()


@pytest.mark.parametrize("text", ["public-key", 'public-key = "a"'])
def test_keys_that_are_cut_off_are_named_and_not_the_endpoint(tmp_path: Path, text: str) -> None:
    make_keys("guest", tmp_path)
    (tmp_path / "relay.key").write_text(text)
    keys = ViewerKeys(tmp_path / "relay.key", tmp_path / "guest.key_secret")
    with pytest.raises(WireError, match=r"^CURVE keys that cannot be read: .*relay\.key"):
        Subscriber("tcp://127.0.0.1:5560", keys=keys).__enter__()


@pytest.mark.parametrize(
    ("encrypted", "shown", "reason"),
    [
        (True, None, "refuses: an encrypted relay needs keys, see docs/deploy.md"),
        (True, "stranger", "does not let this viewer in: it must know the public key"),
        (False, "guest", "refuses: a relay that is not encrypted takes no keys"),
    ],
)
def test_a_viewer_whose_keys_are_refused_is_told_why(
    tmp_path: Path, encrypted: bool, shown: str | None, reason: str
) -> None:
    for name in ("relay", "guest", "stranger"):
        make_keys(name, tmp_path)
    (tmp_path / "guests").mkdir()
    (tmp_path / "guest.key").rename(tmp_path / "guests" / "guest.key")
    curve = CurveSettings(server_secret_key_file=tmp_path / "relay.key_secret", client_keys_folder=tmp_path / "guests")
    keys = ViewerKeys(tmp_path / "relay.key", tmp_path / f"{shown}.key_secret") if shown else None
    settings = RelaySettings(endpoint="tcp://127.0.0.1:*", curve=curve if encrypted else CurveSettings())
    with (
        Publisher(settings, "run-1") as publisher,
        Subscriber(publisher.endpoint, "pier", keys=keys) as subscriber,
        pytest.raises(WireError, match=reason),
    ):
        subscriber.receive(DEADLINE)


def test_a_viewer_without_keys_whose_connections_all_end_at_once_is_told_of_encryption(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Impostor(hangs_up) as impostor, Subscriber(f"tcp://127.0.0.1:{impostor.port}", "pier") as subscriber:
        wait_until(lambda: caplog.messages, "a word about the connections")
        assert subscriber.trouble == (
            f"what answers at {subscriber.endpoint} ends every connection before it begins: it is no relay, "
            "or an encrypted one, which needs --relay-key and --secret-key (docs/deploy.md)"
        )
        assert subscriber.receive(0) is None
    assert caplog.messages == [f"{subscriber.trouble}; trying on"]


def test_who_asks_only_how_feeds_do_is_not_warned_of_connections_that_end(caplog: pytest.LogCaptureFixture) -> None:
    with Impostor(hangs_up) as impostor:
        with Subscriber(f"tcp://127.0.0.1:{impostor.port}", "pier", ("status", "feeds")) as subscriber:
            wait_until(lambda: impostor.accepted > subscribe.BROKEN_MOST + 1, "more connections than it is told after")
            assert subscriber.trouble is not None
        assert caplog.messages == []


def test_beside_the_kinds_of_one_feed_the_list_of_all_can_be_asked_for() -> None:
    with relay() as publisher, Subscriber(publisher.endpoint, "pier", ("status", "feeds")) as subscriber:
        assert publisher.wait_for_viewer("pier", DEADLINE)
        assert publisher.wait_for_viewer(ALL_FEEDS, DEADLINE)
        publisher.publish("gate", "status", Header(), b"not asked for")
        publisher.publish("pier", "status", Header(), b"of one")
        publisher.publish(ALL_FEEDS, "feeds", Header(), b"of all")
        messages = [subscriber.receive(DEADLINE) for _ in range(2)]
    assert [message and message.payload for message in messages] == [b"of one", b"of all"]


@pytest.mark.parametrize(("owner", "name"), [(zmq.Context, "socket"), (zmq.Socket, "get_monitor_socket")])
def test_a_subscriber_for_which_no_descriptors_are_left_says_so_and_leaves_nothing_open(
    owner: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sockets = []

    def none_left(it: zmq.SyncContext | zmq.SyncSocket, *_: object) -> None:
        if isinstance(it, zmq.Socket):
            sockets.append(it)
        raise zmq.ZMQError(errno.EMFILE)

    monkeypatch.setattr(owner, name, none_left)
    with pytest.raises(WireError, match="Too many open files"):
        Subscriber("tcp://127.0.0.1:5560").__enter__()
    assert all(socket.closed for socket in sockets)


def test_opening_and_closing_leaves_nothing_behind() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with relay() as publisher:
        with Subscriber(publisher.endpoint, "pier"):
            wait_until(lambda: publisher.take_join("pier"), "the viewer")
        before, threads = descriptors(), threading.active_count()
        for _ in range(10):
            with Subscriber(publisher.endpoint, "pier"):
                pass
        wait_until(lambda: descriptors() <= before, "closing every socket")
        wait_until(lambda: threading.active_count() <= threads, "the end of all threads")
