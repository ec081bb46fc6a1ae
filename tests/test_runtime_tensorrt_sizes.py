"""What the TensorRT runtime makes ready for a size of pictures: its plan, its contexts and their memory."""

from __future__ import annotations

import gc

import pytest

from engines.door import Slot
from engines.errors import EngineError
from engines.nvidia.cuda_lanes import LANES, counts_to_see
from tests.fake_cuda import Error, FakeBindings, OutOfMemory
from tests.fake_tensorrt import Arrays, FakePlan
from tests.tensorrt_bench import SIZE, Bench, FakePlans, bench, counting, filled


def test_a_plan_that_is_refused_is_told_in_the_words_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(monkeypatch) as b:
        b.library.refuses = {"", "CURRENT", "SM80"}
        told = (
            r"TensorRT-RTX 1\.6\.1 could not run any plan for 16x16 here: "
            r"default capability: the plan was refused: made for another GPU; "
            r"CURRENT: the plan was refused: made for another GPU; SM80: the plan was refused: made for another GPU"
        )
        with pytest.raises(EngineError, match=told):
            b.engine.acquire(*SIZE)


def test_a_size_that_could_not_be_made_ready_is_forgotten_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(monkeypatch) as b:
        b.library.refuses = {"", "CURRENT", "SM80"}
        with pytest.raises(EngineError, match="could not run any plan"):
            b.engine.acquire(*SIZE)
        b.library.refuses = set()
        b.engine.set_limits(8, 0)
        b.engine.set_limits(8, 1)
        slot = filled(b.engine, 9)
        b.engine.submit([slot])
        slot.wait()
        assert (slot.y_out == 9).all()


@pytest.mark.parametrize("refuses", ["refuses", "cannot_run", "faulty"])
def test_a_gpu_that_is_not_listed_gets_a_plan_that_it_takes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, refuses: str
) -> None:
    with bench(monkeypatch) as b:
        setattr(b.library, refuses, {"", "CURRENT"})
        slot = filled(b.engine, 9)
        b.engine.submit([slot])
        slot.wait()
        assert (slot.y_out == 9).all()
    assert "test uses a plan built for compute capability SM80; others failed: default capability: " in caplog.text


def test_a_plan_whose_trial_died_is_not_loaded_in_this_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with bench(monkeypatch) as b:
        FakePlans.refusals = {"": "its process ended with signal 11"}
        b.engine.prepare(*SIZE)
        assert FakePlans.asked == ["CURRENT"]
    assert (
        "test uses a plan built for compute capability CURRENT; "
        "others failed: default capability: its process ended with signal 11"
    ) in caplog.text


def test_where_memory_runs_out_no_other_plan_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def too_much(octets: int) -> None:
        asked.append(octets)
        raise OutOfMemory("cuMemAlloc failed: out of memory")

    with bench(monkeypatch) as b:
        monkeypatch.setattr(b.driver, "mem_alloc", too_much)
        with pytest.raises(EngineError, match="tensorrt failed: cuMemAlloc failed: out of memory"):
            b.engine.acquire(*SIZE)
    assert len(asked) == 1


