"""torch's engine for GPUs on a processor: streams that run at once, and graphs that compute again when replayed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch

from engines.cards import find_weights
from engines.colour import Colour
from engines.errors import EngineError
from engines.nvidia import cuda_engine, torch_cuda
from engines.nvidia.cuda_lanes import LANES
from engines.nvidia.torch_cuda import TorchCudaEngine, TorchLane
from engines.runtime import EngineOptions
from engines.runtime_torch import TorchEngine
from tests.command import ROOT
from tests.test_runtimes import dusk

SIZE = (33, 21)


WITHOUT_OPENVINO = """
import sys
class Missing:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("openvino", "nncf", "onnx", "onnxscript"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import engines.runtime_torch, engines.training.plan, tools.benchmarks.gpu
from engines.runtime import EngineOptions, open_engine
from engines.runtime_torch import TorchEngine
from engines.cards import find_weights
with TorchEngine(find_weights("field-lite"), EngineOptions()) as engine:
    print(engine.info)
"""


def test_torch_needs_no_openvino() -> None:
    """A machine that is lent for its GPU may have torch and little else."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_OPENVINO], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("torch fp32 on cpu")


class Stream:
    """Its work is done when it is asked for."""

    def __init__(self, *_: object) -> None: ...

    def wait_for_event(self, event: object) -> None: ...

    def synchronize(self) -> None: ...


class Event:
    """Long past."""

    def __init__(self, **_: object) -> None: ...

    def record(self, stream: object) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...


class Graph:
    """As `torch.cuda.CUDAGraph`: reads and writes the memory that it was captured with."""

    made: list[Graph]
    workspaces: set[str]
    """The memory that cuBLAS has taken on the stream of captures: outside of graphs, or in one."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[[], dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = []
        self.replays = 0
        self.made.append(self)

    def replay(self) -> None:
        self.replays += 1
        for compute, outputs in self.calls:
            for name, new in compute().items():
                outputs[name].copy_(new)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """All graphs that are captured from here on."""
    capturing: list[Graph] = []
    compute = TorchLane._compute

    def recorded(self: TorchLane, count: int) -> dict[str, torch.Tensor]:
        outputs = compute(self, count)
        if capturing:
            for output in outputs.values():
                output.zero_()  # a capture computes nothing
            capturing[-1].calls.append((lambda: compute(self, count), outputs))
        Graph.workspaces = Graph.workspaces or {f"graph {len(Graph.made)}" if capturing else "outside"}
        return outputs

    @contextmanager
    def capture(graph: Graph, **_: object) -> Iterator[None]:
        capturing.append(graph)
        yield
        assert Graph.workspaces == {f"graph {len(Graph.made)}"}, "of its own, since others are freed"
        capturing.pop()

    Graph.made, Graph.workspaces = [], set()
    monkeypatch.setattr(TorchLane, "_compute", recorded)
    monkeypatch.setattr(torch_cuda, "Stream", Stream)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    for name, stub in {
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": capture,
        "graph_pool_handle": lambda: None,
        "stream": lambda _: nullcontext(),
        "device": lambda _: nullcontext(),
        "current_stream": Stream,
        "empty_cache": lambda: None,
        "get_device_name": lambda _: "NVIDIA H200",
    }.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    monkeypatch.setattr(torch_cuda, "forget_workspaces", lambda: Graph.workspaces.clear())
    return Graph.made


def opened(batch: int = 3) -> TorchCudaEngine:
    options = EngineOptions(batch=batch, slots=6)
    return TorchCudaEngine(find_weights("field"), torch.device("cpu"), "fp32", options)


def test_batches_with_their_feeds_memories_equal_the_reference(graphs: list[Graph]) -> None:
    with (
        opened() as engine,
        TorchEngine(find_weights("field"), EngineOptions()) as reference,
    ):
        memory, expected_memory = engine.new_memory(), reference.new_memory()
        colours = [Colour("bt601"), Colour("bt709", full_range=True), Colour(grey=True)]
        for count in (1, 3, 2, 3):
            slots = [engine.acquire(*SIZE) for _ in range(count)]
            for seed, (slot, colour) in enumerate(zip(slots, colours, strict=False)):
                slot.y[:], slot.uv[:] = dusk(*SIZE, seed + count)
                slot.colour = colour
            slots[0].memory, slots[0].keep = memory, 0.9
            engine.submit(slots)
            for seed, slot in enumerate(slots):
                slot.wait()
                known = (expected_memory, 0.9) if seed == 0 else ()
                y, uv = reference.enhance(*dusk(*SIZE, seed + count), colours[seed], *known)
                assert np.abs(slot.y_out.astype(int) - y).max() <= 1
                assert np.abs(slot.uv_out.astype(int) - uv).max() <= 1
                slot.release()
        kept = engine._memories[memory].state["memory"].numpy()
        assert np.abs(kept - expected_memory.swap()[0]).max() < 1e-3
        assert np.abs(kept).max() > 0.1


def test_an_error_of_a_gpu_that_was_lost_is_not_hidden_by_those_of_its_end(
    graphs: list[Graph], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "empty_cache", lost)
    with pytest.raises(EngineError, match="on purpose"), opened():
        raise EngineError("a failure on purpose")
    assert [record.getMessage() for record in caplog.records] == [
        "torch: error while closing: CUDA error: unspecified launch failure"
    ]


def test_every_count_is_captured_before_a_size_is_ready_and_replayed_afterwards(graphs: list[Graph]) -> None:
    with opened(batch=4) as engine:
        engine.prepare(*SIZE)
        assert len(graphs) == 4 * LANES
        captured = {len(graph.calls[0][1]["y_out"]) for graph in graphs}
        assert captured == {1, 2, 3, 4}
        before = sum(graph.replays for graph in graphs)
        slots = [engine.acquire(*SIZE) for _ in range(3)]
        for slot in slots:
            slot.y[:], slot.uv[:] = dusk(*SIZE)
        engine.submit(slots)
        for slot in slots:
            slot.wait()
        assert len(graphs) == 4 * LANES, "nothing is captured while pictures wait"
        assert sum(graph.replays for graph in graphs) == before + 1


def test_a_count_that_was_not_captured_is_replayed_as_the_next_larger_one(
    graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_engine, "counts_to_see", lambda _: [3, 1])
    monkeypatch.setattr(torch_cuda, "WARM_UP", 0)
    with opened() as engine, TorchEngine(find_weights("field"), EngineOptions()) as reference:
        engine.prepare(*SIZE)
        assert len(graphs) == 2 * LANES
        slots = [engine.acquire(*SIZE) for _ in range(2)]
        for seed, slot in enumerate(slots):
            slot.y[:], slot.uv[:] = dusk(*SIZE, seed)
        engine.submit(slots)
        for seed, slot in enumerate(slots):
            slot.wait()
            y, _ = reference.enhance(*dusk(*SIZE, seed), Colour())
            assert np.abs(slot.y_out.astype(int) - y).max() <= 1
        assert len(graphs) == 2 * LANES


def test_the_network_on_the_gpu_is_channels_last_and_in_half_precision_where_asked(graphs: list[Graph]) -> None:
    half = TorchCudaEngine(find_weights("field"), torch.device("cpu"), "fp16", EngineOptions(batch=1))
    with opened(batch=1) as whole, half:
        for engine, kind in ((whole, torch.float32), (half, torch.float16)):
            kernels = [number for number in engine._graph.parameters() if number.dim() == 4 and number.shape[2] == 3]
            assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
            assert {kernel.dtype for kernel in kernels} == {kind}
