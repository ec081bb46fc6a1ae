"""What the TensorRT runtime frees when a feed or all of it ends, and why it may not begin."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines import ring, runtime_tensorrt
from engines.errors import EngineError, EngineMismatch, EngineMissing
from engines.fallback import is_left_behind
from engines.nvidia import cuda_engine
from engines.nvidia.gpu import NO_GPU, Gpu
from engines.ring import is_busy
from engines.runtime import EngineOptions, open_engine
from stream.publish import Publisher
from stream.relay import Relay
from stream.settings import FeedSettings, RelaySettings, Settings
from tests.clips import make_clip
from tests.tensorrt_bench import SIZE, Bench, FakePlans, bench, filled
from tests.waiting import DEADLINE, wait_until


def test_leaving_frees_all_device_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(monkeypatch) as b:
        memory = b.engine.new_memory()
        slot = filled(b.engine, 7)
        slot.memory, slot.keep = memory, 0.5
        b.engine.submit([slot])
        assert b.driver.allocations
    assert b.driver.allocations == {}, "nothing outlives the block"
    gc.collect()


def test_a_feed_that_ends_leaves_its_memory_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(monkeypatch) as b:
        slot = filled(b.engine, 7)
        slot.memory = b.engine.new_memory()
        b.engine.submit([slot])
        slot.wait()
        before = len(b.driver.allocations)
        for _ in range(3):
            slot.memory = b.engine.new_memory()
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
        anew, other = b.engine.new_memory(), b.engine.new_memory()
        _, left = other.swap()
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
        assert caplog.messages == ["engine: tensorrt did not stop within 0.05 s and was abandoned"]
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
        b.engine.set_limits(1, 1)
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


# Opening


def test_without_a_gpu_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_tensorrt, "find_gpu", lambda: NO_GPU)
    monkeypatch.setattr(runtime_tensorrt, "import_tensorrt", lambda: None)
    with pytest.raises(EngineMissing, match="needs an NVIDIA GPU and its driver, and none was found"):
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