@pytest.mark.parametrize("number", range(1, 29))
def test_wherever_memory_runs_out_what_was_taken_for_the_size_is_given_back(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with bench(monkeypatch) as b:
        enough, before, asked = b.driver.mem_alloc, len(b.driver.allocations), 0

        def too_little(octets: int) -> object:
            nonlocal asked
            asked += 1
            if asked >= number:
                raise OutOfMemory("cuMemAlloc failed: out of memory")
            return enough(octets)

        monkeypatch.setattr(b.driver, "mem_alloc", too_little)
        with pytest.raises(EngineError, match="out of memory"):
            b.engine.prepare(*SIZE)
        gc.collect()
        assert (len(b.driver.allocations), b.driver.leaked) == (before, 0)
        monkeypatch.setattr(b.driver, "mem_alloc", enough)
        b.engine.prepare(*SIZE)


def test_what_feeds_left_is_kept_for_new_ones_of_their_size_alone_and_no_more_than_slots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def shown(b: Bench, *sizes: tuple[int, int]) -> None:
        """A picture each of a new feed, which ends."""
        slots = [b.engine.acquire(*size) for size in sizes]
        for slot in slots:
            slot.memory = b.engine.new_memory()
            b.engine.submit([slot])
            slot.wait()
        for slot in slots:
            slot.release()
        gc.collect()

    with bench(monkeypatch, slots=8) as b:
        b.engine.prepare(32, 32)
        of_one_size = len(b.driver.allocations)
        b.engine.prepare(*SIZE)
        before = len(b.driver.allocations)
        shown(b, *[SIZE] * 6)
        assert len(b.driver.allocations) == before + 6 * 3, "numbers, luma and chroma of each"
        shown(b, *[SIZE] * 6)
        assert len(b.driver.allocations) == before + 6 * 3
        shown(b, (32, 32))
        assert len(b.driver.allocations) == before + 7 * 3
        b.engine.set_limits(2, 2)
        assert len(b.driver.allocations) == before + 2 * 3
        b.engine.set_limits(2, 1)
        assert len(b.driver.allocations) == of_one_size
        assert not b.driver.leaked


def test_a_size_is_ready_when_every_lane_has_seen_every_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def compute(inputs: Arrays) -> Arrays:
        seen.append(len(inputs["y"]))
        return counting(inputs)

    with bench(monkeypatch) as b:
        b.library.compute = compute
        b.engine.prepare(*SIZE)
        assert {count: seen.count(count) for count in range(1, 9)} == {1: 4 * LANES} | dict.fromkeys(
            range(2, 9), 2 * LANES
        )
        assert b.stored == [b"compiled"] * 9, "kept as soon as it was compiled"


def test_what_was_compiled_for_some_counts_is_kept_although_another_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def compute(inputs: Arrays) -> Arrays:
        ran.append(count := len(inputs["y"]))
        if count == 6:
            raise Error("the device was lost")
        return counting(inputs)

    with bench(monkeypatch) as b:
        b.library.compute = compute
        kept: list[set[int]] = []
        monkeypatch.setattr(FakePlans, "store_cache", lambda *_: kept.append(set(ran)))
        with pytest.raises(EngineError, match="the device was lost"):
            b.engine.prepare(*SIZE)
        b.library.compute = counting
        assert kept == [{1}, {1, 8}, {1, 7, 8}]


def test_the_counts_that_are_seen_are_the_usual_ones_and_powers_of_two() -> None:
    assert counts_to_see(1) == [1]
    assert counts_to_see(6) == [6, 5, 4, 3, 2, 1]
    assert counts_to_see(40) == [40, 32, 16, 8, 7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("name", ["tensorrt_rtx", "tensorrt"])
def test_nothing_is_made_ready_while_pictures_wait_and_each_keeps_its_memory(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ran: list[int] = []

    def compute(inputs: Arrays) -> Arrays:
        ran.append(len(inputs["y"]))
        return counting(inputs)

    def fail(*_: object) -> None:
        pytest.fail("pictures wait")

    with bench(monkeypatch, slots=96, name=name, batch=32) as b:
        b.engine.prepare(*SIZE)
        b.library.compute = compute
        monkeypatch.setattr(FakePlan, "create_execution_context", fail)
        monkeypatch.setattr(FakeBindings, "cuStreamBeginCapture", fail)
        feeds = [b.engine.new_memory() for _ in range(20)]
        seen = [0] * len(feeds)
        batches: list[list[tuple[Slot, int]]] = []
        for count in (20, 11, 20, 9, 20):
            slots = [filled(b.engine, 100 + number) for number in range(count)]
            for slot, memory in zip(slots, feeds, strict=False):
                slot.memory, slot.keep = memory, 0.9
            b.engine.submit(slots)
            batches.append([(slot, 100 + number + seen[number]) for number, slot in enumerate(slots)])
            seen = [before + (number < count) for number, before in enumerate(seen)]
        for slot, expected in (pair for batch in batches for pair in batch):
            slot.wait()
            assert (slot.y_out == expected).all()
        assert ran == [32, 16, 32, 16, 32]


@pytest.mark.parametrize("name", ["tensorrt_rtx", "tensorrt"])
def test_all_lanes_of_a_size_have_one_scratch_memory(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The driver fails where two streams have it at once."""

    def held(b: Bench) -> int:
        return [memory.size for memory in b.driver.allocations.values()].count(FakePlan.device_memory_size_v2)

    with bench(monkeypatch, name=name) as b:
        for number, size in enumerate((SIZE, (32, 32)), 1):
            for slot in [b.engine.acquire(*size) for _ in range(2 * LANES)]:
                b.engine.submit([slot])
                slot.wait()
                slot.release()
            assert held(b) == number
        b.engine.set_limits(24, 1)
        assert held(b) == 1


def test_too_little_memory_for_a_context_is_told_and_the_size_can_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with bench(monkeypatch) as b:
        b.library.without_memory = True
        with pytest.raises(EngineError, match="too little GPU memory"):
            b.engine.acquire(*SIZE)
        b.library.without_memory = False
        b.engine.acquire(*SIZE).release()


def test_what_was_compiled_is_kept_for_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(monkeypatch) as b:
        b.engine.prepare(*SIZE)
        assert b.library.compiled == [b"compiled before"]
        b.stored.clear()
    assert b.stored == [b"compiled"]
