"""A feed at its own pace, and viewers in processes of their own, which can be stopped and killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from typing import Self

from stream.publish import Publisher
from stream.wire.messages import Header
from tests.waiting import CATCH_UP

VIEWER = """
import sys, time
from stream.subscribe import Subscriber
with Subscriber(sys.argv[1], "pier") as subscriber:
    for message in subscriber:
        age = (time.time_ns() - message.header.published_ns) / 1e9
        print(message.header.seq, int(message.header.key), age, time.monotonic(), flush=True)
"""


@dataclass
class Seen:
    """One picture that a viewer in another process was given."""

    seq: int
    key: bool
    age: float
    """Seconds since it was published."""
    at: float
    """Of the monotonic clock, which all processes share."""


class Viewer:
    """A viewer in a process of its own."""

    def __init__(self, endpoint: str) -> None:
        self.seen: list[Seen] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", VIEWER, endpoint], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
        )
        self._reader = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def holes(self) -> int:
        return sum(after.seq != before.seq + 1 for before, after in pairwise(self.seen))

    def since(self, moment: float) -> list[Seen]:
        return [each for each in self.seen if each.at >= moment]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            seq, key, age, at = line.split()
            self.seen.append(Seen(int(seq), key == "1", float(age), float(at)))


class Live:
    """A feed of `rate` messages a second, with key frames only at the first message and where one is asked for."""

    def __init__(self, publisher: Publisher, size: int = 4_000, rate: float = 25.0) -> None:
        self.keys: list[float] = []
        """When there were key frames, on the monotonic clock: `take_join` had just answered."""
        self.asked: list[float] = []
        """For each of them, when `take_join` was called."""
        self._publisher, self._payload, self._rate = publisher, bytes(size), rate
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _show(self) -> None:
        begun = time.monotonic()
        for number in count():
            if self._ended.wait(max(0.0, begun + number / self._rate - time.monotonic())):
                return
            begun = max(begun, time.monotonic() - CATCH_UP - number / self._rate)
            asking = time.monotonic()
            key = self._publisher.take_join("pier") or number == 0
            before = time.monotonic()
            self._publisher.publish("pier", "video", Header(key=key), self._payload)
            if key:
                self.keys.append(before)
                self.asked.append(asking)


def stall(viewer: Viewer, seconds: float) -> float:
    """Stop the viewer's process for so long; tells when it went on."""
    viewer.process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    moment = time.monotonic()
    viewer.process.send_signal(signal.SIGCONT)
    return moment
