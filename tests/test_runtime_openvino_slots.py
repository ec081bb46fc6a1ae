"""Pictures that OpenVINO computes side by side. The contract is in test_runtimes."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import openvino
import pytest

from engines.door import Door, Memory, Slot
from engines.errors import EngineError
from engines.runtime import EngineOptions, open_engine
from engines.runtime_openvino import OpenVinoSlot
from tests.identity import identity_network, store


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with weights of a small network."""
    folder = tmp_path_factory.mktemp("weights") / "mine"
    store(identity_network(), folder, "mine")
    return str(folder)


@dataclass
class Failing:
    """A request that is waited for in vain."""

    request: openvino.InferRequest
    waited: int = 0

    def wait(self) -> None:
        self.request.wait()
        self.waited += 1
        raise RuntimeError("out of luck")


@pytest.mark.parametrize(("threads", "parallel", "streams"), [(2, 1, 1), (2, 2, 2), (2, 5, 2), (1, 2, 1), (3, 2, 1)])
def test_as_many_pictures_are_computed_side_by_side_as_the_settings_say_and_threads_allow(
    tmp_path: Path, mine: str, threads: int, parallel: int, streams: int
) -> None:
    options = EngineOptions(precision="fp32", threads=threads, parallel=parallel, cache=tmp_path)
    with open_engine("openvino", mine, options) as engine:
        slot = engine.acquire(32, 32)
        assert isinstance(slot, OpenVinoSlot)
        assert slot.request.get_compiled_model().get_property("NUM_STREAMS") == streams
        assert (engine.info.batch, engine.info.depth) == (1, streams + 2), "none of them idles, and few wait"
        slot.release()


def test_the_slots_of_a_feed_that_is_gone_are_freed_with_their_size(tmp_path: Path, mine: str) -> None:
    options = EngineOptions(precision="fp32", threads=2, parallel=2, cache=tmp_path, slots=1)
    with open_engine("openvino", mine, options) as engine:
        slot = engine.acquire(32, 32)
        slot.memory = engine.new_memory()
        engine.submit([slot])
        slot.wait()
        gone = weakref.ref(slot)
        slot.release()
        del slot
        engine.acquire(64, 32).release()  # one size is kept
        gc.collect()
        assert gone() is None


def test_a_picture_that_failed_keeps_no_later_one_of_its_feed_waiting(
    tmp_path: Path, mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = EngineOptions(precision="fp32", threads=2, parallel=2, cache=tmp_path)
    with open_engine("openvino", mine, options) as engine:
        memory = engine.new_memory()
        slots = [engine.acquire(32, 32) for _ in range(2)]
        for slot in slots:
            slot.memory = memory
        engine.submit(slots[:1])
        failing = Failing(cast("OpenVinoSlot", slots[0]).request)
        monkeypatch.setattr(slots[0], "request", failing)
        engine.submit(slots[1:])
        slots[1].wait()
        assert failing.waited == 1
        with pytest.raises(EngineError, match="out of luck"):
            slots[0].wait()
        for slot in slots:
            slot.release()


@dataclass
class Gated:
    """A request that computes when it is let."""

    request: openvino.InferRequest
    gate: threading.Event = field(default_factory=threading.Event)

    def start_async(self) -> None:
        pass

    def wait(self) -> None:
        assert self.gate.wait(30)
        self.request.infer()

    def cancel(self) -> None:
        self.gate.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.request, name)


@dataclass
class Drowsy:
    """A request whose end one thread, named `late`, learns of later than all others."""

    request: openvino.InferRequest
    dozing: threading.Event = field(default_factory=threading.Event)
    awake: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        self.request.wait()
        if threading.current_thread().name == "late":
            self.dozing.set()
            assert self.awake.wait(30)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.request, name)


@dataclass
class Refusing:
    """A request that cannot be started."""

    request: openvino.InferRequest

    def start_async(self) -> None:
        raise RuntimeError("no luck today")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.request, name)


def last_picture(memory: Memory) -> np.ndarray:
    """Luma of what the feed's next picture would read."""
    assert memory._pasts is not None
    return memory._pasts[0]["past_y"].copy()


def of_one_feed(engine: Door, count: int, width: int = 32) -> list[Slot]:
    """Slots with noise in them, all of one feed."""
    memory, random = engine.new_memory(), np.random.default_rng(7)
    slots = [engine.acquire(width, 32) for _ in range(count)]
    for slot in slots:
        slot.y[:], slot.uv[:] = random.integers(0, 90, slot.y.shape), random.integers(90, 160, slot.uv.shape)
        slot.memory, slot.keep = memory, 0.9
    return slots


@pytest.fixture
def parallel_engine(tmp_path: Path, mine: str) -> Iterator[Door]:
    options = EngineOptions(precision="fp32", threads=2, parallel=2, cache=tmp_path, slots=4)
    with open_engine("openvino", mine, options) as engine:
        yield engine


