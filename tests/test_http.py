from __future__ import annotations

import gc
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from stream.errors import WireError
from stream.monitor import http
from stream.monitor.http import Page, PageServer
from tests.waiting import DEADLINE, wait_until

ADDRESS = "rtsp://relay:secret@10.0.0.7"


def broken() -> Page:
    raise RuntimeError(ADDRESS)


LARGE = 20_000_000
"""More than the kernel holds for a client that does not read."""

PAGES = {
    "/": lambda: Page("hello\n"),
    "/large": lambda: Page("x" * LARGE),
    "/broken": broken,
}


@pytest.fixture
def server() -> Iterator[PageServer]:
    with PageServer("127.0.0.1:0", PAGES) as server:
        yield server


def connected(server: PageServer) -> socket.socket:
    host, _, port = server.address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=10)


def requested(server: PageServer, path: str, method: str = "GET") -> tuple[HTTPResponse, str]:
    connection = HTTPConnection(server.address, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response, response.read().decode()
    finally:
        connection.close()


def answered(server: PageServer, request: bytes) -> bytes:
    with connected(server) as client:
        with suppress(ConnectionError):
            client.sendall(request)
        return received(client)


def received(client: socket.socket) -> bytes:
    """All that comes until the connection ends, well or badly."""
    answer = bytearray()
    with suppress(ConnectionResetError):
        while data := client.recv(1_000_000):
            answer += data
    return bytes(answer)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_path_answers_with_its_page(server: PageServer) -> None:
    response, text = requested(server, "/?now=1")
    assert (response.status, text) == (200, "hello\n")
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert len(requested(server, "/large")[1]) == LARGE


def test_head_tells_the_length_alone(server: PageServer) -> None:
    response, text = requested(server, "/", "HEAD")
    assert (response.status, response.headers["Content-Length"], text) == (200, "6", "")


def test_an_unknown_path_is_not_found_and_the_known_ones_are_named(server: PageServer) -> None:
    response, text = requested(server, "/metric")
    assert (response.status, text) == (404, "/\n/large\n/broken\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get"])
def test_other_methods_are_refused(server: PageServer, method: str) -> None:
    assert requested(server, "/", method)[0].status == 501


def test_a_page_that_fails_says_nothing_of_why_and_the_log_the_kind_and_place_alone(
    server: PageServer, caplog: pytest.LogCaptureFixture
) -> None:
    response, text = requested(server, "/broken")
    assert (response.status, text) == (500, "internal error\n")
    assert "a page cannot be made: unexpected RuntimeError" in caplog.text
    assert "in broken" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b" 200 "),
        (b"GET / HTTP/1.0\r\n\r\n", b" 200 "),
        (b"POST /\r\n\r\n", b" 400 "),
        (b"GET / HTTP/1.x\r\n\r\n", b" 400 "),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b" 400 "),
        (b"GET http://[ HTTP/1.1\r\n\r\n", b" 404 "),
        (b"GET /\xff HTTP/1.1\r\n\r\n", b" 404 "),
        (b"GET / HTTP/2.0\r\n\r\n", b" 505 "),
        (b"\r\n\r\n", b""),
        (b"GET /" + b"x" * 8_000_000 + b" HTTP/1.1\r\n\r\n", b""),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100_000 + b"\r\n", b""),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_whatever_a_client_says_the_next_one_gets_its_page(server: PageServer, request_: bytes, status: bytes) -> None:
    assert status in answered(server, request_).split(b"\r\n")[0]
    assert requested(server, "/")[1] == "hello\n"


def test_clients_that_say_nothing_keep_nobody_out_and_the_oldest_of_them_goes(server: PageServer) -> None:
    before = threading.active_count()
    with ExitStack() as clients:
        silent = [clients.enter_context(connected(server)) for _ in range(http.CONNECTIONS)]
        wait_until(lambda: len(server._clients) == http.CONNECTIONS, "all clients inside")
        for _ in range(3):
            assert requested(server, "/")[1] == "hello\n"
        assert received(silent[0]) == b""
        silent[-1].sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert received(silent[-1]).endswith(b"hello\n")
        more = [clients.enter_context(connected(server)) for _ in range(3 * http.CONNECTIONS)]
        wait_until(lambda: threading.active_count() <= before + http.CONNECTIONS, "the end of the cut ones")
        more[-1].sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert received(more[-1]).endswith(b"hello\n")


