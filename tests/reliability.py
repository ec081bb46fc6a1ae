"""Cuts a relay's connection to a real RTSP server over and over, and watches what the process holds.

The long run of docs/reliability.md: `python -m tests.reliability 2000`. Its first tenth is not counted: what a process
fetches once is no leak. `python -m tests.reliability back 20` measures how soon a camera that was away is seen again.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from stream.feed import Feed
from stream.publish import Publisher
from stream.relay import Relay
from stream.settings import FeedSettings, RelaySettings, Settings
from stream.sources import backoff
from tests.doubling import DoublingEngine
from tests.rtsp_server import RtspServer, camera
from tools.common.limits import bound_arenas

PATIENCE = 30.0
"""Seconds that a loss, or the first picture of a connection, may take on a busy machine."""


@dataclass(frozen=True)
class Held:
    """What the process holds at one moment."""

    memory: int
    """Resident, in bytes."""
    threads: int
    files: int
    """Open file descriptors, sockets included."""

    @classmethod
    def now(cls) -> Self:
        """After the garbage is collected (Linux)."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(
            memory=pages * os.sysconf("SC_PAGE_SIZE"),
            threads=sum(1 for _ in Path("/proc/self/task").iterdir()),
            files=sum(1 for _ in Path("/proc/self/fd").iterdir()),
        )


class Cable:
    """A TCP connection to a port of this machine that can be cut. A context manager; `port` is its near end."""

    def __init__(self, far: int) -> None:
        self._far = far
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self.cut()

    def cut(self) -> None:
        """End every connection at once, without a word."""
        while self._ends:
            end = self._ends.pop()
            with suppress(OSError):  # the other side was quicker
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._far))
            except OSError:
                return
            self._ends += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()


@dataclass(frozen=True)
class Outcome:
    """What came of many reconnects."""

    reconnects: int
    seconds: float
    first: Held
    """After the first tenth."""
    last: Held
    memory_slope: float
    """Bytes of resident memory for each reconnect, of the straight line through all that were counted."""
    unaccounted: int
    """Access units that are neither published nor dropped nor lost at the end."""


def cut_again_and_again(reconnects: int) -> Outcome:
    """Let a relay lose its camera so many times, each time after a picture has come through."""
    backoff.SHORTEST = backoff.LONGEST = 0.01
    settings = RelaySettings(endpoint="tcp://127.0.0.1:*")
    held: list[Held] = []
    with ExitStack() as stack:
        server = stack.enter_context(RtspServer({"/cam": camera(size=(160, 120), key_interval=2)}))
        cable = stack.enter_context(Cable(server.port))
        engine = stack.enter_context(DoublingEngine())
        publisher = stack.enter_context(Publisher(settings, "reliability"))
        feed = FeedSettings(url=f"rtsp://127.0.0.1:{cable.port}/cam", transport="tcp")
        began = time.monotonic()
        with Relay(Settings(relay=settings, feeds={"cam": feed}), engine, publisher) as relay:
            cam = relay.feeds["cam"]
            for number in range(reconnects):
                await_picture(cam)
                if number >= reconnects // 10 and number % 10 == 0:
                    held.append(Held.now())
                cable.cut()
                await_loss(cam, number + 1)
        figures = cam.figures()
    return Outcome(
        reconnects=sum(figures.reconnects.values()),
        seconds=time.monotonic() - began,
        first=held[0],
        last=held[-1],
        memory_slope=slope([each.memory for each in held]) / 10,
        unaccounted=figures.under_way,
    )


def come_back(times: int) -> list[float]:
    """Seconds from a camera's being back to the first picture that is published, each time after a first loss.

    The camera has a key frame every second; the relay pauses for 0.5 to 0.67 s after a first loss.
    """
    settings = RelaySettings(endpoint="tcp://127.0.0.1:*")
    server = RtspServer({"/cam": camera(size=(352, 288), key_interval=25)})
    seconds: list[float] = []
    with server:
        feed = FeedSettings(url=server.url("/cam"), transport="tcp")
    with (
        DoublingEngine() as engine,
        Publisher(settings, "reliability") as publisher,
        Relay(Settings(relay=settings, feeds={"cam": feed}), engine, publisher) as relay,
    ):
        cam = relay.feeds["cam"]
        for _ in range(times):
            cam.backoff = backoff.Backoff()
            with server:
                back = time.monotonic()
                await_picture(cam)
                seconds.append(time.monotonic() - back)
            await_loss(cam, sum(cam.figures().reconnects.values()) + 1)
    return seconds[1:]


def await_picture(feed: Feed) -> None:
    """Return when the present connection has given an access unit, and a picture has been published after that."""
    received = feed.figures().received
    _await(lambda: feed.figures().received > received, "an access unit", feed)
    published = feed.figures().published
    _await(lambda: feed.figures().published > published, "a picture", feed)


def await_loss(feed: Feed, losses: int) -> None:
    """Return when the feed has lost its source so often."""
    _await(lambda: sum(feed.figures().reconnects.values()) >= losses, f"loss {losses}", feed)


def _await(happened: Callable[[], bool], what: str, feed: Feed) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come: {feed.state}, {feed.reason}")
        time.sleep(0.005)


def slope(values: list[int]) -> float:
    """Of the straight line through equally spaced values that fits best."""
    middle = (len(values) - 1) / 2
    mean = sum(values) / len(values)
    above = sum((index - middle) * (value - mean) for index, value in enumerate(values))
    return above / sum((index - middle) ** 2 for index in range(len(values)))


if __name__ == "__main__":
    bound_arenas()  # as the relay does
    if sys.argv[1] == "back":
        json.dump(come_back(int(sys.argv[2])), sys.stdout)
    else:
        json.dump(asdict(cut_again_and_again(int(sys.argv[1]))), sys.stdout, indent=2)
    print()