def test_a_feed_whose_picture_takes_long_keeps_no_other_feed_waiting(
    parallel_engine: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = of_one_feed(parallel_engine, 2)
    gated = Gated(cast("OpenVinoSlot", first).request)
    monkeypatch.setattr(first, "request", gated)
    (other,) = of_one_feed(parallel_engine, 1, width=48)
    parallel_engine.submit([first])
    parallel_engine.submit([second])
    parallel_engine.submit([other])
    other.wait()
    other.release()
    gated.gate.set()
    for slot in (first, second):
        slot.wait()
        slot.release()


def test_who_learns_late_of_a_picture_that_others_had_long_ago_begins_nothing_in_its_slot(
    parallel_engine: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    (slot,) = of_one_feed(parallel_engine, 1)
    request = cast("OpenVinoSlot", slot).request
    drowsy, gated = Drowsy(request), Gated(request)
    monkeypatch.setattr(slot, "request", drowsy)
    parallel_engine.submit([slot])
    late = threading.Thread(target=slot.wait, name="late")
    late.start()
    assert drowsy.dozing.wait(30)
    slot.wait()
    slot.release()
    monkeypatch.setattr(slot, "request", gated)
    again, following = of_one_feed(parallel_engine, 2)
    assert again is slot
    parallel_engine.submit([again])
    parallel_engine.submit([following])
    drowsy.awake.set()
    late.join()
    assert cast("OpenVinoSlot", following).follows is again, "which is still being computed"
    gated.gate.set()
    for each in (again, following):
        each.wait()
        each.release()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_pictures_of_a_feed_are_computed_in_their_order_whichever_is_waited_for_first(
    parallel_engine: Door, order: Sequence[int]
) -> None:
    """Each reads what the one before has left."""
    wanted = []
    for slot in of_one_feed(parallel_engine, 3):
        parallel_engine.submit([slot])
        slot.wait()
        wanted.append(slot.y_out.copy())
        slot.release()
    slots = of_one_feed(parallel_engine, 3)
    for slot in slots:
        parallel_engine.submit([slot])
    for place in order:
        slots[place].wait()
        assert np.array_equal(slots[place].y_out, wanted[place])
    for slot in slots:
        slot.release()
    again = of_one_feed(parallel_engine, 1)
    parallel_engine.submit(again)
    again[0].wait()
    assert np.array_equal(again[0].y_out, wanted[0])
    again[0].release()


def test_a_picture_that_cannot_be_started_costs_no_other_one_and_its_feed_forgets_nothing(
    parallel_engine: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = of_one_feed(parallel_engine, 2)
    parallel_engine.submit(kept[:1])
    kept[0].wait()
    memory = kept[0].memory
    assert memory is not None
    left, last = parallel_engine.read_memory(memory), last_picture(memory)
    assert left.any()
    assert (last >= 0).all()
    monkeypatch.setattr(kept[1], "request", Refusing(cast("OpenVinoSlot", kept[1]).request))
    others = of_one_feed(parallel_engine, 1)
    parallel_engine.submit([kept[1], *others])
    others[0].wait()
    with pytest.raises(EngineError, match="cannot start a picture of 32x32: no luck today"):
        kept[1].wait()
    assert np.array_equal(parallel_engine.read_memory(memory), left)
    np.testing.assert_array_equal(last_picture(memory), last)
    for slot in (*kept, *others):
        slot.release()


def is_over(request: openvino.InferRequest) -> bool:
    try:
        return bool(request.wait_for(0))
    except RuntimeError as error:
        return "was canceled" in str(error)


@pytest.mark.parametrize("parallel", [1, 2])
def test_the_end_of_an_engine_waits_for_what_is_being_computed(tmp_path: Path, mine: str, parallel: int) -> None:
    """Requests write to memory that nothing else holds then."""
    options = EngineOptions(precision="fp32", threads=2, parallel=parallel, cache=tmp_path, slots=3)
    with open_engine("openvino", mine, options) as engine:
        slots = [engine.acquire(640, 360) for _ in range(3)]
        for slot in slots[:2]:
            slot.memory = engine.new_memory()
        slots[2].memory = slots[1].memory
        for slot in slots:
            engine.submit([slot])
    assert all(is_over(cast("OpenVinoSlot", slot).request) for slot in slots[:2])
    for slot in slots:
        slot.release()
        with pytest.raises(EngineError, match="closed"):
            slot.wait()


def test_what_a_picture_leaves_is_written_to_memory_of_its_own_when_its_feed_has_begun_anew(
    parallel_engine: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    (slot,) = of_one_feed(parallel_engine, 1)
    gated = Gated(cast("OpenVinoSlot", slot).request)
    monkeypatch.setattr(slot, "request", gated)
    parallel_engine.submit([slot])
    assert slot.memory is not None
    slot.memory.clear()
    gc.collect()
    numbers = cast("OpenVinoSlot", slot).numbers
    assert numbers is not None
    gated.gate.set()
    slot.wait()
    assert numbers[1].any()
    assert not parallel_engine.read_memory(slot.memory).any()
    slot.release()
