"""torch on an NVIDIA GPU, for when TensorRT is missing or refuses it: half precision, channels last, CUDA graphs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.cards import NUMBERS, Weights
from engines.checkpoint import load_network
from engines.door import EngineInfo, Numbers
from engines.nvidia.cuda_engine import CudaEngine
from engines.nvidia.cuda_lanes import LANES, Device, Lane, Lanes
from engines.nvidia.gpu import prepare_primary_context
from engines.padding import past_shapes
from engines.picture import INPUTS, OUTPUTS, HalfNetwork, PictureGraph
from engines.runtime import EngineOptions

WARM_UP = 3
"""Runs before a capture, in which libraries choose kernels and allocate memory."""
CAPTURING = threading.Lock()
"""torch captures one graph at a time in a process."""


class Stream(torch.cuda.Stream):
    """torch's stream, with the interface of `engines.nvidia.cuda_lanes.Stream`."""

    def wait_for_event(self, event: Any, /) -> None:
        """See `engines.nvidia.cuda_lanes.Stream`."""
        self.wait_event(event)


class TorchDevice:
    """A GPU through torch. See `engines.nvidia.cuda_lanes.Device`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @contextmanager
    def current(self) -> Iterator[None]:
        """See `Device`."""
        with torch.cuda.device(self.device), torch.inference_mode():
            yield

    def stream(self) -> Any:
        """See `Device`."""
        return Stream(self.device)  # type: ignore[no-untyped-call]

    def event(self, *, sleeps: bool = False) -> Any:
        """See `Device`."""
        return torch.cuda.Event(blocking=sleeps)  # type: ignore[no-untyped-call]

    def locked(self, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
        """See `Device`."""
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        return torch.zeros(shape, dtype=kind).pin_memory().numpy()

    def copy(self, numbers: NDArray[Any]) -> Any:
        """See `Device`."""
        return torch.from_numpy(numbers.copy()).to(self.device)

    def write(self, memory: Any, numbers: Numbers, stream: Any) -> None:
        """See `Device`."""
        with torch.cuda.stream(stream):
            memory.copy_(torch.from_numpy(numbers), non_blocking=True)

    def read(self, memory: Any, numbers: Numbers, stream: Any) -> None:
        """See `Device`."""
        with torch.cuda.stream(stream):
            torch.from_numpy(numbers).copy_(memory, non_blocking=True)


class TorchCudaEngine(CudaEngine):
    """Captures the picture graph once for each size, lane and count of pictures, and replays it."""

    def __init__(self, weights: Weights, device: torch.device, precision: str, options: EngineOptions) -> None:
        info = EngineInfo(
            runtime="torch",
            device=torch.cuda.get_device_name(device),
            precision=precision,
            weights=weights.card.name,
            weights_id=weights.id,
            largest_batch=options.batch,
        )
        super().__init__(info, options.slots)
        self._weights = weights
        self._gpu = TorchDevice(device)
        self._graph: PictureGraph | None = None

    def _open_device(self) -> Device:
        prepare_primary_context()
        torch.backends.cudnn.benchmark = False  # it would build all kernels for each convolution, size and count
        torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32
        network = load_network(self._weights.file(NUMBERS))
        graph = PictureGraph(HalfNetwork(network) if self.info.precision == "fp16" else network)
        self._graph = graph.eval().to(self._gpu.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._memory_size = network.config.memory_size
        return self._gpu

    def _make_lanes(self, device: Device, width: int, height: int) -> Lanes:
        assert self._graph is not None
        assert isinstance(device, TorchDevice)
        batch, gpu = self.info.largest_batch, device.device
        state: dict[str, tuple[int, ...]] = {
            "memory": (self._memory_size,),
            **past_shapes(self._graph.network.config, width, height),
        }
        shapes = {
            "y": (1, height, width),
            "uv": (2, (height + 1) // 2, (width + 1) // 2),
            "colour": (2, 3, 4),
            "keep": (1,),
        }
        given = zeros(state, batch, gpu)
        left = zeros({f"{name}_out": shape for name, shape in state.items()}, batch, gpu)
        lanes = Lanes(
            [TorchLane(self._graph, device, zeros(shapes, batch, gpu) | given, left) for _ in range(LANES)], state
        )
        torch.cuda.current_stream().synchronize()  # other streams do not wait for what was filled on this one
        return lanes

    def _close_device(self) -> None:
        self._graph = None
        torch.cuda.empty_cache()


def zeros(shapes: Mapping[str, tuple[int, ...]], batch: int, device: torch.device) -> dict[str, Tensor]:
    """Device memory for inputs or outputs of the graph; `shapes` are without the batch."""
    types = {"y": torch.uint8, "uv": torch.uint8, "past_y": torch.float16, "past_uv": torch.float16}
    return {
        name: torch.zeros((batch, *shape), dtype=types.get(name.removesuffix("_out"), torch.float32), device=device)
        for name, shape in shapes.items()
    }


class TorchLane(Lane):
    """Inputs for the largest batch on the device, and a captured graph for each count of pictures that has come."""

    def __init__(
        self, graph: PictureGraph, device: TorchDevice, inputs: dict[str, Tensor], left: dict[str, Tensor]
    ) -> None:
        """`left` takes the outputs that feeds keep, and the lanes share it and the inputs that these come back as: all
        are used in the order of the compute stream."""
        super().__init__(device)
        self._graph = graph
        self._inputs, self._left = inputs, left
        self._pool = torch.cuda.graph_pool_handle()  # shared by all graphs, since one runs at a time
        self._captured: dict[int, tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]] = {}
        self._outputs: dict[str, Tensor] = {}

    def send(self, plane: NDArray[Any], name: str, index: int, stream: Any) -> None:
        """See `Lane`."""
        with torch.cuda.stream(stream):
            to = self._inputs[name]
            to = to[index : index + plane.size // to.stride(0)]
            to.copy_(torch.from_numpy(plane).view(to.shape), non_blocking=True)

    def fetch(self, plane: NDArray[Any], name: str, index: int, stream: Any) -> None:
        """See `Lane`."""
        with torch.cuda.stream(stream):
            made = self._outputs[name][index]
            torch.from_numpy(plane).view(made.shape).copy_(made, non_blocking=True)

    def recall(self, state: Mapping[str, Any], index: int, stream: Any) -> None:
        """See `Lane`."""
        with torch.cuda.stream(stream):
            for name, memory in state.items():
                self._inputs[name][index].copy_(memory[0], non_blocking=True)

    def retain(self, state: Mapping[str, Any], index: int, stream: Any) -> None:
        """See `Lane`."""
        with torch.cuda.stream(stream):
            for name, memory in state.items():
                memory[0].copy_(self._left[f"{name}_out"][index], non_blocking=True)

    def run(self, count: int, stream: Any) -> None:
        """See `Lane`. A count is captured when it first comes, during warm-up: that takes as long as a few batches."""
        with torch.cuda.stream(stream):
            if count not in self._captured:
                self._captured[count] = self._capture(count, stream)
            graph, self._outputs = self._captured[count]
            graph.replay()

    def _capture(self, count: int, stream: Any) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]:
        with CAPTURING:
            for _ in range(WARM_UP):
                self._compute(count)
            stream.synchronize()
            forget_workspaces()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                outputs = self._compute(count)
            forget_workspaces()
        return graph, outputs

    def _compute(self, count: int) -> dict[str, Tensor]:
        """The enhanced planes of the first `count` pictures; the other outputs are written to memory that exists, since
        each captured graph would keep its own."""
        outputs = dict(zip(OUTPUTS, self._graph(*(self._inputs[name][:count] for name in INPUTS)), strict=True))
        for name, kept in self._left.items():
            kept[:count].copy_(outputs.pop(name))
        return outputs


def forget_workspaces() -> None:
    """Have cuBLAS allocate new workspaces when it next needs them; nothing may be under way outside of graphs.

    cuBLAS keeps one workspace for each stream. So one graph would use the workspace allocated in another, which frees
    it when it ends.
    """
    torch._C._cuda_clearCublasWorkspaces()
