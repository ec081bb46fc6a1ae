from __future__ import annotations

import http.server
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.clips import make_clip
from tests.impostors import (
    Impostor,
    hangs_up,
)
from tests.reading import feed, read, why_lost
from tests.rtsp_server import make_certificate
from tests.web_server import Answer, WebServer, impatient, send

PASSWORD = "p@ss:w/o#r?d%"


def over_tls(server: WebServer, certificate: Path) -> WebServer:
    """The same, with a PEM file of a key and a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server


def test_a_password_opens_a_stream_over_http(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=10).read_bytes()
    expected = "Basic " + b64encode(f"watch:{PASSWORD}".encode()).decode()

    def guarded(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.headers.get("Authorization") != expected:
            send(handler, 401, WWW_Authenticate='Basic realm="camera"')
            return
        send(handler, 200, Content_Length=str(len(clip)))
        handler.wfile.write(clip)

    password = tmp_path / "password"
    password.write_text(PASSWORD)
    with WebServer(tmp_path, {"/cam": guarded}) as server:
        assert why_lost(feed(server.url("/cam"))).reason == "unauthorised"
        assert len(read(feed(server.url("/cam"), username="watch", password_file=password), 5)) == 5


@pytest.mark.parametrize(
    ("status", "reason"), [(400, "refused"), (403, "unauthorised"), (404, "not found"), (500, "refused")]
)
def test_what_a_web_server_answers_is_told(tmp_path: Path, status: int, reason: str) -> None:
    with WebServer(tmp_path, {"/cam": lambda handler: send(handler, status)}) as server:
        assert why_lost(feed(server.url("/cam"))).reason == reason


def test_a_web_page_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html>" + "hello " * 10_000)
    with WebServer(tmp_path, {}) as server:
        lost = why_lost(feed(server.url("/page.html")))
    assert (lost.reason, str(lost)) == ("no video", f"{server.url('/page.html')}: its data is in no known format")


def test_a_stream_is_read_over_tls_and_a_server_without_it_is_told(tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.ts", pictures=10)
    with WebServer(tmp_path, {}) as plain:
        lost = why_lost(feed(plain.url("/clip.ts", "https")))
        assert (lost.reason, lost.args[0].rpartition(": ")[2]) == ("refused", "the TLS connection fails")
    with over_tls(WebServer(tmp_path, {}), make_certificate(tmp_path)) as server:
        assert len(read(feed(server.url("/clip.ts", "https")), 5)) == 5


def test_a_server_must_be_vouched_for_where_that_is_asked(tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.ts", pictures=10)
    ours, others = tmp_path / "ours", tmp_path / "others"
    for folder in (ours, others):
        folder.mkdir()
        make_certificate(folder)
    with over_tls(WebServer(tmp_path, {}), ours / "server.pem") as server:
        url = server.url("/clip.ts", "https")
        assert len(read(feed(url, tls_ca_file=ours / "certificate.pem"), 5)) == 5
        lost = why_lost(feed(url, tls_ca_file=others / "certificate.pem"))
    assert (lost.reason, str(lost)) == ("refused", f"{url}: its certificate is not trusted: self-signed certificate")


def test_no_way_leads_round_the_check_of_certificates(tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.ts", pictures=50)
    certificate = make_certificate(tmp_path)
    with WebServer(tmp_path, {}) as plain:
        elsewhere = plain.url("/clip.ts")
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{elsewhere}\n#EXT-X-ENDLIST\n"
        (tmp_path / "list.m3u8").write_text(playlist)
        answers: dict[str, Answer] = {"/moved": lambda handler: send(handler, 302, Location=elsewhere)}
        with over_tls(WebServer(tmp_path, answers), certificate) as server:
            for path in ("/list.m3u8", "/moved"):
                url = server.url(path, "https")
                assert len(read(feed(url), 5)) == 5
                lost = why_lost(feed(url, tls_ca_file=tmp_path / "certificate.pem"))
                assert (lost.reason, str(lost).partition(": ")[2]) == (
                    "refused",
                    "tls_ca_file cannot be enforced: it is a playlist, or redirects to an address without TLS",
                )


@contextmanager
def forbidding_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the proxy that `http_proxy` names is asked for, in first lines; it answers that it forbids it."""
    asked = list[str]()

    def forbid(connection: socket.socket, _: threading.Event) -> None:
        with connection.makefile("rb") as lines:
            asked.append(next(lines).decode().strip())
            for line in lines:
                if line == b"\r\n":
                    break
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        connection.shutdown(socket.SHUT_RDWR)

    with Impostor(forbid) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        yield asked


@pytest.mark.parametrize(
    ("scheme", "checked", "line"),
    [
        ("http", False, "GET http://127.0.0.1:{port}/x HTTP/1.1"),
        ("https", False, "CONNECT 127.0.0.1:{port} HTTP/1.1"),
        ("https", True, "CONNECT 127.0.0.1:{port} HTTP/1.1"),
        ("rtsps", False, "CONNECT 127.0.0.1:{port} HTTP/1.1"),
    ],
)
def test_the_proxy_of_the_environment_is_asked_for_the_camera(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, checked: bool, line: str
) -> None:
    ca_file = make_certificate(tmp_path).with_name("certificate.pem") if checked else None
    with Impostor(hangs_up) as camera, forbidding_proxy(monkeypatch) as asked:
        settings = impatient(f"{scheme}://127.0.0.1:{camera.port}/x", tls_ca_file=ca_file)
        lost = why_lost(settings)
        assert (camera.accepted, asked[0]) == (0, line.format(port=camera.port))
        assert (lost.reason, str(lost).rpartition(": ")[2]) == ("unauthorised", "the server denies access")
        asked.clear()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        why_lost(settings)
        assert camera.accepted > 0
        assert asked == []


@pytest.mark.parametrize(
    "target", ["file:///{}/clip.ts", "udp://127.0.0.1:9", "concat:{}/clip.ts", "httpproxy://127.0.0.1:9/host:9"]
)
def test_a_redirection_leads_to_the_web_only(tmp_path: Path, target: str) -> None:
    make_clip(tmp_path / "clip.ts", pictures=10)
    location = target.format(tmp_path)
    with WebServer(tmp_path, {"/cam": lambda handler: send(handler, 302, Location=location)}) as server:
        lost = why_lost(impatient(server.url("/cam")))
    assert lost.reason in ("refused", "lost", "no video", "not found")
