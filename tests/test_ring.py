"""What every engine does, whatever its runtime; see test_runtimes.py for what they compute."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from engines import ring
from engines.door import Door, Slot
from engines.errors import EngineError, EngineMismatch
from engines.ring import is_busy
from tests.doubling import DoublingEngine
from tests.waiting import wait_until


class Fragile(DoublingEngine):
    """Fails as a runtime's own library does."""

    broken = False

    def _make(self, width: int, height: int) -> Slot:
        if self.broken:
            raise MemoryError("no room")
        return super()._make(width, height)

    def _start(self, slots: Sequence[Slot]) -> None:
        if self.broken:
            raise RuntimeError(f"the device is gone, {len(slots)} pictures are lost")


class Remembering(DoublingEngine):
    """Knows which sizes were forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.forgotten: list[tuple[int, int]] = []

    def _forget(self, width: int, height: int) -> None:
        self.forgotten.append((width, height))


def use(engine: Door, *widths: int) -> None:
    for width in widths:
        engine.acquire(width, 32).release()


def test_of_many_sizes_the_one_that_was_not_used_for_the_longest_time_is_forgotten() -> None:
    with Remembering() as engine:  # four slots
        use(engine, 32, 34, 36, 38, 32)
        assert engine.forgotten == []
        use(engine, 40)
        assert engine.forgotten == [(34, 32)]
        use(engine, *range(100, 200, 2))
        assert len(engine.forgotten) == 51
        assert len(set(engine.forgotten)) == 51


def test_a_size_that_is_in_use_is_never_forgotten() -> None:
    with Remembering() as engine:
        held = engine.acquire(32, 32)
        use(engine, *range(100, 200, 2))
        assert (32, 32) not in engine.forgotten
        held.release()
        assert engine.acquire(32, 32) is held


def test_a_size_that_was_forgotten_is_made_again() -> None:
    with Remembering() as engine:
        first = engine.acquire(32, 32)
        first.release()
        use(engine, *range(100, 200, 2))
        assert engine.acquire(32, 32) is not first


class SlowToForget(DoublingEngine):
    """Tells in which order sizes are made and forgotten, which ends when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []
        self.forgetting, self.go_on = threading.Event(), threading.Event()

    def _make(self, width: int, height: int) -> Slot:
        self.told.append(f"made {width}x{height}")
        return super()._make(width, height)

    def _forget(self, width: int, height: int) -> None:
        self.forgetting.set()
        assert self.go_on.wait(10)
        self.told.append(f"forgotten {width}x{height}")


def test_a_size_that_is_being_forgotten_keeps_only_those_waiting_who_want_it_again() -> None:
    with SlowToForget() as engine:
        use(engine, 32, 34)
        held = engine.acquire(34, 32)
        shrinking = threading.Thread(target=engine.set_limits, args=(4, 1))
        shrinking.start()
        assert engine.forgetting.wait(10)
        engine.acquire(34, 32).release()
        again = threading.Thread(target=use, args=(engine, 32))
        again.start()
        wait_until(lambda: (32, 32) in engine._rings, "that it is asked for")
        engine.acquire(34, 32).release()
        assert "made 32x32" not in engine.told[1:]
        engine.go_on.set()
        for thread in (shrinking, again):
            thread.join(10)
            assert not thread.is_alive()
        held.release()
        assert [what for what in engine.told if "32x32" in what] == ["made 32x32", "forgotten 32x32", "made 32x32"]


def test_whoever_waits_for_a_slot_gets_it_although_others_wait_for_another_size() -> None:
    with DoublingEngine() as engine:
        small, large = ([engine.acquire(side, side) for _ in range(4)] for side in (32, 64))
        came: list[int] = []
        waiting = [
            threading.Thread(target=lambda side=side: came.append(engine.acquire(side, side).width), daemon=True)
            for side in (32, 64)
        ]
        for thread in waiting:
            thread.start()
        wait_until(lambda: len(engine._free._waiters) == 2, "two threads that wait")  # type: ignore[attr-defined]
        large[0].release()
        waiting[1].join(5)
        assert came == [64]
        small[0].release()
        waiting[0].join(5)
        assert came == [64, 32]


def test_what_a_runtime_raises_is_an_error_of_the_engine() -> None:
    with Fragile() as engine:
        slot = engine.acquire(32, 32)
        engine.broken = True
        with pytest.raises(EngineError, match="doubling failed: no room"):
            engine.acquire(64, 64)
        with pytest.raises(EngineError, match="doubling failed: the device is gone, 1 pictures"):
            engine.submit([slot])


def test_a_slot_that_could_not_be_made_does_not_count() -> None:
    with Fragile() as engine:
        engine.broken = True
        for _ in range(10):
            with pytest.raises(EngineError):
                engine.acquire(32, 32, timeout=1)
        engine.broken = False
        assert len([engine.acquire(32, 32, timeout=1) for _ in range(4)]) == 4


