"""The sizes, slots and memories of several engines as one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from engines import fallback
from engines.door import Door, Slot
from engines.errors import EngineError
from engines.fallback import FallbackEngine
from tests.fake_engine import Fake, await_takeover, counted, errors, picture, several
from tests.waiting import DEADLINE, wait_until

# Sizes


def test_a_size_that_is_refused_goes_to_the_last_engine_and_the_others_stay(caplog: pytest.LogCaptureFixture) -> None:
    last, better = Fake("last"), Fake("better")
    better.info = replace(better.info, largest=(40, 40))
    with several(last, better, ready=(32, 32)) as engine:
        engine.prepare(64, 64)
        wait_until(lambda: engine.reason, "the refusal")
        picture(engine, 64)
        picture(engine, 32)
        assert engine.info == better.info
        assert engine.failures == {"better": 0, "last": 0}
        assert engine.reason == "better is not used for 64x64: a picture of 64x64; this engine takes 16x16 to 40x40"
    assert last.batches == better.batches == [1]
    assert errors(caplog) == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("when", ["prepare", "acquire"])
def test_having_no_room_for_a_size_costs_that_size_alone(when: str, caplog: pytest.LogCaptureFixture) -> None:
    last, better = Fake("last"), Fake("better")
    with several(last, better, ready=(32, 32)) as engine, ExitStack() as held:
        if when == "acquire":
            await_takeover(engine, better, (64, 64))
            held.callback(engine.acquire(64, 64).release)
        better.broken = "make"
        engine.prepare(64, 64)
        for _ in range(2):
            wait_until(lambda: when == "acquire" or engine.reason, "the failure")
            picture(engine, 64)
        picture(engine, 32)
        assert engine.failures == {"better": 1, "last": 0}
    assert last.batches == [1, 1]
    assert better.batches == [1]
    assert errors(caplog) == ["engine: falling back to last: better failed for 64x64: no make on purpose"]


def test_a_camera_that_makes_up_sizes_fills_no_memory() -> None:
    last, better = Fake("last"), Fake("better")
    better.gate.clear()
    with several(last, better) as engine:
        for width in range(32, 32 + 4 * fallback.SIZES_NOTED, 2):
            engine.acquire(width, 32).release()
        assert len(engine._wanted) == fallback.SIZES_NOTED


# Slots and memories


def test_slots_go_back_to_the_engine_that_they_came_from() -> None:
    last, better = Fake("last"), Fake("better")
    better.gate.clear()
    with several(last, better) as engine:
        old = engine.acquire(32, 32)
        better.gate.set()
        await_takeover(engine, better, (32, 32))
        new = engine.acquire(32, 32)
        old.release()
        new.release()
        assert engine.acquire(32, 32) is new
        assert last.acquire(32, 32) is old
        assert (old.engine, new.engine) == (last, engine)


def test_what_is_allowed_is_allowed_to_all_engines_whenever_they_open() -> None:
    last, better, opening = Fake("last"), Fake("better"), threading.Event()

    def open_better() -> Door:
        assert opening.wait(DEADLINE)
        return better

    with FallbackEngine(last, {"better": open_better}) as engine:
        engine.set_limits(1, 2)
        opening.set()
        await_takeover(engine, better, (32, 32))
        engine.acquire(32, 32)
        with pytest.raises(TimeoutError):
            engine.acquire(32, 32, timeout=0.01)
        engine.set_limits(2, 2)
        engine.acquire(32, 32)
        with pytest.raises(TimeoutError):
            engine.acquire(32, 32, timeout=0.01)
        assert engine.failures == {"better": 0, "last": 0}


def test_slots_of_both_engines_can_be_one_batch() -> None:
    last, better = Fake("last"), Fake("better")
    better.info = replace(better.info, largest_batch=2)
    better.gate.clear()
    with several(last, better) as engine:
        slots = [engine.acquire(32, 32) for _ in range(2)]
        better.gate.set()
        await_takeover(engine, better, (32, 32))
        slots += [engine.acquire(32, 32) for _ in range(3)]
        for value, slot in enumerate(slots):
            slot.y[:] = value
        engine.submit(slots)
        for value, slot in enumerate(slots):
            slot.wait()
            assert (slot.y_out == value).all()
            slot.release()
    assert last.batches == [2]
    assert better.batches == [2, 1]


def test_an_engine_that_fails_is_closed_when_its_last_slot_is_back_and_only_then_the_next_one_opens() -> None:
    last, first, second = Fake("last"), Fake("first"), Fake("second")
    with several(last, first, second, ready=(32, 32)) as engine:
        held, failing = engine.acquire(32, 32), engine.acquire(32, 32)
        unsent = engine.acquire(32, 32)
        first.broken = "start"
        engine.submit([failing])
        with pytest.raises(EngineError, match="no start on purpose"):
            failing.wait()
        failing.release()
        first.broken = None
        engine.submit([unsent])
        with pytest.raises(EngineError, match="first was given up"):
            unsent.wait()
        unsent.release()
        picture(engine)
        assert (sum(last.batches), sum(first.batches), sum(second.batches)) == (1, 0, 0)
        assert not first.closed.is_set()
        held.release()
        assert first.closed.wait(DEADLINE)
        await_takeover(engine, second, (32, 32))
        picture(engine)
        assert sum(second.batches) == 1
        assert engine.failures == {"first": 1, "second": 0, "last": 0}
    assert second.closed.is_set()


class Counting(Fake):
    """Adds 1 to the memory of each picture's feed, when it is finished."""

    def _start(self, slots: Sequence[Slot]) -> None:
        super()._start(slots)
        for slot in slots:
            assert slot.memory is not None
            before, after = slot.memory.swap()
            self.numbers += [float(before[0, 0]), slot.keep]
            self.under_way = slot, before, after

    def _finish(self, slot: Slot) -> None:
        super()._finish(slot)
        ours, before, after = self.under_way
        assert ours is slot
        after[:] = before + 1


