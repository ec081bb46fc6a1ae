"""`nightbridge replay` in a process of its own, with an engine that does what a test wants."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.clips import read_number
from tests.command import ROOT
from tests.waiting import wait_until

COMMAND = """
import os, threading, time, engines.runtime
from tests.doubling import DoublingEngine
from tools.app import main

class Engine(DoublingEngine):
    def _finish(self, slot):
        time.sleep(float(os.environ["SECONDS"]))
        super()._finish(slot)

permits = threading.Semaphore(int(os.environ["PICTURES"]))
engines.runtime.open_engine = lambda *_: Engine(permits)
main()
"""
"""The command with an engine that takes so many seconds for a picture, and gives so many, then none any more."""

MANY = 1_000_000


class Replay:
    """A running command; what it says is in a file."""

    def __init__(self, folder: Path, *words: str | Path, pictures: int, seconds: float) -> None:
        self._log = folder / "log"
        own = {"XDG_STATE_HOME": str(folder / "state"), "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, "replay", *map(str, words)],
                cwd=folder,
                env=os.environ | own | {"PICTURES": str(pictures), "SECONDS": str(seconds)},
                stdout=log,
                stderr=log,
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    def waits_for(self, what: Callable[[], object], name: str) -> None:
        wait_until(lambda: what() or self.process.poll() is not None, name)
        assert what(), self.said

    def endpoint(self) -> str:
        self.waits_for(lambda: " at tcp://" in self.said, "the publisher")
        (found,) = re.findall(r" at (tcp://\S+)", self.said)
        return str(found)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def code(self) -> int:
        return self.process.wait(30)


@contextmanager
def replay(folder: Path, *words: str | Path, pictures: int = MANY, seconds: float = 0) -> Iterator[Replay]:
    running = Replay(folder, *words, pictures=pictures, seconds=seconds)
    try:
        yield running
    finally:
        running.kill()


def finished(folder: Path, *words: str | Path, pictures: int = MANY) -> Replay:
    with replay(folder, *words, pictures=pictures) as running:
        running.code()
    return running


def result(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "done.json").read_text()))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def numbers(path: Path) -> list[int]:
    """Of all pictures, which are half as high as wide."""
    with av.open(path) as container:
        return [read_number(frame.to_ndarray()[: frame.height].astype(np.uint8)) for frame in container.decode(video=0)]


def packets(path: Path, kind: str) -> list[tuple[Fraction, bytes]]:
    """Time, counted from the first picture, and bytes of everything of one type."""
    with av.open(path) as container:
        first = min(packet.pts * packet.time_base for packet in container.demux(video=0) if packet.size)
    with av.open(path) as container:
        streams = [stream for stream in container.streams if stream.type == kind]
        return [(p.pts * p.time_base - first, bytes(p)) for p in container.demux(streams) if p.size]
