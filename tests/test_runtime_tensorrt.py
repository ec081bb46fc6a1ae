"""The TensorRT runtime on a driver without a device, which runs all as late, and in as odd an order, as it may."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engines import ring, runtime_tensorrt
from engines.cards import NUMBERS, find_weights
from engines.checkpoint import load_network
from engines.colour import Colour
from engines.door import EngineInfo, Slot
from engines.errors import EngineError, EngineMismatch, EngineMissing
from engines.fallback import is_left_behind
from engines.nvidia import cuda_engine, tensorrt_lanes
from engines.nvidia.cuda_lanes import LANES, counts_to_see
from engines.nvidia.gpu import NO_GPU, Gpu
from engines.picture import PictureGraph
from engines.ring import is_busy
from engines.runtime import EngineOptions, open_engine
from engines.runtime_tensorrt import Cuda, TensorRtEngine
from engines.runtime_torch import TorchEngine
from stream.publish import Publisher
from stream.relay import Relay
from stream.settings import FeedSettings, RelaySettings, Settings
from tests.clips import make_clip
from tests.fake_cuda import Error, Event, FakeBindings, FakeCuda, OutOfMemory
from tests.fake_tensorrt import Arrays, FakePlan, FakeTensorRt
from tests.test_runtimes import dusk
from tests.waiting import DEADLINE, wait_until

SIZE = (16, 16)


def counting(inputs: Arrays) -> Arrays:
    """Doubles luma, adds what the feed's memory counted, and counts on; a picture that is not kept begins anew."""
    counted = np.where(inputs["keep"] > 0, inputs["memory"], 0)
    bright = inputs["y"].repeat(2, 2).repeat(2, 3) + counted[:, :1, None, None].astype(np.uint8)
    height, width = inputs["y"].shape[2:]
    uv = inputs["uv"].repeat(2, 2).repeat(2, 3)[:, :, :height, :width]
    return {"y_out": bright, "uv_out": uv, "memory_out": counted + 1}


@dataclass
class Bench:
    """An engine and what it stands on."""

    engine: TensorRtEngine
    driver: FakeCuda
    library: FakeTensorRt
    stored: list[bytes]
    bindings: FakeBindings


class FakePlans:
    """Stands for `engines.nvidia.plans.Plans`."""

    stored: list[bytes]
    asked: list[object]
    """The capabilities of plans."""
    refusals: dict[object, str]
    """What trials found, by capability."""

    def __init__(self, *_: object) -> None: ...

    def key(self, _: object, *rest: object) -> tuple[object, ...]:
        return rest

    def get(self, _: object, width: int, height: int, *rest: object) -> SimpleNamespace:
        self.asked.append(rest[-1])
        data = f"{width}x{height}@{rest[-1]}".encode()
        return SimpleNamespace(key=(width, height, *rest), data=data)

    def refusal(self, key: tuple[object, ...]) -> str | None:
        return self.refusals.get(key[-1])

    def load_cache(self, _: object) -> bytes:
        return b"compiled before"

    def store_cache(self, _: object, data: bytes) -> None:
        self.stored.append(data)


@contextmanager
def bench(
    monkeypatch: pytest.MonkeyPatch,
    seed: int = 1,
    slots: int = 24,
    remembers: int = 4,
    name: str = "tensorrt_rtx",
    batch: int = 8,
) -> Iterator[Bench]:
    driver = FakeCuda(seed)
    library, bindings = FakeTensorRt(driver, counting, remembers, name), FakeBindings(driver)
    FakePlans.stored, FakePlans.asked, FakePlans.refusals = [], [], {}
    monkeypatch.setattr(tensorrt_lanes, "import_bindings", lambda: bindings)
    monkeypatch.setattr(runtime_tensorrt, "Plans", FakePlans)
    monkeypatch.setattr(runtime_tensorrt, "CONFIGS", {"neid-live": SimpleNamespace(remembers=remembers)})
    weights = find_weights("field")
    info = EngineInfo("tensorrt", "test", "fp16", "field", weights.id, largest_batch=batch)
    cuda = Cuda(driver, library.library(), Gpu("test", "1"))
    engine = TensorRtEngine(weights, info, cuda, EngineOptions(slots=slots))
    with engine:
        yield Bench(engine, driver, library, FakePlans.stored, bindings)
    assert driver.stack() == []
    assert bindings.held == 0, "graphs are freed"


def filled(engine: TensorRtEngine, level: int) -> Slot:
    slot = engine.acquire(*SIZE)
    slot.y[:], slot.uv[:] = level, 128
    return slot


