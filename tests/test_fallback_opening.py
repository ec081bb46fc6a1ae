"""The opening and closing of several engines as one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from engines import fallback
from engines.door import Door
from engines.errors import EngineError, EngineMismatch, EngineMissing
from engines.fallback import FallbackEngine
from tests.fake_engine import Fake, await_takeover, picture, several
from tests.waiting import DEADLINE, wait_until


def test_an_engine_that_is_missing_is_told_and_one_that_cannot_be_opened_has_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def missing() -> Door:
        raise EngineMissing("no such library")

    def dead() -> Door:
        raise RuntimeError("CUDA error 999")

    last, third = Fake("last"), Fake("third")
    openers: dict[str, Callable[[], Door]] = {"first": missing, "second": dead, "third": lambda: third}
    with caplog.at_level(logging.INFO), FallbackEngine(last, openers) as engine:
        await_takeover(engine, third, (32, 32))
        picture(engine)
        assert engine.failures == {"first": 0, "second": 1, "third": 0, "last": 0}
        assert engine.reason == "second failed: CUDA error 999"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "engine: first cannot be used: no such library"),
        ("ERROR", "engine: falling back to last: second failed: CUDA error 999"),
        ("INFO", "engine: third uint8 on test, weights none takes over 32x32 from last"),
    ]
    assert sum(third.batches) == 1


def test_the_last_engine_is_never_given_up() -> None:
    last = Fake("last")
    with several(last) as engine:
        last.broken = "finish"
        for _ in range(2):
            with pytest.raises(EngineError, match="no finish on purpose"):
                picture(engine)
        last.broken = None
        picture(engine)
        assert engine.failures == {"last": 0}
        assert engine.reason is None
        with pytest.raises(EngineMismatch, match="8x8"):
            engine.prepare(8, 8)


def test_the_end_leaves_no_thread_and_closes_all() -> None:
    last, better = Fake("last"), Fake("better")
    before = threading.active_count()
    with several(last, better, ready=(32, 32)) as engine:
        slot = engine.acquire(32, 32)
    wait_until(lambda: threading.active_count() <= before, "the end of all threads")
    assert last.closed.is_set()
    assert better.closed.is_set()
    slot.release()
    for use in (lambda: engine.acquire(32, 32), lambda: engine.submit([slot]), slot.wait, engine.new_memory):
        with pytest.raises(EngineError, match="closed"):
            use()


def test_the_end_does_not_wait_for_ever_for_an_engine_that_is_being_made_ready(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fallback, "EXIT_SECONDS", 0.05)
    last, better = Fake("last"), Fake("better")
    better.gate.clear()
    with FallbackEngine(last, {"better": lambda: better}) as engine:
        engine.prepare(32, 32)
        assert better.making.wait(DEADLINE)
        picture(engine)
    assert last.closed.is_set()
    assert not better.closed.is_set()
    assert [record.getMessage() for record in caplog.records] == [
        "engine: thread nightbridge-engine did not stop within 0.05 s and was abandoned"
    ]
    better.gate.set()
    assert better.closed.wait(DEADLINE)
    engine._readying.join(DEADLINE)
    assert not engine._readying.is_alive()


class Unwilling(Fake):
    """Fails as soon as it is told how much it may keep."""

    def set_limits(self, slots: int, sizes: int) -> None:
        raise EngineError(f"no room for {slots} of {sizes} on purpose")


def test_an_engine_that_fails_at_once_leaves_its_place_to_the_next() -> None:
    first, second = Unwilling("tensorrt"), Fake("torch")
    engine = FallbackEngine(Fake("openvino"), {"tensorrt": lambda: first, "torch": lambda: second})
    engine.set_limits(4, 4)
    with engine:
        await_takeover(engine, second, (32, 32))
        assert first.closed.is_set()
        assert engine.failures == {"tensorrt": 1, "torch": 0, "openvino": 0}
