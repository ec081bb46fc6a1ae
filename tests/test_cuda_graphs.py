from __future__ import annotations

import pytest

from engines.errors import EngineError
from engines.nvidia.cuda_graphs import CapturedGraph, import_bindings
from tests.fake_cuda import FakeBindings, FakeCuda, Operation


def test_the_real_module_has_every_name_that_the_stand_in_has() -> None:
    real = import_bindings()
    calls = [name for name in vars(FakeBindings) if name.startswith("cu")]
    assert len(calls) == 6
    assert all(callable(getattr(real, name)) for name in calls)
    assert real.CUresult.CUDA_SUCCESS.name == "CUDA_SUCCESS"
    assert real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    assert int(real.CUstream(1234)) == 1234


def test_without_cuda_bindings_the_log_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.driver", None)
    with caplog.at_level("INFO"):
        assert import_bindings() is None
    assert "no CUDA graphs: pip install 'nightbridge[nvidia]' brings cuda-bindings" in caplog.text


def test_what_is_captured_runs_when_it_is_launched_and_each_time() -> None:
    driver = FakeCuda()
    bindings, ran = FakeBindings(driver), list[str]()
    with_context = driver.Device(0).retain_primary_context()
    with_context.push()
    stream = driver.Stream(1)
    graph = CapturedGraph(bindings, stream.handle, lambda: stream.add(Operation(lambda: ran.append("run"))))
    stream.synchronize()
    assert ran == []
    graph.launch(stream.handle)
    graph.launch(stream.handle)
    stream.synchronize()
    assert ran == ["run", "run"]
    assert bindings.held == 2
    del graph
    assert bindings.held == 0


def test_work_that_fails_leaves_the_stream_as_it_was_and_no_graph() -> None:
    driver = FakeCuda()
    bindings = FakeBindings(driver)
    driver.Device(0).retain_primary_context().push()
    stream = driver.Stream(1)

    def fail() -> None:
        raise EngineError("not while capturing")

    with pytest.raises(EngineError, match="not while capturing"):
        CapturedGraph(bindings, stream.handle, fail)
    assert stream.captured is None
    assert bindings.held == 0
