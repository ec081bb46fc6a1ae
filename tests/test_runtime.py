"""Which runtime is chosen, and what is told of those that are not."""

from __future__ import annotations

import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest

from engines import runtime
from engines.cards import Weights, find_weights
from engines.door import Door
from engines.errors import EngineMismatch, EngineMissing
from engines.fallback import FallbackEngine
from engines.nvidia.plans import FILES as OF_TENSORRT
from engines.runtime import PRECISIONS, EngineOptions, open_engine, open_with_fallback
from engines.runtime_openvino import FILES as OF_OPENVINO
from tests.command import ROOT
from tests.fake_engine import Fake
from tests.waiting import wait_until

WITHOUT_DRIVER = """
import logging, sys
import engines.nvidia.gpu
engines.nvidia.gpu.DRIVER = "libno-such-driver.so"
from engines.runtime import open_with_fallback
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
with open_with_fallback() as engine:
    print(type(engine).__name__)
print(sorted({"torch", "tensorrt", "tensorrt_rtx", "pycuda"} & set(sys.modules)))
"""


def test_the_settings_allow_the_precisions_that_runtimes_take() -> None:
    assert set(PRECISIONS["openvino"]) == OF_OPENVINO.keys()
    assert set(PRECISIONS["tensorrt"]) == OF_TENSORRT.keys()
    assert PRECISIONS.keys() == runtime.RUNTIMES.keys()


class Machine:
    """What can be opened here; a runtime that is not named is missing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *works: str, driver: bool = True, refusing: str = "") -> None:
        """`refusing` works, too, but takes no picture."""
        self.asked: list[tuple[str, EngineOptions]] = []
        self._works = works
        self._refusing = refusing
        monkeypatch.setattr(runtime, "has_driver", lambda: driver)
        for name, module in runtime.RUNTIMES.items():
            monkeypatch.setitem(sys.modules, module, SimpleNamespace(open_engine=self._opener(name)))

    def _opener(self, name: str):  # type: ignore[no-untyped-def]
        def opener(weights: Weights, options: EngineOptions) -> Door:
            self.asked.append((name, options))
            if name not in self._works:
                raise EngineMissing(f"{name} is not here")
            engine = Fake(name)
            engine.broken = "make" if name == self._refusing else None
            return engine

        return opener


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.fixture(autouse=True)
def verbose(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


@pytest.mark.parametrize(
    ("works", "line"),
    [
        (("tensorrt", "torch", "openvino"), "engine: tensorrt {}"),
        (("torch", "openvino"), "engine: torch {}; tensorrt: tensorrt is not here"),
        (("openvino",), "engine: openvino {}; tensorrt: tensorrt is not here; torch: torch is not here"),
    ],
)
def test_auto_takes_the_best_that_works_and_says_in_one_line_why(
    works: tuple[str, ...], line: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(monkeypatch, *works)
    assert open_engine("auto").info.runtime == works[0]
    assert told(caplog) == [line.format("uint8 on test, weights none")]
    assert [(name, options.cuda_only) for name, options in machine.asked] == [
        ("tensorrt", True),
        ("torch", True),
        ("openvino", False),
    ][: 4 - len(works)]


def test_auto_passes_over_a_gpu_that_refuses_its_code(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Machine(monkeypatch, "tensorrt", "torch", "openvino", refusing="tensorrt")
    assert open_engine("auto").info.runtime == "torch"
    assert told(caplog) == ["engine: torch uint8 on test, weights none; tensorrt: no make on purpose"]
    with open_with_fallback() as engine:
        wait_until(lambda: engine.prepare(64, 64) or engine.info.runtime == "torch", "the next runtime")
        assert engine.failures == {"tensorrt": 1, "torch": 0, "openvino": 0}


class Taken(Fake):
    """Its device is somebody else's, which its library tells in its own way."""

    def _open(self) -> None:
        raise RuntimeError("CUDA error: out of memory")


