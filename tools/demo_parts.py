"""The demo's processes: a camera and a relay, which the caller watches and stops."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from stream.errors import StreamError

ROOT = Path(__file__).parents[1]
"""Where `python -m tools` finds this program, installed or not."""
SETTINGS = """
[relay]
endpoint = "{endpoint}"
high_water_mark = 100  # a source begins with a burst of pictures
[feeds.{feed}]
url = "{url}"
publish_source = true
"""
OVERRIDES = ("NIGHTBRIDGE__RELAY__", "NIGHTBRIDGE__DEFAULTS__", "NIGHTBRIDGE__FEEDS__")
"""Prefixes of environment variables that are meant for another relay; those of the engine apply here, too."""

STOP_SECONDS = 5.0
"""The longest that a process may take to stop when asked to."""
LAST_LINES = 6
"""Of a process's output, shown if it fails."""


def without_overrides() -> dict[str, str]:
    """The environment of a relay process that belongs to this command: without `OVERRIDES`."""
    return {name: text for name, text in os.environ.items() if not name.upper().startswith(OVERRIDES)}


class CommandProcess:
    """`python -m tools WORDS` in a process of its own, which lives as long as the `with` block."""

    def __init__(self, name: str, folder: Path, *words: str) -> None:
        """Its output goes into a file in `folder`."""
        self._name = name
        self._said = folder / f"{name}.log"
        self._words = words

    def __enter__(self) -> Self:
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(  # noqa: S603 - this program itself
                [sys.executable, "-m", "tools", *self._words],
                cwd=ROOT,
                env=without_overrides(),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def check(self) -> None:
        """Raise `StreamError`, with its last lines, if it has ended."""
        code = self._process.poll()
        if code is not None:
            raise StreamError(f"the {self._name} ended unexpectedly with exit code {code}{self.last_words()}")

    def last_words(self) -> str:
        """The last lines of its output, each after a line break and its name: the end of an error message."""
        lines = self._said.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        return "".join(f"\n  {self._name}: {line.removeprefix('nightbridge: ')}" for line in lines)


@contextmanager
def camera_and_relay(
    feed: str, clip: Path, bit_rate: int, seconds: float
) -> Iterator[tuple[str, list[CommandProcess]]]:
    """Run a night camera and a relay; yields the endpoint for viewers, and both processes, which are still starting.

    After `seconds` of video the camera ends by itself, even if nobody is left to stop it.
    """
    endpoint = f"tcp://127.0.0.1:{free_port(socket.SOCK_STREAM)}"
    url = f"udp://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
    play = ("simulate", str(clip), url, "--bit-rate", f"{bit_rate // 1000}k", "--loop", "--seconds", str(seconds))
    with TemporaryDirectory(prefix="nightbridge-demo-") as name:
        folder = Path(name)
        config = folder / "config.toml"
        config.write_text(SETTINGS.format(endpoint=endpoint, feed=feed, url=url), encoding="utf-8")
        with (
            CommandProcess("relay", folder, "run", str(config)) as relay,
            CommandProcess("camera", folder, *play) as camera,
        ):
            yield endpoint, [camera, relay]


def free_port(kind: socket.SocketKind) -> int:
    """A port of the loopback address that is free at the moment."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
