"""Several engines as one: nothing is lost when one takes over from another, and little when one fails."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest

from engines import fallback
from engines.cards import find_weights
from engines.colour import Colour
from engines.door import Door, Slot
from engines.errors import EngineError, EngineMismatch, EngineMissing
from engines.evaluation.scores import psnr
from engines.fallback import FallbackEngine
from engines.runtime import EngineOptions, open_engine
from engines.runtime_torch import TorchEngine
from stream.metrics import FeedFigures
from stream.monitor.health import Health
from stream.publish import Publisher
from stream.relay import Relay
from tests.clips import make_clip, read_number
from tests.doubling import DoublingEngine
from tests.test_pipeline import decoded, luma, recording, settings, watched
from tests.test_runtimes import dusk
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
        self._remembers = 1

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


# Through the relay


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


def page(health: Health, path: str) -> str:
    connection = HTTPConnection(health.address, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def test_while_a_better_engine_is_made_ready_the_last_one_enhances_and_the_change_loses_nothing(tmp_path: Path) -> None:
    pace = threading.Semaphore(20)
    last, better = Fake("last", pace), Fake("better")
    better.gate.clear()
    clip = make_clip(tmp_path / "clip.mp4", pictures=60)
    with several(last, better) as engine, relayed(engine, clip) as (relay, health, numbers):
        wait_until(lambda: figures(relay).published == 20, "pictures of the last engine")
        assert json.loads(page(health, "/status"))["engine"]["runtime"] == "last"
        better.gate.set()
        wait_until(lambda: engine.info == better.info, "the change")
        pace.release(100)
        assert relay.wait(DEADLINE)
        assert json.loads(page(health, "/status"))["engine"]["runtime"] == "better"
    assert numbers == list(range(60))
    assert sum(last.batches) == 22  # two were in the engine
    assert sum(better.batches) == 38


@pytest.mark.parametrize("step", ["start", "finish"])
def test_a_failing_engine_costs_what_was_in_it_and_is_told_once_everywhere(
    tmp_path: Path, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    pace = threading.Semaphore(20)
    last, better = Fake("last"), Fake("better", pace)
    with several(last, better, ready=SIZE) as engine:
        with relayed(engine, make_clip(tmp_path / "clip.mp4", pictures=60)) as (relay, health, numbers):
            wait_until(lambda: figures(relay).published == 20, "pictures of the better engine")
            assert page(health, "/healthz") == "ok\n"
            assert 'nightbridge_engine_failures_total{runtime="better"} 0.0' in page(health, "/metrics")
            better.broken = step
            pace.release(100)
            assert relay.wait(DEADLINE)
            status = json.loads(page(health, "/status"))["engine"]
            metrics, live = page(health, "/metrics"), page(health, "/healthz")
        counted = figures(relay)
    lost = counted.lost["engine"]
    assert lost == 1 if step == "start" else 1 <= lost <= 2
    assert len(numbers) == counted.published == 60 - lost
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 59
    assert errors(caplog) == [f"engine: last goes on, since better failed: no {step} on purpose"]
    assert (status["runtime"], status["reason"]) == ("last", f"better failed: no {step} on purpose")
    assert status["failures"] == {"better": 1, "last": 0}
    assert live == "ok, but engines have failed: better\n"
    assert 'nightbridge_engine_failures_total{runtime="better"} 1.0' in metrics
    assert 'nightbridge_engine_failures_total{runtime="last"} 0.0' in metrics
    assert 'nightbridge_engine_info{precision="uint8",runtime="last",weights="none"} 1.0' in metrics


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
    assert errors(caplog) == ["engine: last goes on, since better failed for 64x64: no make on purpose"]


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
        engine.allow(1, 2)
        opening.set()
        await_takeover(engine, better, (32, 32))
        engine.acquire(32, 32)
        with pytest.raises(TimeoutError):
            engine.acquire(32, 32, timeout=0.01)
        engine.allow(2, 2)
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
            before, after = slot.memory.turn()
            self.numbers += [float(before[0, 0]), slot.keep]
            self.under_way = slot, before, after

    def _finish(self, slot: Slot) -> None:
        super()._finish(slot)
        ours, before, after = self.under_way
        assert ours is slot
        after[:] = before + 1


def counted(engine: Door, *slots: Slot) -> None:
    memory = engine.remember()
    for slot in slots:
        slot.memory, slot.keep = memory, 0.9
        engine.submit([slot])


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
        memory, slot = engine.remember(), engine.acquire(32, 32)
        slot.memory = memory
        engine.submit([slot])
        slot.wait()
        for numbers in memory.turn():
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
        memory, held = engine.remember(), engine.acquire(32, 32)
        for numbers in memory.turn():
            numbers[:] = 7  # from before the better engine took over
        better.broken = "make"  # no room for one more slot: from now on the size is the last engine's
        for slot in (held, engine.acquire(32, 32)):
            slot.memory, slot.keep = memory, 0.9
            engine.submit([slot])
            slot.wait()
        assert engine.failures["better"] == 1
    assert last.numbers == [0, 0]


# Opening and closing


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
        ("ERROR", "engine: last goes on, since second failed: CUDA error 999"),
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


def test_the_end_leaves_no_thread_and_closes_all() -> None:
    last, better = Fake("last"), Fake("better")
    before = threading.active_count()
    with several(last, better, ready=(32, 32)) as engine:
        slot = engine.acquire(32, 32)
    wait_until(lambda: threading.active_count() <= before, "the end of all threads")
    assert last.closed.is_set()
    assert better.closed.is_set()
    slot.release()
    for use in (lambda: engine.acquire(32, 32), lambda: engine.submit([slot]), slot.wait, engine.remember):
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
        "engine: nightbridge-engine is left behind, busy for more than 0.05 s"
    ]
    better.gate.set()
    assert better.closed.wait(DEADLINE)
    engine._readying.join(DEADLINE)
    assert not engine._readying.is_alive()


# Real engines


def test_pictures_are_the_same_across_a_change_of_runtime(tmp_path: Path) -> None:
    """OpenVINO, then torch on the CPU, which passes as the better one here; the feed's memory goes along."""
    options = EngineOptions(precision="fp32", cache=tmp_path)
    opening = threading.Event()

    def open_torch() -> Door:
        assert opening.wait(DEADLINE)
        return TorchEngine(find_weights("field"), options)

    def film(engine: Door, change: Callable[[], None]) -> list[np.ndarray]:
        memory, made = engine.remember(), []
        for seed in range(6):
            made.append(engine.enhance(*dusk(64, 48, seed), Colour(), memory, 0.9)[0])
            if seed == 2:
                change()
        return made

    with TorchEngine(find_weights("field"), options) as reference:
        expected = film(reference, lambda: None)
    with FallbackEngine(open_engine("openvino", "field", options), {"torch": open_torch}) as engine:

        def change() -> None:
            assert engine.info.runtime == "openvino"
            opening.set()
            engine.prepare(64, 48)
            wait_until(lambda: engine.info.runtime == "torch", "the change")

        made = film(engine, change)
        assert engine.failures == {"torch": 0, "openvino": 0}
    assert min(map(psnr, made, expected)) > 58


class Unwilling(Fake):
    """Fails as soon as it is told how much it may keep."""

    def allow(self, slots: int, sizes: int) -> None:
        raise EngineError(f"no room for {slots} of {sizes} on purpose")


def test_an_engine_that_fails_at_once_leaves_its_place_to_the_next() -> None:
    first, second = Unwilling("tensorrt"), Fake("torch")
    engine = FallbackEngine(Fake("openvino"), {"tensorrt": lambda: first, "torch": lambda: second})
    engine.allow(4, 4)
    with engine:
        await_takeover(engine, second, (32, 32))
        assert first.closed.is_set()
        assert engine.failures == {"tensorrt": 1, "torch": 0, "openvino": 0}