def test_auto_passes_over_a_gpu_that_cannot_be_had_when_it_is_opened(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Machine(monkeypatch, "openvino")
    taken = Taken("torch")

    def told_at_once(weights: Weights, options: EngineOptions) -> Door:
        raise RuntimeError("CUDA error: all devices are busy")

    monkeypatch.setattr(sys.modules[runtime.RUNTIMES["tensorrt"]], "open_engine", told_at_once)
    monkeypatch.setattr(sys.modules[runtime.RUNTIMES["torch"]], "open_engine", lambda *_: taken)
    assert open_engine("auto").info.runtime == "openvino"
    assert "tensorrt: runtime tensorrt cannot be opened: CUDA error: all devices are busy" in told(caplog)[0]
    assert "torch: CUDA error: out of memory" in told(caplog)[0]
    assert taken.closed.is_set(), "what was taken of it is given back"


def test_no_runtime_is_tried_on_a_gpu_that_has_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(monkeypatch, "tensorrt", "torch", "openvino")
    monkeypatch.setattr(runtime, "is_sound", lambda: False)
    assert open_engine("auto").info.runtime == "openvino"
    assert [name for name, _ in machine.asked] == ["openvino"]
    assert "tensorrt: the GPU has failed" in told(caplog)[0]


def test_only_the_relay_tells_its_engine_without_being_asked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Machine(monkeypatch, "openvino", driver=False)
    open_engine()
    open_with_fallback()
    assert [record.levelname for record in caplog.records] == ["DEBUG", "INFO"]


def test_without_an_nvidia_driver_auto_tries_nothing_that_needs_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(monkeypatch, "tensorrt", "torch", "openvino", driver=False)
    for opened in (open_engine(), open_with_fallback()):
        assert opened.info.runtime == "openvino"
    assert [name for name, _ in machine.asked] == ["openvino"] * 2
    reason = "no NVIDIA driver with a GPU"
    assert told(caplog) == [f"engine: openvino uint8 on test, weights none; tensorrt: {reason}; torch: {reason}"] * 2


def test_without_an_nvidia_driver_auto_imports_neither_torch_nor_tensorrt() -> None:
    said = subprocess.run(
        [sys.executable, "-c", WITHOUT_DRIVER], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout.splitlines()
    assert said[0].startswith("engine: openvino ")
    assert said[1:] == ["OpenVinoEngine", "[]"]


def test_torch_without_cuda_is_nothing_for_auto_but_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(runtime, "has_driver", lambda: True)
    with pytest.raises(EngineMissing, match="torch finds no CUDA device"):
        runtime.open_as_auto("torch", find_weights("field"), EngineOptions())
    assert open_engine("torch").info.device == "cpu"


def test_a_runtime_that_is_named_is_used_alone_and_its_absence_is_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(monkeypatch, "torch", "openvino")
    for opener in (open_engine, open_with_fallback):
        with pytest.raises(EngineMissing, match="tensorrt is not here"):
            opener("tensorrt")
        assert opener("torch").info.runtime == "torch"
    assert [(name, options.cuda_only) for name, options in machine.asked] == [
        ("tensorrt", False),
        ("torch", False),
    ] * 2
    assert told(caplog) == ["engine: torch uint8 on test, weights none"] * 2


def test_a_runtime_that_cannot_be_imported_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(runtime.RUNTIMES, "tensorrt", "engines.runtime_nowhere")
    with pytest.raises(
        EngineMissing, match=r"^runtime tensorrt cannot be loaded: No module named 'engines\.runtime_now"
    ):
        open_engine("tensorrt")


def test_the_error_of_auto_is_that_of_the_last_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch)
    with pytest.raises(EngineMissing, match="openvino is not here"):
        open_engine()


def test_the_relay_begins_on_the_cpu_until_a_better_runtime_is_ready(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(monkeypatch, "torch", "openvino")
    with open_with_fallback() as engine:
        assert isinstance(engine, FallbackEngine)
        assert engine.info.runtime == "openvino"
        engine.prepare(32, 32)
        wait_until(lambda: len(told(caplog)) == 3, "the change")
    assert [name for name, _ in machine.asked] == ["openvino", "tensorrt", "torch"]
    assert told(caplog) == [
        "engine: openvino uint8 on test, weights none, until tensorrt or torch is ready",
        "engine: tensorrt cannot be used: tensorrt is not here",
        "engine: torch uint8 on test, weights none takes over 32x32 from openvino",
    ]


def test_where_the_cpu_cannot_do_it_the_relay_uses_what_can_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Machine(monkeypatch, "tensorrt")
    assert open_with_fallback().info.runtime == "tensorrt"
    assert told(caplog)[0] == "engine: no fallback, since openvino cannot be opened: openvino is not here"


def test_an_unknown_runtime_is_named_with_those_that_are_known() -> None:
    with pytest.raises(EngineMismatch, match="no runtime 'tensort': it must be one of auto, tensorrt, torch, openvino"):
        open_with_fallback("tensort")
