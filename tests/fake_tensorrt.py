"""TensorRT without a GPU, on the driver of `tests.fake_cuda`: what a plan computes is a function of this program."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.network.config import NEID_LIVE
from engines.nvidia.tensorrt_library import Library
from engines.padding import past_shapes
from tests.fake_cuda import Error, FakeCuda, Operation

Arrays = dict[str, NDArray[Any]]
Compute = Callable[[Arrays], Arrays]
"""Inputs to outputs of one batch, by name."""


class ILogger:
    """As `tensorrt.ILogger`."""

    class Severity:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class FakeTensorRt:
    """Stands for the module `tensorrt_rtx`, or for `tensorrt`; its plans are bytes that say size and capability,
    "64x48@"."""

    __name__ = "tensorrt_rtx"
    ILogger = ILogger
    TensorIOMode = SimpleNamespace(INPUT=1, OUTPUT=2)
    ExecutionContextAllocationStrategy = SimpleNamespace(STATIC="static", USER_MANAGED="user managed")
    CudaGraphStrategy = SimpleNamespace(DISABLED=0, WHOLE_GRAPH_CAPTURE=1)
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(LAZY=0, EAGER=1, NONE=2)

    def __init__(self, driver: FakeCuda, compute: Compute, memory_size: int = 4, name: str = "tensorrt_rtx") -> None:
        self.driver, self.compute, self.memory_size = driver, compute, memory_size
        self.__name__ = name
        self.calls = 0
        """How often a batch was started by the library, and not by a graph."""
        self.refuses: set[str] = set()
        """The capabilities of plans that are refused when they are loaded."""
        self.cannot_run: set[str] = set()
        """Of those that are refused when they are run."""
        self.faulty: set[str] = set()
        """Of those whose kernels fail, which is told when the stream is waited for, and by CUDA."""
        self.without_memory = False
        """Whether there is too little memory for a context."""
        self.compiled: list[bytes] = []
        """What was given to runtime caches."""

    @staticmethod
    def nptype(kind: str) -> type:
        return {"uint8": np.uint8, "float32": np.float32, "float16": np.float16}[kind]

    def Runtime(self, messages: Any) -> FakeTensorRt:  # noqa: N802 - TensorRT's name
        self.messages = messages
        self.driver.check()
        return self

    def deserialize_cuda_engine(self, data: bytes) -> FakePlan | None:
        self.driver.check()
        size, _, capability = data.decode().partition("@")
        if capability in self.refuses:
            self.messages.log(ILogger.Severity.ERROR, "made for another GPU")
            return None
        width, height = map(int, size.split("x"))
        return FakePlan(self, width, height, capability)

    def library(self) -> Library:
        return Library(self, self.__name__, "1.6.1" if self.__name__ == "tensorrt_rtx" else "11.4.0")


class FakePlan:
    """As `ICudaEngine`."""

    def __init__(self, library: FakeTensorRt, width: int, height: int, capability: str) -> None:
        self.library, self.capability = library, capability
        half = ((height + 1) // 2, (width + 1) // 2)
        past = past_shapes(NEID_LIVE, width, height)
        self.tensors: dict[str, tuple[int, str, tuple[int, ...]]] = {
            "y": (1, "uint8", (1, height, width)),
            "uv": (1, "uint8", (2, *half)),
            "colour": (1, "float32", (2, 3, 4)),
            "memory": (1, "float32", (library.memory_size,)),
            "keep": (1, "float32", (1,)),
            **{name: (1, "float16", shape) for name, shape in past.items()},
            "y_out": (2, "uint8", (1, 2 * height, 2 * width)),
            "uv_out": (2, "uint8", (2, height, width)),
            "memory_out": (2, "float32", (library.memory_size,)),
            **{f"{name}_out": (2, "float16", shape) for name, shape in past.items()},
        }
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, number: int) -> str:
        return list(self.tensors)[number]

    def get_tensor_mode(self, name: str) -> int:
        return self.tensors[name][0]

    def get_tensor_dtype(self, name: str) -> str:
        return self.tensors[name][1]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *self.tensors[name][2])

    def create_runtime_config(self) -> Any:
        cache = SimpleNamespace(serialize=lambda: b"compiled", deserialize=self.library.compiled.append)
        config = SimpleNamespace(create_runtime_cache=lambda: cache, set_runtime_cache=lambda _: None)
        config.set_execution_context_allocation_strategy = partial(setattr, config, "strategy")
        return config

    device_memory_size_v2 = 1000

    def create_execution_context(self, config: Any = None) -> FakeContext | None:
        """`config` is a strategy of allocation where no runtime config is."""
        rtx = self.library.__name__ == "tensorrt_rtx"
        strategy = config.strategy if rtx else config
        managed = strategy == FakeTensorRt.ExecutionContextAllocationStrategy.USER_MANAGED
        if rtx:
            assert config.cuda_graph_strategy == FakeTensorRt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            eager = FakeTensorRt.DynamicShapesKernelSpecializationStrategy.EAGER
            assert config.dynamic_shapes_kernel_specialization_strategy == eager
        self.library.driver.check()
        return None if self.library.without_memory else FakeContext(self, managed)


class FakeContext:
    """As `IExecutionContext`: what it reads and writes is where the addresses say when it is started.

    What was captured of it does not work any more once its shapes have changed.
    """

    def __init__(self, plan: FakePlan, managed: bool) -> None:
        self._plan = plan
        self._lacks_memory = managed
        self._scratch: int | None = None
        self._changes = 0
        self._addresses: dict[str, int] = {}
        self._count = 0

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        assert self._plan.library.driver.device(memory, size).nbytes == self._plan.device_memory_size_v2
        self._lacks_memory, self._scratch = False, memory

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert tuple(shape[1:]) == self._plan.tensors[name][2]
        self._count = shape[0]
        self._changes += 1
        return True

    def execute_async_v3(self, handle: int) -> bool:
        library, count, addresses = self._plan.library, self._count, dict(self._addresses)
        library.driver.check()
        assert not self._lacks_memory
        changes = self._changes if library.driver.at(handle).captured is not None else None
        library.calls += 1
        if self._plan.capability in library.cannot_run:
            return False

        def view(name: str) -> NDArray[Any]:
            _, kind, shape = self._plan.tensors[name]
            array = np.dtype(kind)
            octets = count * int(np.prod(shape)) * array.itemsize
            return library.driver.device(addresses[name], octets).view(array).reshape(count, *shape)

        def work() -> None:
            assert changes in (None, self._changes), "a graph of other shapes"
            if self._plan.capability in library.faulty:
                library.driver.at(handle).queue.clear()
                raise Error("cuStreamSynchronize failed: invalid device function")
            inputs = {name: view(name).copy() for name, (mode, _, _) in self._plan.tensors.items() if mode == 1}
            for name, array in library.compute(inputs).items():
                view(name)[:] = array

        library.driver.at(handle).add(Operation(work, scratch=self._scratch))
        return True
