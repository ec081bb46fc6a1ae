"""Pictures of the TensorRT runtime on a driver that runs all as late, and in as odd an order, as it may."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engines.cards import NUMBERS, find_weights
from engines.checkpoint import load_network
from engines.colour import Colour
from engines.door import Memory, Slot
from engines.errors import EngineError
from engines.nvidia.cuda_lanes import LANES
from engines.picture import INPUTS, OUTPUTS, PictureGraph
from engines.runtime import EngineOptions
from engines.runtime_torch import TorchEngine
from tests.fake_cuda import Error, Event
from tests.fake_tensorrt import Arrays
from tests.tensorrt_bench import SIZE, bench, counting, filled
from tests.test_runtimes import dusk


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
        one, two, slots = b.engine.new_memory(), b.engine.new_memory(), []
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
        memory = b.engine.new_memory()

        def brightened() -> int:
            slot = filled(b.engine, 100)
            slot.memory, slot.keep = memory, 0.9
            b.engine.submit([slot])
            slot.wait()
            slot.release()
            return int(slot.y_out[0, 0]) - 100

        assert [brightened(), brightened()] == [0, 1], "what a picture is brightened by is counted in the memory"
        _, left = memory.swap()
        left[:] = 7  # by an engine on the CPU
        assert [brightened(), brightened()] == [7, 8]


def echoing(inputs: Arrays) -> Arrays:
    """Gives each picture the level of its feed's last one, 0 where there was none."""
    last = np.nan_to_num(inputs["past_y"][:, 0, 0]).clip(0, 255).astype(np.uint8)  # at warm-up it is anything
    made = counting(inputs)
    made["y_out"] = np.broadcast_to(last[:, None, None, None], made["y_out"].shape)
    for name in ("past_y", "past_uv"):
        made[f"{name}_out"] = np.broadcast_to(inputs["y"][:, 0, :1, :1], inputs[name].shape).astype(np.float16)
    return made


@pytest.mark.parametrize("seed", range(6))
def test_a_feeds_last_picture_passes_to_its_next_one_in_whichever_batch_and_place(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    with bench(monkeypatch, seed, slots=48) as b:
        b.library.compute = echoing
        chance, under_way = np.random.default_rng(seed), list[tuple[Slot, int]]()
        feeds, last = [b.engine.new_memory() for _ in range(4)], [0] * 4
        for number in range(8):
            slots = []
            for feed in chance.permutation(4)[: chance.integers(1, 5)]:
                slots.append(slot := filled(b.engine, level := 10 * (feed + 1) + number))
                slot.memory, slot.keep = feeds[feed], 0.9
                under_way.append((slot, last[feed]))
                last[feed] = level
            slots.append(alone := filled(b.engine, 99))
            under_way.append((alone, 0))
            b.engine.submit(slots)
            if number == 5:  # one feed ends, and another begins in its place
                feeds[1], last[1] = b.engine.new_memory(), 0
                for slot, _ in under_way:
                    slot.wait()
                    slot.memory = None
        for slot, expected in under_way:
            slot.wait()
            assert (slot.y_out == expected).all()


def test_a_feed_that_another_engine_had_meanwhile_begins_without_a_last_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with bench(monkeypatch) as b:
        b.library.compute = echoing
        memory = b.engine.new_memory()

        def echo(level: int) -> int:
            slot = filled(b.engine, level)
            slot.memory, slot.keep = memory, 0.9
            b.engine.submit([slot])
            slot.wait()
            slot.release()
            return int(slot.y_out[0, 0])

        assert [echo(10), echo(20)] == [0, 10]
        memory.swap()
        memory.swap_past({"past_y": (4, 16), "past_uv": (4, 8)})
        assert [echo(30), echo(40)] == [0, 30]
        assert memory._pasts is None, "not kept twice"


def test_a_feed_whose_first_picture_failed_reads_no_picture_of_a_feed_that_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with bench(monkeypatch) as b:
        b.library.compute = echoing

        def echo(level: int, memory: Memory) -> int:
            slot = filled(b.engine, level)
            slot.memory, slot.keep = memory, 0.9
            try:
                b.engine.submit([slot])
                slot.wait()
                return int(slot.y_out[0, 0])
            finally:
                slot.release()

        ended = b.engine.new_memory()
        assert [echo(77, ended), echo(78, ended)] == [0, 77]
        del ended
        gc.collect()
        new = b.engine.new_memory()
        b.library.cannot_run = {""}
        with pytest.raises(EngineError, match="did not start"):
            echo(30, new)
        b.library.cannot_run = set()
        assert [echo(40, new), echo(50, new)] == [0, 40]


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
                slot.memory = b.engine.new_memory()
                told = mark(slot.colour.coefficients()[None], np.array([slot.keep], np.float32))
                under_way.append((slot, int(told[0])))
            b.engine.submit(slots)
        for slot, expected in under_way:
            slot.wait()
            assert (slot.y_out == expected).all()


def test_the_shipped_network_in_batches_equals_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = find_weights("field")
    graph = PictureGraph(load_network(weights.file(NUMBERS))).eval()

    def compute(inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            made = graph(*(torch.from_numpy(inputs[name]) for name in INPUTS))
        return dict(zip(OUTPUTS, (part.numpy() for part in made), strict=True))

    reference = TorchEngine(weights, EngineOptions())
    with bench(monkeypatch, memory_size=256) as b, reference:
        b.library.compute = compute
        memory, expected_memory, slots = b.engine.new_memory(), reference.new_memory(), []
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
