"""Lanes for TensorRT: one plan for each picture size, and execution contexts in each lane.

Batches are started as CUDA graphs: TensorRT-RTX captures its own, TensorRT is captured here. A captured graph is valid
only while the shapes of its context stay the same, so each count of pictures has a context of its own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.nvidia.cuda_graphs import CapturedGraph, import_bindings
from engines.nvidia.cuda_lanes import LANES, STATE, Lane, Lanes
from engines.nvidia.plans import PlanKey, Plans
from engines.nvidia.tensorrt_library import Library

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
    """The lanes of a plan. What TensorRT-RTX compiles when a plan first runs is kept for the next start.

    All contexts of all lanes share one scratch memory, in which TensorRT keeps nothing between runs, and one memory for
    what feeds keep, which is copied in and out for each run. No two of them run at once: before the size is ready they
    run on the warm-up stream, which is synchronised before any batch comes, and after that on the one compute stream,
    as graphs or not.
    """

    def __init__(
        self, plan: Any, library: Library, device: PycudaDevice, largest_batch: int, kept: tuple[Plans, PlanKey]
    ) -> None:
        tensors = describe(plan, library)
        state = {tensor.name: tensor.shape for tensor in tensors if tensor.name in STATE}
        super().__init__([], state)  # first, since what is set first is released first if this fails
        self._plan: Any = plan
        self._kept, self._compiled, self._config = kept, None, None
        user_managed = library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if library.times_kernels:
            bindings, how = import_bindings(), user_managed
        else:
            self._config = how = plan.create_runtime_config()
            how.set_execution_context_allocation_strategy(user_managed)
            self._compiled = self._compile_as_needed(how, library)
            bindings = None
        self._scratch: Any = device.driver.mem_alloc(max(1, plan.device_memory_size_v2))
        self._shared = {
            tensor.name: device.driver.mem_alloc(largest_batch * tensor.octets)
            for tensor in tensors
            if tensor.name.removesuffix("_out") in STATE
        }
        for _ in range(LANES):
            self._lanes.append(
                PlanLane(plan, how, tensors, self._scratch, self._shared, device, largest_batch, bindings)
            )

    def _compile_as_needed(self, config: Any, library: Library) -> Any:
        """Have TensorRT-RTX compile before pictures come, capture its own graphs, and cache what it compiles."""
        trt = library.module
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER  # the default compiles while pictures come
        config.dynamic_shapes_kernel_specialization_strategy = eager
        compiled = config.create_runtime_cache()
        plans, key = self._kept
        if before := plans.load_cache(key):
            compiled.deserialize(before)  # one that does not fit is refused, and rebuilt
        config.set_runtime_cache(compiled)
        return compiled

    def keep(self) -> None:
        """See `Lanes`."""
        if self._compiled is not None:
            plans, key = self._kept
            if (compiled := self._compiled.serialize()) is not None:
                plans.store_cache(key, bytes(compiled))

    def close(self) -> None:
        """See `Lanes`. The contexts are released before what they were made with, and the plan last."""
        super().close()
        self._scratch = None
        self._shared.clear()
        self._config = self._compiled = None
        self._plan = None


class PlanLane(Lane):
    """Execution contexts, and the device memory of their inputs and outputs."""

    def __init__(
        self,
        plan: Any,
        how: Any,
        tensors: Sequence[Tensor],
        scratch: Any,
        shared: Mapping[str, Any],
        device: PycudaDevice,
        largest_batch: int,
        bindings: Any = None,
    ) -> None:
        """`how` contexts are created: an allocation strategy, or a runtime configuration of TensorRT-RTX. Either way
        they use `scratch`, device memory of the size that the plan asks for, one context at a time, and the `shared`
        memory of some tensors.

        `bindings` capture a graph for each count of pictures; without them TensorRT is called each time.
        """
        super().__init__(device)
        self._driver = device.driver
        self._plan, self._how = plan, how
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self._memory = dict(shared)
        for tensor in tensors:
            if tensor.name not in shared:
                self._memory[tensor.name] = self._driver.mem_alloc(largest_batch * tensor.octets)
        self._scratch = scratch
        self._contexts: dict[int, Any] = {}
        """By count of pictures."""
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

    def recall(self, state: Mapping[str, Any], index: int, stream: Any) -> None:
        """See `Lane`."""
        for name, memory in state.items():
            octets = self._tensors[name].octets
            self._driver.memcpy_dtod_async(self._address(name, index), int(memory), octets, stream)

    def retain(self, state: Mapping[str, Any], index: int, stream: Any) -> None:
        """See `Lane`."""
        for name, memory in state.items():
            octets = self._tensors[name].octets
            self._driver.memcpy_dtod_async(int(memory), self._address(f"{name}_out", index), octets, stream)

    def run(self, count: int, stream: Any) -> None:
        """See `Lane`. A count is captured when it comes for the second time: what TensorRT does in the first run after
        a change of shapes does not belong in a graph."""
        if count in self._seen and count not in self._graphs and self._bindings is not None:
            self._capture(count, stream)
        if count in self._graphs:
            self._graphs[count].launch(stream.handle)
        else:
            self._start(count, stream)

    def _capture(self, count: int, stream: Any) -> None:
        """Capture the work of a batch as a graph; if that fails, use no graphs from here on."""
        try:
            self._graphs[count] = CapturedGraph(self._bindings, stream.handle, lambda: self._start(count, stream))
        except EngineError as error:
            log.warning("no CUDA graphs: %s", str(error))  # as text: its frames hold what must be freed now
            self._bindings = None

    def _start(self, count: int, stream: Any) -> None:
        if not self._context(count).execute_async_v3(stream.handle):
            raise EngineError(f"TensorRT did not start a batch of {count}")
        self._seen.add(count)

    def _context(self, count: int) -> Any:
        """The execution context for `count` pictures; raises `EngineError` if there can be none."""
        if count not in self._contexts:
            context = self._plan.create_execution_context(self._how)
            if context is None:
                raise EngineError("TensorRT could not create an execution context: is there too little GPU memory?")
            context.set_device_memory(int(self._scratch), self._plan.device_memory_size_v2)
            for tensor in self._tensors.values():
                context.set_tensor_address(tensor.name, int(self._memory[tensor.name]))
                if tensor.is_input and not context.set_input_shape(tensor.name, (count, *tensor.shape)):
                    raise EngineError(f"TensorRT refused a batch of {count}: {tensor.name} of {tensor.shape}")
            self._contexts[count] = context
        return self._contexts[count]

    def _address(self, name: str, index: int) -> int:
        return int(self._memory[name]) + index * self._tensors[name].octets


def describe(plan: Any, library: Library) -> list[Tensor]:
    """All inputs and outputs of a plan."""
    trt, tensors = library.module, []
    for number in range(plan.num_io_tensors):
        name = plan.get_tensor_name(number)
        shape = tuple(plan.get_tensor_shape(name))[1:]
        if min(shape) < 1:
            raise EngineError(f"the plan leaves the size of {name} open: {shape}")
        octets = math.prod(shape) * np.dtype(trt.nptype(plan.get_tensor_dtype(name))).itemsize
        tensors.append(Tensor(name, shape, octets, plan.get_tensor_mode(name) == trt.TensorIOMode.INPUT))
    return tensors
