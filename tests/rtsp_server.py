"""A real RTSP server for tests: GStreamer's, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import pytest

SYSTEM_PYTHON = "/usr/bin/python3"
"""GStreamer's bindings come with the system, for the system's Python."""
SCRIPT = Path(__file__).with_name("gst_rtsp.py")

NEEDED = ("x264enc", "x265enc", "jpegenc", "vp8enc", "alawenc", "matroskademux", "h264parse", "rtph264pay")

CAMERA = "videotestsrc is-live=true ! video/x-raw,format=I420,width={width},height={height},framerate={rate}/1 ! "
X264 = "x264enc tune=zerolatency sliced-threads=false threads=1 speed-preset=superfast bitrate=300 key-int-max={key}"
X265 = "x265enc tune=zerolatency speed-preset=ultrafast key-int-max={key} option-string=log-level=none:pools=1"
CODECS = {
    "h264": X264 + " ! h264parse ! rtph264pay config-interval=-1 pt=96",
    "hevc": X265 + " ! h265parse ! rtph265pay config-interval=-1 pt=96",
    "mjpeg": "jpegenc ! rtpjpegpay",
    "vp8": "vp8enc deadline=1 keyframe-max-dist={key} ! rtpvp8pay pt=96",
}
SOUND = "audiotestsrc is-live=true ! audio/x-raw,rate=8000,channels=1 ! alawenc ! rtppcmapay pt=8"


def camera(
    codec: str = "h264", size: tuple[int, int] = (320, 240), rate: int = 25, key_interval: int = 25, sound: bool = False
) -> str:
    """The launch line of an endless live picture, with `sound` as a second stream."""
    values = {"width": size[0], "height": size[1], "rate": rate, "key": key_interval}
    video = (CAMERA + CODECS[codec]).format(**values) + " name=pay0"
    return f"( {video} {SOUND} name=pay1 )" if sound else f"( {video} )"


def microphone() -> str:
    """The launch line of sound without a picture."""
    return f"( {SOUND} name=pay0 )"


def recording(clip: Path) -> str:
    """The launch line of an H.264 clip in Matroska, which is played once."""
    return f"( filesrc location={clip} ! matroskademux ! h264parse ! rtph264pay config-interval=-1 pt=96 name=pay0 )"


@cache
def missing() -> str | None:
    """Why there can be no server here; None where there can."""
    elements = ",".join(repr(name) for name in NEEDED)
    check = (
        "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst, GstRtspServer; "
        f"Gst.init(None); print(*[name for name in ({elements},) if not Gst.ElementFactory.find(name)])"
    )
    if not shutil.which(SYSTEM_PYTHON):
        return f"{SYSTEM_PYTHON} is not here"
    asked = subprocess.run([SYSTEM_PYTHON, "-c", check], capture_output=True, text=True, check=False, timeout=60)
    if asked.returncode:
        return "GStreamer's RTSP server is not installed: gir1.2-gst-rtsp-server-1.0, python3-gi"
    return f"GStreamer has no {asked.stdout.strip()}" if asked.stdout.strip() else None


def require_rtsp_server() -> None:
    """Skip the test where there can be no server; with NIGHTBRIDGE_REQUIRE_RTSP=1, fail."""
    reason = missing()
    if reason and os.environ.get("NIGHTBRIDGE_REQUIRE_RTSP") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


class RtspServer:
    """Serves launch lines by path at 127.0.0.1, from entering on; a context manager that can be entered again.

    The port is a free one, and the same each time. Leaving kills the server: its clients hear nothing of it.
    """

    def __init__(
        self,
        mounts: Mapping[str, str],
        *,
        users: Mapping[str, str] | None = None,
        scheme: Literal["basic", "digest"] = "digest",
        transport: Literal["both", "udp", "tcp"] = "both",
        certificate: Path | None = None,
        port: int = 0,
    ) -> None:
        """`users` are passwords by name; None lets everybody in. `certificate` is a PEM file with its key."""
        require_rtsp_server()
        self.port = port
        self._wanted = {
            "mounts": dict(mounts),
            "users": dict(users or {}),
            "scheme": scheme,
            "transport": transport,
            "certificate": str(certificate) if certificate else None,
        }
        self._scheme = "rtsps" if certificate else "rtsp"
        self._process: subprocess.Popen[str] | None = None

    def url(self, path: str) -> str:
        """The address of a mount, without credentials."""
        return f"{self._scheme}://127.0.0.1:{self.port}{path}"

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(self._wanted | {"port": self.port}) + "\n")
        self._process.stdin.flush()
        word, _, port = self._process.stdout.readline().partition(" ")
        if word != "port":
            self.kill()
            raise RuntimeError("the RTSP server does not start")
        self.port = int(port)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def freeze(self) -> None:
        """Let nothing move in the server from now on, as where a camera hangs."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """End the server at once; clients are told nothing but that their connections are closed."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process = None


def make_certificate(folder: Path, host: str = "IP:127.0.0.1") -> Path:
    """A PEM file with a fresh key and a certificate, made out to `host`, that nobody vouches for.

    The certificate alone is beside it, as `certificate.pem`. Skips without openssl.
    """
    if not shutil.which("openssl"):
        pytest.skip("openssl is not here")
    pem = folder / "server.pem"
    made = folder / "certificate.pem"
    request = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=camera"]
    request += ["-addext", f"subjectAltName={host}"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", str(pem), "-out", str(made)]
    subprocess.run([*request, *key], check=True, capture_output=True)
    pem.write_text(pem.read_text() + made.read_text())
    return pem


class UdpSwallower:
    """A way to an RTSP server on which UDP gets lost, as behind many routers. A context manager."""

    def __init__(self, server_port: int) -> None:
        self._server = ("127.0.0.1", server_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open = [self._listener]
        threading.Thread(target=self._accept, name="udp-swallower", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._open += [client, server]
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=ends, name="udp-swallower", daemon=True).start()

    @staticmethod
    def _pass_on(giver: socket.socket, taker: socket.socket) -> None:
        with suppress(OSError):
            while data := giver.recv(65_536):
                taker.sendall(re.sub(rb"client_port=\d+-\d+", b"client_port=9-10", data))
        with suppress(OSError):
            taker.shutdown(socket.SHUT_RDWR)
