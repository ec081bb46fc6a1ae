import errno
import os
import select
import socket
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import zmq
import zmq.auth

from stream import subscribe
from stream.errors import WireError
from stream.subscribe import Subscriber
from tests.impostors import Impostor, is_mute
from tests.live import Live
from tests.published import Camera, relay
from tests.waiting import DEADLINE, wait_until


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


def test_a_relay_of_another_version_ends_the_reader_with_its_number() -> None:
    context: zmq.SyncContext = zmq.Context.instance()
    with context.socket(zmq.XPUB) as foreign:
        port = foreign.bind_to_random_port("tcp://127.0.0.1")
        with Subscriber(f"tcp://127.0.0.1:{port}", "pier") as subscriber:
            assert foreign.recv() == b"\1pier/video/"
            foreign.send_multipart([b"pier/video/", b"\x81\xa1v\x02", b""])
            with pytest.raises(WireError, match="wire version 2"):
                subscriber.receive(DEADLINE)


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
    assert subscribe.is_ipv6_only("tcp://relay.example:5560") == alone


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
