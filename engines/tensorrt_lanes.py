"""What the batches of one picture size run in with TensorRT: a plan, and lanes that each have execution contexts.

Batches are started as CUDA graphs: TensorRT-RTX captures its own, TensorRT is captured here. What is captured holds
only as long as its context's shapes stay as they were, so each count of pictures has a context of its own there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.cuda_graphs import CapturedGraph, import_bindings
from engines.cuda_lanes import LANES, Lane, Lanes
from engines.errors import EngineError
from engines.plans import PlanKey, Plans
from engines.tensorrt_library import Library

if TYPE_CHECKING:
    from engines.runtime_tensorrt import PycudaDevice

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tensor:
    """An input or output of a plan."""

    name: str
    shape: tuple[int, ...]
    """Of one picture."""
    octets: int
    """Of one picture."""
    is_input: bool


class PlanLanes(Lanes):
    """The lanes of a plan. What TensorRT-RTX compiles when a plan is first run is kept for the next time."""

    def __init__(
        self, plan: Any, library: Library, device: PycudaDevice, largest_batch: int, kept: tuple[Plans, PlanKey]
    ) -> None:
        super().__init__([])  # first of all, since what comes first ends first where this fails
        self._kept, self._compiled, self._config = kept, None, None
        bindings = import_bindings() if library.times_kernels else None
        if not library.times_kernels:
            trt = library.module
            self._config = config = plan.create_runtime_config()
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER  # the usual one compiles while pictures come
            config.dynamic_shapes_kernel_specialization_strategy = eager
            self._compiled = config.create_runtime_cache()
            plans, key = kept
            if before := plans.load_cache(key):
                self._compiled.deserialize(before)  # one that does not fit is refused, and made anew
            config.set_runtime_cache(self._compiled)
        tensors = describe(plan, library)
        contexts = Contexts(library, plan, self._config, device, apart=bindings is not None)
        for _ in range(LANES):
            self._lanes.append(PlanLane(contexts, tensors, device, largest_batch, bindings))

    def keep(self) -> None:
        """See `Lanes`."""
        if self._compiled is not None:
            plans, key = self._kept
            if (compiled := self._compiled.serialize()) is not None:
                plans.store_cache(key, bytes(compiled))

    def close(self) -> None:
        """See `Lanes`. The contexts end before what they were made with."""
        super().close()
        self._config = self._compiled = None


@dataclass(frozen=True)
class Contexts:
    """How the execution contexts of a plan are made."""

    library: Library
    plan: Any
    config: Any
    """Of TensorRT-RTX."""
    device: PycudaDevice
    apart: bool
    """Whether each count of pictures has its own. They share what they need besides inputs and outputs."""

    def scratch(self) -> Any:
        """Device memory for all contexts of a lane, one of which runs at a time; None where each has its own."""
        return self.device.driver.mem_alloc(max(1, self.plan.device_memory_size_v2)) if self.apart else None

    def make(self, scratch: Any) -> Any:
        """An execution context; raises `EngineError` where there is none."""
        if self.apart:
            strategy = self.library.module.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self.plan.create_execution_context(strategy)
        else:
            context = self.plan.create_execution_context(*([self.config] if self.config else []))
        if context is None:
            raise EngineError("TensorRT makes no execution context: is there too little GPU memory?")
        if self.apart:
            context.set_device_memory(int(scratch), self.plan.device_memory_size_v2)
        return context


class PlanLane(Lane):
    """Execution contexts and the device memory of their inputs and outputs."""

    def __init__(
        self,
        contexts: Contexts,
        tensors: Sequence[Tensor],
        device: PycudaDevice,
        largest_batch: int,
        bindings: Any = None,
    ) -> None:
        """`bindings` capture a graph for each count of pictures; without them TensorRT is called each time."""
        super().__init__(device)
        self._driver = device.driver
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self._memory = {tensor.name: self._driver.mem_alloc(largest_batch * tensor.octets) for tensor in tensors}
        self._making, self._scratch = contexts, contexts.scratch()
        self._contexts: dict[int, Any] = {}
        self._shaped: dict[int, int] = {}
        """For how many pictures each context has its shapes."""
        self._context(largest_batch)
        self._seen: set[int] = set()
        """Counts that were run."""
        self._bindings = bindings
        self._graphs: dict[int, CapturedGraph] = {}

    def send(self, plane: NDArray[Any], name: str, index: int, stream: Any) -> None:
        """See `Lane`."""
        self._driver.memcpy_htod_async(self._address(name, index), plane, stream)

    def fetch(self, plane: NDArray[Any], name: str, index: int, stream: Any) -> None:
        """See `Lane`."""
        self._driver.memcpy_dtoh_async(plane, self._address(name, index), stream)

    def recall(self, memory: Any, index: int, stream: Any) -> None:
        """See `Lane`."""
        octets = self._tensors["memory"].octets
        self._driver.memcpy_dtod_async(self._address("memory", index), int(memory), octets, stream)

    def retain(self, memory: Any, index: int, stream: Any) -> None:
        """See `Lane`."""
        octets = self._tensors["memory"].octets
        self._driver.memcpy_dtod_async(int(memory), self._address("memory_out", index), octets, stream)

    def run(self, count: int, stream: Any) -> None:
        """See `Lane`. A count is captured when it comes for the second time: what TensorRT does in the first run after
        a change of shapes does not belong into a graph."""
        if count in self._seen and count not in self._graphs and self._bindings is not None:
            self._capture(count, stream)
        if count in self._graphs:
            self._graphs[count].launch(stream.handle)
        else:
            self._start(count, stream)

    def _capture(self, count: int, stream: Any) -> None:
        """Keep what a batch is started with as a graph; where that fails there are no graphs from now on."""
        try:
            self._graphs[count] = CapturedGraph(self._bindings, stream.handle, lambda: self._start(count, stream))
        except EngineError as error:
            log.warning("no CUDA graphs: %s", str(error))  # its frames hold what must be freed now
            self._bindings = None

    def _start(self, count: int, stream: Any) -> None:
        if not self._context(count).execute_async_v3(stream.handle):
            raise EngineError(f"TensorRT did not start a batch of {count}")
        self._seen.add(count)

    def _context(self, count: int) -> Any:
        """The context for so many pictures, its shapes set."""
        key = count if self._making.apart else 0
        if key not in self._contexts:
            self._contexts[key] = self._making.make(self._scratch)
            for name, memory in self._memory.items():
                self._contexts[key].set_tensor_address(name, int(memory))
        context = self._contexts[key]
        if self._shaped.get(key) != count:
            for tensor in self._tensors.values():
                if tensor.is_input and not context.set_input_shape(tensor.name, (count, *tensor.shape)):
                    raise EngineError(f"TensorRT takes no batch of {count}: {tensor.name} of {tensor.shape}")
            self._shaped[key] = count
        return context

    def _address(self, name: str, index: int) -> int:
        return int(self._memory[name]) + index * self._tensors[name].octets


def describe(plan: Any, library: Library) -> list[Tensor]:
    """All inputs and outputs of a plan."""
    trt, tensors = library.module, []
    for number in range(plan.num_io_tensors):
        name = plan.get_tensor_name(number)
        shape = tuple(plan.get_tensor_shape(name))[1:]
        if min(shape) < 1:
            raise EngineError(f"the plan does not tell the size of {name}: {shape}")
        octets = math.prod(shape) * np.dtype(trt.nptype(plan.get_tensor_dtype(name))).itemsize
        tensors.append(Tensor(name, shape, octets, plan.get_tensor_mode(name) == trt.TensorIOMode.INPUT))
    return tensors