@pytest.mark.parametrize("name", ["tensorrt_rtx", "tensorrt"])
@pytest.mark.parametrize("seed", range(12))
def test_every_slot_gets_its_own_picture_in_whatever_order_the_streams_run(
    monkeypatch: pytest.MonkeyPatch, seed: int, name: str
) -> None:
    batches = [1, 3, 2, 8, 1, 4, 5]
    levels = np.arange(sum(batches)) * 5 + 10
    with bench(monkeypatch, seed, name=name) as b:
        slots = [filled(b.engine, int(level)) for level in levels]
        start = 0
        for count in batches:
            b.engine.submit(slots[start : start + count])
            start += count
        for slot, level in zip(slots, levels, strict=True):
            slot.wait()
            assert (slot.y_out == level).all()
            assert (slot.uv_out == 128).all()
        assert b.driver.copied_pageable == 0


def test_what_is_done_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(monkeypatch) as b:
        slots = [filled(b.engine, level) for level in (10, 20, 30)]
        b.engine.submit(slots)
        slots[-1].wait()
        monkeypatch.setattr(Event, "synchronize", lambda _: pytest.fail("it waited"))
        for slot, level in zip(slots, (10, 20, 30), strict=True):
            slot.wait()
            assert (slot.y_out == level).all()
            slot.release()