class Slow(DoublingEngine):
    """Takes its time for wide pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def _make(self, width: int, height: int) -> Slot:
        if width > 100:
            assert self.go_on.wait(10)
        return super()._make(width, height)


def test_a_size_that_takes_long_to_prepare_keeps_no_other_size_waiting() -> None:
    with Slow() as engine:
        wide = threading.Thread(target=engine.prepare, args=(200, 32))
        wide.start()
        engine.prepare(32, 32)
        engine.acquire(32, 32).release()
        assert wide.is_alive()
        engine.go_on.set()
        wide.join(10)
        assert not wide.is_alive()
        engine.acquire(200, 32).release()


def test_whoever_prepares_a_size_waits_until_it_is_ready() -> None:
    with Slow() as engine:
        first, second = (threading.Thread(target=engine.prepare, args=(200, 32)) for _ in range(2))
        first.start()
        second.start()
        second.join(0.2)
        assert second.is_alive()
        engine.go_on.set()
        for thread in (first, second):
            thread.join(10)
            assert not thread.is_alive()


class Hurried(DoublingEngine):
    """Whoever prepares is overtaken just before it asks for a slot."""

    def __init__(self) -> None:
        super().__init__()
        self.overtake = threading.Event()
        self.overtaken = threading.Event()

    def acquire(self, width: int, height: int, timeout: float | None = None) -> Slot:
        if threading.current_thread().name == "prepares":
            self.overtake.set()
            self.overtaken.wait(1)
        return super().acquire(width, height, timeout)

    def _make(self, width: int, height: int) -> Slot:
        self.overtaken.set()
        return super()._make(width, height)


def test_whoever_prepares_a_size_and_whoever_wants_its_only_slot_do_not_wait_for_each_other() -> None:
    with Hurried() as engine:
        engine.set_limits(1, 4)
        preparing = threading.Thread(target=engine.prepare, args=(32, 32), name="prepares", daemon=True)
        preparing.start()
        assert engine.overtake.wait(10)
        wanting = threading.Thread(target=lambda: engine.acquire(32, 32).release(), daemon=True)
        wanting.start()
        for thread in (wanting, preparing):
            thread.join(5)
            assert not thread.is_alive()


def test_fewer_slots_and_sizes_free_what_nobody_uses() -> None:
    with Remembering() as engine:  # four slots
        for slot in [engine.acquire(32, 32) for _ in range(4)]:
            slot.release()
        use(engine, 34, 36)
        engine.set_limits(1, 2)
        assert engine.forgotten == [(32, 32)]
        held = engine.acquire(34, 32)
        engine.set_limits(2, 1)
        assert engine.forgotten == [(32, 32), (36, 32)]
        held.release()


def test_fewer_slots_are_fewer_pictures_at_once_also_when_more_were_under_way() -> None:
    with DoublingEngine() as engine:
        held = [engine.acquire(32, 32) for _ in range(4)]
        engine.set_limits(1, 4)
        for slot in held:
            slot.release()
        slot = engine.acquire(32, 32)
        with pytest.raises(TimeoutError):
            engine.acquire(32, 32, timeout=0.1)
        slot.release()
        assert engine.acquire(32, 32, timeout=1) is slot


def test_a_size_that_is_prepared_is_not_made_again() -> None:
    with DoublingEngine() as engine:
        engine.prepare(32, 32)
        held = engine.acquire(32, 32)
        engine.prepare(32, 32)
        assert engine.acquire(32, 32, timeout=1) is not held


def test_sizes_that_are_refused_leave_nothing_behind() -> None:
    with DoublingEngine() as engine:
        for width in range(5000, 5100):
            with pytest.raises(EngineMismatch, match=f"a picture of {width}x32"):
                engine.prepare(width, 32)
        assert not engine._making


def test_more_slots_can_be_allowed_while_somebody_waits_for_one() -> None:
    with DoublingEngine() as engine:  # four slots
        for _ in range(4):
            engine.acquire(32, 32)
        waiter = threading.Thread(target=engine.acquire, args=(32, 32))
        waiter.start()
        engine.set_limits(5, 5)
        waiter.join(10)
        assert not waiter.is_alive()


def test_a_slot_given_back_before_its_picture_is_done_stays_away_until_then() -> None:
    pace = threading.Semaphore(0)
    with DoublingEngine(pace) as engine:
        slot = engine.acquire(32, 32)
        engine.submit([slot])
        giving_back = threading.Thread(target=slot.release)
        giving_back.start()
        others = [engine.acquire(32, 32) for _ in range(3)]
        assert [other for other in others if other is slot] == []
        with pytest.raises(TimeoutError):
            engine.acquire(32, 32, timeout=0.1)
        pace.release()
        giving_back.join(10)
        assert engine.acquire(32, 32, timeout=10) is slot


def test_a_slot_whose_batch_failed_can_be_given_back() -> None:
    with Fragile() as engine:
        slot = engine.acquire(32, 32)
        engine.broken = True
        with pytest.raises(EngineError):
            engine.submit([slot])
        slot.release()
        engine.broken = False
        assert engine.acquire(32, 32, timeout=1) is slot


@pytest.mark.parametrize("failures", [0, 1])
def test_a_thread_that_is_inside_a_runtime_is_known_until_it_comes_out(
    failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring, "_inside", set())  # threads of other tests hang in theirs for ever
    pace = threading.Semaphore(0)
    with DoublingEngine(pace, failures) as engine:
        slot = engine.acquire(32, 32)
        engine.submit([slot])
        assert not is_busy()
        waiting = threading.Thread(target=slot.release)
        waiting.start()
        wait_until(is_busy, "the wait")
        pace.release()
        waiting.join()
        assert not is_busy()