def test_a_feed_keeps_its_memory_and_its_order_when_the_next_picture_goes_to_another_engine() -> None:
    last, better = Counting("last"), Counting("better")
    better.gate.clear()
    with several(last, better) as engine:
        old = engine.acquire(32, 32)
        better.gate.set()
        await_takeover(engine, better, (32, 32))
        counted(engine, old, engine.acquire(32, 32))
    assert last.numbers == [0, 0.9]
    assert better.numbers == [1, 0.9], "the second picture did not wait for the first"


def test_what_a_failed_engine_left_in_a_memory_is_forgotten() -> None:
    last, better = Counting("last"), Counting("better")
    with several(last, better, ready=(32, 32)) as engine:
        memory, slot = engine.new_memory(), engine.acquire(32, 32)
        slot.memory = memory
        engine.submit([slot])
        slot.wait()
        for numbers in memory.swap():
            numbers[:] = np.nan
        better.broken = "finish"
        with pytest.raises(EngineError, match="no finish"):
            slot.wait()
        slot.release()
        slot = engine.acquire(32, 32)
        slot.memory, slot.keep = memory, 0.9
        engine.submit([slot])
        slot.wait()
    assert last.numbers == [0, 0]


def test_what_a_better_engine_kept_on_its_device_is_forgotten_where_the_last_one_goes_on() -> None:
    last, better = Counting("last"), Fake("better")
    with several(last, better, ready=(32, 32)) as engine:
        memory, held = engine.new_memory(), engine.acquire(32, 32)
        for numbers in memory.swap():
            numbers[:] = 7  # from before the better engine took over
        better.broken = "make"  # no room for one more slot: from now on the size is the last engine's
        for slot in (held, engine.acquire(32, 32)):
            slot.memory, slot.keep = memory, 0.9
            engine.submit([slot])
            slot.wait()
        assert engine.failures["better"] == 1
    assert last.numbers == [0, 0]


def test_a_slot_that_could_not_be_submitted_can_be_submitted_again() -> None:
    last = Fake("last")
    with several(last) as engine:
        slot = engine.acquire(32, 32)
        last.broken = "start"
        engine.submit([slot])
        with pytest.raises(EngineError, match="no start on purpose"):
            slot.wait()
        last.broken = None
        slot.y[:] = 7
        engine.submit([slot])
        slot.wait()
        assert (slot.y_out == 7).all()