@pytest.mark.parametrize("seed", range(6))
def test_slots_go_round_while_batches_are_under_way(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    with bench(monkeypatch, seed, slots=4) as b:
        under_way: list[tuple[Slot, int]] = []
        for level in range(10, 60):
            if len(under_way) == 4:
                slot, expected = under_way.pop(0)
                slot.wait()
                assert (slot.y_out == expected).all()
                slot.release()
            slot = filled(b.engine, level)
            b.engine.submit([slot])
            under_way.append((slot, level))


def test_tensorrt_is_started_by_graphs_once_a_size_is_ready_and_tensorrt_rtx_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, by_graph in (("tensorrt", 1), ("tensorrt_rtx", 0)):
        with bench(monkeypatch, name=name) as b:
            b.engine.prepare(*SIZE)
            calls, launches = b.library.calls, len(b.bindings.launches)
            slot = filled(b.engine, 50)
            b.engine.submit([slot])
            slot.wait()
            assert (slot.y_out == 50).all()
            assert len(b.bindings.launches) - launches == by_graph
            assert b.library.calls - calls == 1 - by_graph


@pytest.mark.parametrize("call", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"])
def test_where_nothing_can_be_captured_tensorrt_is_called_and_the_log_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    with bench(monkeypatch, name="tensorrt") as b:
        b.bindings.fails = call
        slot = filled(b.engine, 50)
        b.engine.submit([slot])
        slot.wait()
        assert (slot.y_out == 50).all()
        assert not b.bindings.launches
    told = f"no CUDA graphs: {call} failed: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
    assert caplog.text.count(told) == LANES, "once for each lane"


def test_a_graph_that_does_not_start_is_a_failed_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(monkeypatch, name="tensorrt") as b:
        slot = filled(b.engine, 50)
        b.bindings.fails = "cuGraphLaunch"
        with pytest.raises(EngineError, match="cuGraphLaunch failed"):
            b.engine.submit([slot])
        b.bindings.fails = ""


@pytest.mark.parametrize("seed", range(6))
def test_a_feeds_memory_passes_from_picture_to_picture_without_waiting_for_the_host(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    with bench(monkeypatch, seed) as b:
        one, two, slots = b.engine.remember(), b.engine.remember(), []
        for number in range(6):
            pair = [filled(b.engine, 100), filled(b.engine, 200)]
            pair[0].memory, pair[1].memory = one, two if number % 2 else None
            pair[0].keep = pair[1].keep = 0.9
            b.engine.submit(pair)
            slots.append(pair)
        for number, (first, second) in enumerate(slots):
            first.wait()
            second.wait()
            assert (first.y_out == 100 + number).all()
            assert (second.y_out == (200 + number // 2 if number % 2 else 200)).all()


def test_a_feed_that_another_engine_had_meanwhile_brings_its_memory_along(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(monkeypatch) as b:
        memory = b.engine.remember()

        def brightened() -> int:
            slot = filled(b.engine, 100)
            slot.memory, slot.keep = memory, 0.9
            b.engine.submit([slot])
            slot.wait()
            slot.release()
            return int(slot.y_out[0, 0]) - 100

        assert [brightened(), brightened()] == [0, 1], "what a picture is brightened by is counted in the memory"
        _, left = memory.turn()
        left[:] = 7  # by an engine on the CPU
        assert [brightened(), brightened()] == [7, 8]


def test_pictures_of_two_sizes_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(monkeypatch) as b:
        small, large = filled(b.engine, 30), b.engine.acquire(33, 21)
        large.y[:], large.uv[:] = 40, 90
        b.engine.submit([small])
        b.engine.submit([large])
        for slot, level in ((large, 40), (small, 30)):
            slot.wait()
            assert (slot.y_out == level).all()
        assert large.uv.shape == (2, 11, 17)
        assert large.y_out.shape == (42, 66)


def test_any_thread_may_use_it_and_none_keeps_a_context(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: list[object] = []
    with bench(monkeypatch) as b:

        def use(level: int) -> None:
            for _ in range(5):
                slot = filled(b.engine, level)
                b.engine.submit([slot])
                slot.wait()
                if not (slot.y_out == level).all():
                    wrong.append(level)
                slot.release()
            wrong.extend(b.driver.stack())

        threads = [threading.Thread(target=use, args=(level,)) for level in (20, 60, 100, 140)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_lost_device_is_told_everywhere_and_leaves_no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(monkeypatch) as b:
        slot, waiting = filled(b.engine, 1), filled(b.engine, 2)
        b.engine.submit([waiting])
        b.driver.failure = Error("the device was lost")
        for call in (lambda: b.engine.submit([slot]), waiting.wait, lambda: b.engine.acquire(32, 32)):
            with pytest.raises(EngineError, match="tensorrt failed: the device was lost"):
                call()
            assert b.driver.stack() == []
        b.driver.failure = None


def test_a_plan_that_is_refused_is_told_in_the_words_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(monkeypatch) as b:
        b.library.refuses = {"", "CURRENT", "SM80"}
        told = (
            r"TensorRT-RTX 1\.6\.1 runs no plan for 16x16 here: as usual: the plan is refused: made for another GPU; "
            r"CURRENT: the plan is refused: made for another GPU; SM80: the plan is refused: made for another GPU"
        )
        with pytest.raises(EngineError, match=told):
            b.engine.acquire(*SIZE)


def test_a_size_that_could_not_be_made_ready_is_forgotten_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(monkeypatch) as b:
        b.library.refuses = {"", "CURRENT", "SM80"}
        with pytest.raises(EngineError, match="runs no plan"):
            b.engine.acquire(*SIZE)
        b.library.refuses = set()
        b.engine.allow(8, 0)
        b.engine.allow(8, 1)
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
    assert "test takes a plan built for SM80 (as usual: " in caplog.text


def test_a_plan_whose_trial_died_is_not_loaded_in_this_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with bench(monkeypatch) as b:
        FakePlans.refusals = {"": "its process ended with signal 11"}
        b.engine.prepare(*SIZE)
        assert FakePlans.asked == ["CURRENT"]
    assert "test takes a plan built for CURRENT (as usual: its process ended with signal 11)" in caplog.text


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
        feeds = [b.engine.remember() for _ in range(20)]
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
        b.engine.allow(24, 1)
        assert held(b) == 1


def test_a_batch_is_uploaded_in_two_copies_for_each_picture_and_two_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    with bench(monkeypatch) as b:
        slots = [filled(b.engine, 50) for _ in range(8)]
        copy = b.driver.memcpy_htod_async
        monkeypatch.setattr(b.driver, "memcpy_htod_async", lambda *to: (copied.append(to[1].nbytes), copy(*to)))
        b.engine.submit(slots)
        slots[-1].wait()
    assert sorted(copied) == sorted([16 * 16, 16 * 8] * 8 + [8 * 24 * 4, 8 * 4])


@pytest.mark.parametrize("seed", range(6))
def test_every_picture_has_its_own_colour_and_share_of_memory_in_whatever_order_the_streams_run(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    colours = [Colour(matrix, full_range=full) for matrix in ("bt601", "bt709") for full in (False, True)]

    def mark(coefficients: NDArray[np.float32], keep: NDArray[np.float32]) -> NDArray[np.uint8]:
        told = 10 * np.abs(coefficients).sum((1, 2, 3)) + 100 * keep
        return np.where(np.isfinite(told), np.rint(told), 0).astype(np.uint8)

    def compute(inputs: Arrays) -> Arrays:
        made = counting(inputs)
        made["y_out"][:] = mark(inputs["colour"], inputs["keep"][:, 0])[:, None, None, None]
        return made

    with bench(monkeypatch, seed, slots=24) as b:
        b.library.compute = compute
        chance = np.random.default_rng(seed)
        under_way: list[tuple[Slot, int]] = []
        for count in (3, 1, 4, 2, 5, 3, 1, 4, 2, 3, 5, 1, 2, 4):
            while len(under_way) + count > 24:
                slot, expected = under_way.pop(0)
                slot.wait()
                assert (slot.y_out == expected).all()
                slot.release()
            slots = [filled(b.engine, 50) for _ in range(count)]
            for slot in slots:
                slot.colour, slot.keep = colours[chance.integers(4)], float(chance.choice([0.0, 0.25, 0.5, 1.0]))
                slot.memory = b.engine.remember()
                told = mark(slot.colour.coefficients()[None], np.array([slot.keep], np.float32))
                under_way.append((slot, int(told[0])))
            b.engine.submit(slots)
        for slot, expected in under_way:
            slot.wait()
            assert (slot.y_out == expected).all()


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


def test_leaving_frees_all_device_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(monkeypatch) as b:
        memory = b.engine.remember()
        slot = filled(b.engine, 7)
        slot.memory, slot.keep = memory, 0.5
        b.engine.submit([slot])
        assert b.driver.allocations
    assert b.driver.allocations == {}, "nothing outlives the block"
    gc.collect()


def test_a_feed_that_ends_leaves_its_memory_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(monkeypatch) as b:
        slot = filled(b.engine, 7)
        slot.memory = b.engine.remember()
        b.engine.submit([slot])
        slot.wait()
        before = len(b.driver.allocations)
        for _ in range(3):
            slot.memory = b.engine.remember()
            gc.collect()
            b.engine.submit([slot])
            slot.wait()
            assert len(b.driver.allocations) == before, "nothing is freed while pictures come, nor more and more taken"
        assert not b.driver.leaked


@pytest.mark.parametrize("seed", range(6))
def test_what_a_feed_left_when_it_began_anew_is_another_feeds_once_its_pictures_are_done(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    with bench(monkeypatch, seed) as b:
        anew, other = b.engine.remember(), b.engine.remember()
        _, left = other.turn()
        left[:] = 7  # by an engine on the CPU
        slots = [filled(b.engine, 100) for _ in range(4)]
        for slot, memory in zip(slots, (anew, anew, other, other), strict=True):
            slot.memory, slot.keep = memory, 0.9
            if slot is slots[1]:
                anew.clear()  # as after a gap, while the picture before is still under way
            b.engine.submit([slot])
        for slot in slots:
            slot.wait()
        assert [int(slot.y_out[0, 0]) - 100 for slot in slots] == [0, 0, 7, 8]


@contextmanager
def held_up(monkeypatch: pytest.MonkeyPatch, b: Bench, *sizes: tuple[int, int]) -> Iterator[threading.Event]:
    """Threads that make sizes ready, as those of feeds do, and are held up in that until the event is set.

    After the block each was told that the engine is closed, and has left no context; what was not begun was not made.
    """
    begun, gate, told, get = list[object](), threading.Event(), list[str](), FakePlans.get

    def get_late(plans: FakePlans, *key: object) -> SimpleNamespace:
        begun.append(key)
        assert gate.wait(DEADLINE)
        return get(plans, *key)

    def make_ready(size: tuple[int, int]) -> None:
        try:
            b.engine.acquire(*size)
        except EngineError as error:
            told.append(str(error))
        told.extend(map(str, b.driver.stack()))

    monkeypatch.setattr(FakePlans, "get", get_late)
    threads = [threading.Thread(target=make_ready, args=(size,), daemon=True) for size in sizes]
    for thread in threads:
        thread.start()
    wait_until(lambda: begun and len(b.engine._making) == len(sizes), "the first of them")
    yield gate
    for thread in threads:
        thread.join(DEADLINE)
    assert told == ["the engine is closed: use it inside its `with` block"] * len(sizes)
    assert len(begun) == 1


def test_leaving_waits_for_a_size_that_is_being_made_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "_inside", set())  # threads of other tests hang in their engines for ever
    with ExitStack() as stack:
        with bench(monkeypatch) as b:
            gate, close = stack.enter_context(held_up(monkeypatch, b, SIZE)), b.engine._close

            def close_now() -> None:
                gate.set()  # by now the engine is closed for all others
                close()

            monkeypatch.setattr(b.engine, "_close", close_now)
        assert b.driver.allocations == {}, "what was made ready is freed, too"
    assert not is_busy()


def test_leaving_takes_nothing_away_from_a_size_that_takes_too_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cuda_engine, "EXIT_SECONDS", 0.05)
    monkeypatch.setattr(ring, "_inside", set())
    with ExitStack() as stack:
        with bench(monkeypatch) as b:
            gate = stack.enter_context(held_up(monkeypatch, b, SIZE, (32, 32)))
        assert caplog.messages == ["engine: tensorrt is left behind, busy for more than 0.05 s"]
        assert is_busy()
        assert is_left_behind(), "so that the process ends without the interpreter's help"
        gate.set()
    assert not is_busy()
    b.engine._close()
    assert b.driver.allocations == {}


def test_all_that_is_given_up_is_freed_where_the_device_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(monkeypatch) as b:
        slots = [b.engine.acquire(*SIZE) for _ in range(4)]
        for slot in slots:
            slot.release()
        b.engine.acquire(32, 32).release()
        before = len(b.driver.allocations)
        b.engine.allow(1, 1)
        assert len(b.driver.allocations) < before, "a size was forgotten"
        del slots, slot  # the last names of slots go where no context is current
        held = b.driver.locked
        b.engine.acquire(*SIZE).release()
        assert b.driver.locked < held
    assert not b.driver.leaked


def test_a_feed_that_leaves_a_relay_frees_its_slots_although_other_feeds_had_them_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", size=(64, 48), pictures=1500)
    feed, wire = FeedSettings(url=str(clip), mode="live"), RelaySettings(endpoint="tcp://127.0.0.1:*")
    settings = Settings(relay=wire, feeds={"goes": feed, "stays": feed})
    with bench(monkeypatch) as b:
        for slot in [b.engine.acquire(64, 48) for _ in range(4)]:
            slot.release()
        del slot
        with Publisher(wire, "run") as publisher, Relay(settings, b.engine, publisher) as relay:
            stays = relay.feeds["stays"]
            wait_until(lambda: all(feed.figures().published > 3 for feed in relay.feeds.values()), "some pictures")
            relay.remove("goes")
            before = stays.figures().published
            wait_until(lambda: stays.figures().published > before + 3, "some more of the other feed")
            relay.stop()
        assert not b.driver.leaked
    assert b.driver.locked == 0


def test_the_shipped_network_in_batches_equals_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = find_weights("field")
    graph = PictureGraph(load_network(weights.file(NUMBERS))).eval()

    def compute(inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            order = ("y", "uv", "colour", "memory", "keep")
            made = graph(*(torch.from_numpy(inputs[name]) for name in order))
        return dict(zip(("y_out", "uv_out", "memory_out"), (part.numpy() for part in made), strict=True))

    reference = TorchEngine(weights, EngineOptions())
    with bench(monkeypatch, remembers=256) as b, reference:
        b.library.compute = compute
        memory, expected_memory, slots = b.engine.remember(), reference.remember(), []
        for seed in range(3):
            pair = [b.engine.acquire(50, 38) for _ in range(2)]
            for slot in pair:
                slot.y[:], slot.uv[:] = dusk(50, 38, seed)
                slot.colour = Colour("bt709")
            pair[0].memory, pair[0].keep = memory, 0.9
            b.engine.submit(pair)
            slots.append(pair)
        for seed, (first, second) in enumerate(slots):
            picture = dusk(50, 38, seed)
            for slot, known in ((first, (expected_memory, 0.9)), (second, ())):
                slot.wait()
                y, uv = reference.enhance(*picture, Colour("bt709"), *known)
                assert np.abs(slot.y_out.astype(int) - y).max() <= 1
                assert np.abs(slot.uv_out.astype(int) - uv).max() <= 1


# Opening


def test_without_a_gpu_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_tensorrt, "find_gpu", lambda: NO_GPU)
    monkeypatch.setattr(runtime_tensorrt, "import_tensorrt", lambda: None)
    with pytest.raises(EngineMissing, match="needs an NVIDIA GPU and its driver; here is none"):
        open_engine("tensorrt")


def test_without_pycuda_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_tensorrt, "find_gpu", lambda: Gpu("NVIDIA H200", "580"))
    monkeypatch.setattr(runtime_tensorrt, "import_tensorrt", lambda: None)
    monkeypatch.setitem(__import__("sys").modules, "pycuda.driver", None)
    with pytest.raises(EngineMissing, match=r"needs pycuda: pip install 'nightbridge\[nvidia\]'"):
        open_engine("tensorrt")


def test_a_precision_that_it_has_not_is_refused() -> None:
    with pytest.raises(EngineMismatch, match="precision 'int8': TensorRT takes one of auto, fp16"):
        open_engine("tensorrt", options=EngineOptions(precision="int8"))
