"""A GPU that hangs: nobody waits for ever, the next engine takes over, and nothing of it is used before it lets go."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines import fallback, watch
from engines.door import Slot
from engines.errors import EngineError
from engines.fallback import FallbackEngine
from engines.watch import PATIENCE_LOOKS, WatchedEngine
from tests.clips import make_clip
from tests.fake_engine import SIZE, Fake, await_takeover, figures, picture, relayed, several
from tests.waiting import DEADLINE, wait_until


class Hanging(Fake):
    """Brings no picture while it hangs."""

    def __init__(self, runtime: str) -> None:
        super().__init__(runtime)
        self.goes_on = threading.Event()
        self.goes_on.set()

    def _finish(self, slot: Slot) -> None:
        self.goes_on.wait()
        super()._finish(slot)


@pytest.fixture
def better() -> Iterator[Hanging]:
    engine = Hanging("better")
    yield engine
    engine.goes_on.set()
    engine.gate.set()


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.01)


class Looks(threading.Event):
    """Whoever waits for it has looked without success as soon as they do; at last the engine goes on."""

    def __init__(self, engine: Hanging, last: int) -> None:
        super().__init__()
        self._engine, self._last = engine, last
        self.count = 0

    def wait(self, timeout: float | None = None) -> bool:
        del timeout
        self.count += 1
        if self.count < self._last:
            return False
        self._engine.goes_on.set()
        return super().wait(DEADLINE)


def submitted(engine: WatchedEngine, looks: Looks) -> Slot:
    slot = engine.acquire(32, 32)
    engine.submit([slot])
    engine._watched[id(slot)].done = looks
    return slot


def test_a_picture_is_waited_for_as_often_as_is_said_and_no_other_one_after_it(better: Hanging) -> None:
    with WatchedEngine(better) as engine:
        better.goes_on.clear()
        first, second = (Looks(better, 10 * PATIENCE_LOOKS) for _ in range(2))
        for looks in (first, second):
            with pytest.raises(EngineError, match="no picture within 10 s"):
                submitted(engine, looks).wait()
        assert (first.count, second.count) == (PATIENCE_LOOKS, 0)
        better.goes_on.set()


def test_a_picture_that_comes_late_is_no_failure(better: Hanging) -> None:
    with WatchedEngine(better) as engine:
        better.goes_on.clear()
        slot = submitted(engine, Looks(better, PATIENCE_LOOKS))
        slot.y[:] = 7
        slot.wait()
        assert (slot.y_out == 7).all()
        slot.release()
        picture(engine)


@pytest.mark.parametrize("by", ["prepare", "acquire"])
def test_while_a_size_is_being_prepared_pictures_take_as_long_as_they_like(better: Hanging, by: str) -> None:
    with WatchedEngine(better) as engine:
        better.goes_on.clear()
        looks = Looks(better, 10 * PATIENCE_LOOKS)
        slot = submitted(engine, looks)
        better.gate.clear()
        better.making.clear()
        preparing = threading.Thread(target=getattr(engine, by), args=(64, 64))
        preparing.start()
        assert better.making.wait(DEADLINE)
        slot.wait()
        assert looks.count == 10 * PATIENCE_LOOKS
        better.gate.set()
        preparing.join()
        slot.release()


def test_a_gpu_that_hangs_while_a_size_is_being_prepared_is_given_up_too(
    better: Hanging, hurry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LONGEST_PREPARING", 0.3)
    with WatchedEngine(better) as engine:
        better.goes_on.clear()
        slot = engine.acquire(32, 32)
        engine.submit([slot])
        better.gate.clear()
        better.making.clear()
        began = time.monotonic()
        preparing = threading.Thread(target=engine.prepare, args=(64, 64))
        preparing.start()
        assert better.making.wait(DEADLINE)
        with pytest.raises(EngineError, match="no picture within"):
            slot.wait()
        assert time.monotonic() - began > 0.3
        better.gate.set()
        better.goes_on.set()
        preparing.join()
        slot.release()


def test_a_slot_of_an_engine_that_hangs_is_nobodys_until_its_picture_is_done(better: Hanging, hurry: None) -> None:
    with WatchedEngine(better) as engine:
        engine.set_limits(1, 1)
        better.goes_on.clear()
        slot = engine.acquire(32, 32)
        engine.submit([slot])
        slot.release()
        with pytest.raises(TimeoutError):
            engine.acquire(32, 32, timeout=0.01)
        better.goes_on.set()
        assert engine.acquire(32, 32, timeout=DEADLINE) is slot


def test_an_engine_that_hangs_is_given_up_and_the_next_one_is_opened_when_it_lets_go(
    better: Hanging, hurry: None
) -> None:
    last, second = Fake("last"), Fake("second")
    before = threading.active_count()
    with several(last, better, second, ready=(32, 32)) as engine:
        better.goes_on.clear()
        slots = [engine.acquire(32, 32) for _ in range(2)]
        engine.submit(slots)
        for slot in slots:
            with pytest.raises(EngineError, match="no picture within"):
                slot.wait()
            slot.release()
        assert engine.failures == {"better": 1, "second": 0, "last": 0}
        assert engine.reason == "better failed: no picture within 0.1 s"
        picture(engine)
        assert sum(last.batches) == 1
        assert not better.closed.is_set()
        better.goes_on.set()
        await_takeover(engine, second, (32, 32))
        assert better.closed.is_set()
    wait_until(lambda: threading.active_count() <= before, "the end of all threads")


def test_a_relay_loses_what_was_in_an_engine_that_hangs_and_goes_on(
    tmp_path: Path, better: Hanging, hurry: None
) -> None:
    last = Fake("last")
    with several(last, better, ready=SIZE) as engine:
        better.goes_on.clear()
        with relayed(engine, make_clip(tmp_path / "clip.mp4", pictures=40)) as (relay, _, numbers):
            assert relay.wait(DEADLINE)
            counted = figures(relay)
        better.goes_on.set()
    assert 1 <= counted.lost["engine"] <= 2
    assert numbers == list(range(counted.lost["engine"], 40))


def test_the_end_does_not_wait_for_ever_for_an_engine_that_hangs(
    better: Hanging, hurry: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fallback, "EXIT_SECONDS", 0.05)
    last = Fake("last")
    with FallbackEngine(last, {"better": lambda: better}) as engine:
        await_takeover(engine, better, (32, 32))
        better.goes_on.clear()
        with pytest.raises(EngineError, match="no picture within"):
            picture(engine)
    assert last.closed.is_set()
    assert not better.closed.is_set()
    assert "nightbridge-engine did not stop within" in caplog.text
    better.goes_on.set()
    assert better.closed.wait(DEADLINE)
    wait_until(lambda: not engine._readying.is_alive(), "the end of the thread")
