"""torch on an NVIDIA GPU, for when TensorRT is missing or refuses it: half precision, channels last, CUDA graphs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
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

    def copy(self, numbers: Numbers) -> Any:
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
        shapes = {
            "y": (1, height, width),
            "uv": (2, (height + 1) // 2, (width + 1) // 2),
            "colour": (2, 3, 4),
            "memory": (self._memory_size,),
            "keep": (1,),
        }
        lanes = Lanes([TorchLane(self._graph, device, shapes, self.info.largest_batch) for _ in range(LANES)])
        torch.cuda.current_stream().synchronize()  # other streams do not wait for what was filled on this one
        return lanes

    def _close_device(self) -> None:
        self._graph = None
        torch.cuda.empty_cache()


class TorchLane(Lane):
    """Inputs for the largest batch on the device, and a captured graph for each count of pictures that has come."""

    def __init__(
        self, graph: PictureGraph, device: TorchDevice, shapes: dict[str, tuple[int, ...]], largest_batch: int
    ) -> None:
        super().__init__(device)
        self._graph = graph
        self._inputs = {
            name: torch.zeros(
                (largest_batch, *shapes[name]),
                dtype=torch.uint8 if name in ("y", "uv") else torch.float32,
                device=device.device,
            )
            for name in INPUTS
        }
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

    def recall(self, memory: Any, index: int, stream: Any) -> None:
        """See `Lane`."""
        with torch.cuda.stream(stream):
            self._inputs["memory"][index].copy_(memory[0], non_blocking=True)

    def retain(self, memory: Any, index: int, stream: Any) -> None:
        """See `Lane`."""
        with torch.cuda.stream(stream):
            memory[0].copy_(self._outputs["memory_out"][index], non_blocking=True)

    def run(self, count: int, stream: Any) -> None:
        """See `Lane`. A count is captured when it first comes, during warm-up: that takes as long as a few batches."""
        with torch.cuda.stream(stream):
            if count not in self._captured:
                self._captured[count] = self._capture(count, stream)
            graph, self._outputs = self._captured[count]
            graph.replay()

    def _capture(self, count: int, stream: Any) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]:
        inputs = [self._inputs[name][:count] for name in INPUTS]
        with CAPTURING:
            for _ in range(WARM_UP):
                self._graph(*inputs)
            stream.synchronize()
            forget_workspaces()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                outputs = self._graph(*inputs)
            forget_workspaces()
        return graph, dict(zip(OUTPUTS, outputs, strict=True))


def forget_workspaces() -> None:
    """Have cuBLAS allocate new workspaces when it next needs them; nothing may be under way outside of graphs.

    cuBLAS keeps one workspace for each stream. So one graph would use the workspace allocated in another, which frees
    it when it ends.
    """
    torch._C._cuda_clearCublasWorkspaces()
