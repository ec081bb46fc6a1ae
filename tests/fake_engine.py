"""An engine that does what a test wants, several engines as one, and a relay on them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines import fallback
from engines.colour import Colour
from engines.door import Door, Slot
from engines.errors import EngineError
from engines.fallback import FallbackEngine
from stream.metrics import FeedFigures
from stream.monitor.health import Health
from stream.publish import Publisher
from stream.relay import Relay
from tests.clips import read_number
from tests.doubling import DoublingEngine
from tests.relaying import decoded, luma, recording, settings, watched
from tests.waiting import DEADLINE, wait_until

SIZE = (160, 120)
"""Of the clips."""


class Fake(DoublingEngine):
    """Becomes ready for a size when `gate` is open, and fails where a test wants it to."""

    def __init__(self, runtime: str, pace: threading.Semaphore | None = None) -> None:
        super().__init__(pace)
        self.info = replace(self.info, runtime=runtime)
        self.gate = threading.Event()
        self.gate.set()
        self.making = threading.Event()
        self.closed = threading.Event()
        self.broken: str | None = None
        """`make`, `start` or `finish`: what fails from now on."""
        self.numbers: list[float] = []
        """What each picture's memory held, and the share that is kept."""
        self._memory_size = 1

    def _make(self, width: int, height: int) -> Slot:
        self.making.set()
        self.gate.wait()
        self._fail("make")
        return super()._make(width, height)

    def _start(self, slots: Sequence[Slot]) -> None:
        self._fail("start")
        super()._start(slots)

    def _finish(self, slot: Slot) -> None:
        super()._finish(slot)
        self._fail("finish")

    def _close(self) -> None:
        self.closed.set()

    def _fail(self, step: str) -> None:
        if self.broken == step:
            raise EngineError(f"no {step} on purpose")


@contextmanager
def several(last: Door, *better: Fake, ready: tuple[int, int] | None = None) -> Iterator[FallbackEngine]:
    """The engines as one, open; the first is ready for that size."""
    with FallbackEngine(last, {engine.info.runtime: lambda engine=engine: engine for engine in better}) as engine:  # type: ignore[misc]
        if ready is not None:
            await_takeover(engine, better[0], ready)
        try:
            yield engine
        finally:
            for each in better:
                each.gate.set()


def await_takeover(engine: FallbackEngine, taker: Door, size: tuple[int, int]) -> None:
    engine.prepare(*size)
    wait_until(lambda: engine.info == taker.info and taker.is_ready(*size), "the change")


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage() for record in caplog.records if record.name == fallback.__name__ and record.levelno >= 40
    ]


def picture(engine: Door, side: int = 32, value: int = 7) -> None:
    """One picture that is doubled as it should be."""
    y, uv = np.full((side, side), value, np.uint8), np.full((2, side // 2, side // 2), value, np.uint8)
    made = engine.enhance(y, uv, Colour())
    assert made[0].shape == (2 * side, 2 * side)
    assert (made[0] == value).all()
    assert (made[1] == value).all()


@contextmanager
def relayed(engine: Door, clip: Path) -> Iterator[tuple[Relay, Health, list[int]]]:
    """A relay of one recording; after the block the numbers of its pictures are there, as a viewer received them."""
    wanted, numbers = settings(tape=recording(clip)), list[int]()
    with Publisher(wanted.relay, "run") as publisher, watched(publisher, "tape") as messages:
        with Relay(wanted, engine, publisher) as relay, Health("127.0.0.1:0", relay) as health:
            yield relay, health, numbers
            assert relay.wait(DEADLINE)
        assert relay.failure is None
    numbers += [read_number(luma(frame)) for frame in decoded(messages)]


def figures(relay: Relay) -> FeedFigures:
    return relay.feeds["tape"].figures()


def counted(engine: Door, *slots: Slot) -> None:
    memory = engine.new_memory()
    for slot in slots:
        slot.memory, slot.keep = memory, 0.9
        engine.submit([slot])
