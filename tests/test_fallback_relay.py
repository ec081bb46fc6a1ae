"""Several engines as one, in a relay: nothing is lost when one takes over, and little when one fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest

from engines.cards import find_weights
from engines.colour import Colour
from engines.door import Door
from engines.evaluation.scores import psnr
from engines.fallback import FallbackEngine
from engines.runtime import EngineOptions, open_engine
from engines.runtime_torch import TorchEngine
from stream.monitor.health import Health
from tests.clips import make_clip
from tests.fake_engine import SIZE, Fake, errors, figures, relayed, several
from tests.test_runtimes import dusk
from tests.waiting import DEADLINE, wait_until

# Through the relay


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
    assert errors(caplog) == [f"engine: falling back to last: better failed: no {step} on purpose"]
    assert (status["runtime"], status["reason"]) == ("last", f"better failed: no {step} on purpose")
    assert status["failures"] == {"better": 1, "last": 0}
    assert live == "ok, but engines have failed: better\n"
    assert 'nightbridge_engine_failures_total{runtime="better"} 1.0' in metrics
    assert 'nightbridge_engine_failures_total{runtime="last"} 0.0' in metrics
    assert 'nightbridge_engine_info{precision="uint8",runtime="last",weights="none"} 1.0' in metrics


# Real engines


def test_pictures_are_the_same_across_a_change_of_runtime(tmp_path: Path) -> None:
    """OpenVINO, then torch on the CPU, which passes as the better one here; the feed's memory goes along."""
    options = EngineOptions(precision="fp32", cache=tmp_path)
    opening = threading.Event()

    def open_torch() -> Door:
        assert opening.wait(DEADLINE)
        return TorchEngine(find_weights("field"), options)

    def film(engine: Door, change: Callable[[], None]) -> list[np.ndarray]:
        memory, made = engine.new_memory(), []
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