def test_a_client_that_never_finishes_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECTION_SECONDS", 1.0)
    with PageServer("127.0.0.1:0", PAGES) as server:
        with connected(server) as mute:
            assert mute.recv(1) == b""
        with connected(server) as slow, suppress(ConnectionError):  # always says something, and never all
            end = time.monotonic() + DEADLINE
            while time.monotonic() < end:
                slow.sendall(b"GET / HTTP/1.1\r\nA")
                slow.settimeout(0.05)
                with suppress(TimeoutError):
                    assert not slow.recv(1_000)
                    break
            else:
                pytest.fail("it is still there")
        with ExitStack() as clients:  # one asks for much and reads nothing until it is too late
            greedy: list[socket.socket] = []

            def is_answered() -> bool:
                greedy.append(clients.enter_context(connected(server)))
                with suppress(ConnectionError):
                    greedy[-1].sendall(b"GET /large HTTP/1.1\r\n\r\n")
                    return greedy[-1].recv(1) == b"H"
                return False

            wait_until(is_answered, "the beginning of an answer")
            wait_until(lambda: not server._clients, "the cut")
            assert 0 < len(received(greedy[-1])) < LARGE


def test_clients_that_vanish_or_reset_leave_nothing_behind(
    server: PageServer, capsys: pytest.CaptureFixture[str]
) -> None:
    for request in (b"", b"GET ", b"GET /large HTTP/1.1\r\n\r\n"):
        for _ in range(20):
            client = connected(server)
            client.sendall(request)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
    wait_until(lambda: not server._clients, "the end of all connections")
    assert requested(server, "/")[1] == "hello\n"
    assert capsys.readouterr().err == ""


def test_a_time_without_file_descriptors_is_got_over_at_little_cost(server: PageServer) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    host, _, port = server.address.rpartition(":")
    with socket.socket() as client:
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        try:
            began = time.process_time()
            client.connect((host, int(port)))
            client.settimeout(1)
            with pytest.raises(TimeoutError):
                client.recv(1)
            assert time.process_time() - began < 0.5
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        client.settimeout(10)
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert received(client).endswith(b"hello\n")


def test_its_end_leaves_no_thread_and_no_socket_whatever_the_clients_do() -> None:
    gc.collect()
    files, threads = open_files(), threading.active_count()
    for _ in range(10):
        with ExitStack() as clients:
            with PageServer("127.0.0.1:0", PAGES) as server:
                waiting = [clients.enter_context(connected(server)) for _ in range(5)]
                waiting[0].sendall(b"GET /large HTTP/1.1\r\n\r\n")
                assert requested(server, "/")[1] == "hello\n"
                began = time.monotonic()
            assert time.monotonic() - began < http.CONNECTION_SECONDS / 2
            wait_until(lambda: threading.active_count() <= threads, "the end of all threads")
    gc.collect()
    wait_until(lambda: open_files() <= files, "the closing of all files")


def test_an_address_in_use_is_named() -> None:
    with PageServer("127.0.0.1:0", PAGES) as server:
        with pytest.raises(WireError, match=f"^cannot serve metrics at {server.address}: Address already in use$"):
            PageServer(server.address, PAGES)
        again = server.address
        assert requested(server, "/")[1] == "hello\n"
    with PageServer(again, PAGES) as server:  # free at once
        assert requested(server, "/")[1] == "hello\n"


@pytest.mark.parametrize("address", ["nowhere.invalid:9560", "203.0.113.1:9560"])
def test_an_address_that_cannot_be_is_named(address: str) -> None:
    with pytest.raises(WireError, match=f"^cannot serve metrics at {address}: ."):
        PageServer(address, PAGES)


@pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="this machine has no IPv6")  # noqa: PTH110
def test_an_ipv6_host_stands_in_brackets() -> None:
    with PageServer("[::1]:0", PAGES) as server:
        assert server.address.startswith("[::1]:")
        assert not server.address.endswith(":0")
        assert requested(server, "/")[1] == "hello\n"
