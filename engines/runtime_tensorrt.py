"""TensorRT on an NVIDIA GPU in half precision, with page-locked slots and device memory from pycuda."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from numpy.typing import NDArray

from engines.cards import Weights
from engines.door import EngineInfo, Numbers
from engines.errors import EngineError, EngineMismatch, EngineMissing
from engines.network.config import CONFIGS
from engines.nvidia.cuda_engine import CudaEngine
from engines.nvidia.cuda_lanes import Device
from engines.nvidia.gpu import NO_GPU, Gpu, find_gpu, prepare_primary_context
from engines.nvidia.plans import FILES, Plan, Plans
from engines.nvidia.tensorrt_builder import capabilities
from engines.nvidia.tensorrt_lanes import PlanLanes
from engines.nvidia.tensorrt_library import Library, collected_errors, import_tensorrt, message_log
from engines.nvidia.trial import capability_that_runs
from engines.runtime import EngineOptions

log = logging.getLogger(__name__)

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING, which pycuda has no name for."""


@dataclass(frozen=True)
class Cuda:
    """The libraries and the GPU that the engine uses."""

    driver: Any
    """The module `pycuda.driver`, initialised."""
    library: Library
    gpu: Gpu


class PycudaDevice:
    """The first GPU, through its primary context, which torch and FFmpeg share. See `engines.nvidia.cuda_lanes.Device`.

    The context is current only during a call: a thread that ends with a current one crashes the process.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self._context = primary_context(driver)

    @contextmanager
    def current(self) -> Iterator[None]:
        """See `Device`."""
        self._context.push()
        try:
            yield
        finally:
            self.driver.Context.pop()

    def stream(self) -> Any:
        """See `Device`."""
        return self.driver.Stream(NON_BLOCKING)

    def event(self, *, sleeps: bool = False) -> Any:
        """See `Device`."""
        flags = self.driver.event_flags
        return self.driver.Event(flags.DISABLE_TIMING | (flags.BLOCKING_SYNC if sleeps else 0))

    def locked(self, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
        """See `Device`."""
        flags = self.driver.host_alloc_flags.PORTABLE
        return self.driver.pagelocked_empty(shape, dtype, mem_flags=flags)  # type: ignore[no-any-return]

    def copy(self, numbers: Numbers) -> Any:
        """See `Device`."""
        memory = self.driver.to_device(numbers)
        copied = self.driver.Event()
        copied.record()  # in the default stream, like the copy: non-blocking streams would not wait for it
        copied.synchronize()
        return memory

    def write(self, memory: Any, numbers: Numbers, stream: Any) -> None:
        """See `Device`."""
        self.driver.memcpy_htod_async(int(memory), numbers, stream)

    def read(self, memory: Any, numbers: Numbers, stream: Any) -> None:
        """See `Device`."""
        self.driver.memcpy_dtoh_async(numbers, int(memory), stream)


@cache
def primary_context(driver: Any) -> Any:
    """The first GPU's primary context, held until the process ends, as torch holds it.

    pycuda's `detach` would leave it on the thread's stack, and memory freed after it would leak.
    """
    prepare_primary_context()
    return driver.Device(0).retain_primary_context()


class TensorRtEngine(CudaEngine):
    """One plan for each picture size, built on first use."""

    def __init__(self, weights: Weights, info: EngineInfo, cuda: Cuda, options: EngineOptions) -> None:
        super().__init__(info, options.slots)
        self._weights = weights
        self._cuda = cuda
        self._plans = Plans(cuda.library, cuda.gpu, options.cache)
        self._capability = options.capability
        self._runtime: Any = None
        self._gpu: PycudaDevice | None = None

    def _open_device(self) -> Device:
        self._gpu = PycudaDevice(self._cuda.driver)
        with self._gpu.current():
            self._runtime = self._cuda.library.module.Runtime(message_log(self._cuda.library))
        self._memory_size = CONFIGS[self._weights.card.network].memory_size
        return self._gpu

    def _make_lanes(self, device: Device, width: int, height: int) -> PlanLanes:
        assert isinstance(device, PycudaDevice)
        if self._capability is not None:
            return self._lanes_for(self._capability, device, width, height)
        library, refusals = self._cuda.library, list[str]()
        for capability in capabilities(library):
            key = self._plans.key(
                self._weights, width, height, self.info.largest_batch, self.info.precision, capability
            )
            if refusal := self._plans.trial_result(key):  # it may crash this process
                refusals.append(f"{capability or 'default capability'}: {refusal}")
                continue
            try:
                lanes = self._lanes_for(capability, device, width, height)
            except (EngineMissing, EngineMismatch):
                raise  # another plan would not help
            except EngineError as error:
                refusals.append(f"{capability or 'default capability'}: {error}")
                continue
            if refusals:
                log.warning(
                    "%s uses a plan built for compute capability %s; others failed: %s",
                    self.info.device,
                    capability,
                    "; ".join(refusals),
                )
            return lanes
        raise EngineError(f"{library} could not run any plan for {width}x{height} here: {'; '.join(refusals)}")

    def _lanes_for(self, capability: str, device: PycudaDevice, width: int, height: int) -> PlanLanes:
        """Lanes of a plan that has run once; raises `EngineError` with the library's own words if the GPU refuses it,
        and pycuda's `MemoryError`."""
        library, batch = self._cuda.library, self.info.largest_batch
        with collected_errors(library) as told:
            try:
                kept = self._plans.get(self._weights, width, height, batch, self.info.precision, capability)
                lanes = PlanLanes(self._load(kept), library, device, batch, (self._plans, kept.key))
                lanes.warm_up([1], device.stream())  # a GPU may refuse the plan's code as late as here
            except (EngineMissing, EngineMismatch, self._cuda.driver.MemoryError):
                raise
            except Exception as error:  # pycuda and TensorRT have errors of their own
                words = [str(error), *(word for word in dict.fromkeys(told) if word not in str(error))]
                raise EngineError("; ".join(words)) from error
            return lanes

    def _load(self, plan: Plan) -> Any:
        """TensorRT's engine for a plan; raises `EngineError` with the library's own words."""
        with collected_errors(self._cuda.library) as errors:
            loaded = self._runtime.deserialize_cuda_engine(plan.data)
        if loaded is None:
            raise EngineError(f"the plan was refused: {'; '.join(errors) or 'no reason given'}")
        return loaded

    def _close_device(self) -> None:
        assert self._gpu is not None
        with self._gpu.current():
            self._runtime = None
        self._gpu = None


def open_engine(weights: Weights, options: EngineOptions) -> TensorRtEngine:
    """See `engines.runtime.RuntimeModule`. fp16 only."""
    precision = "fp16" if options.precision == "auto" else options.precision
    if precision not in FILES:
        raise EngineMismatch(f"precision {precision!r}: TensorRT takes one of auto, {', '.join(FILES)}")
    library, gpu = import_tensorrt(), find_gpu()
    if gpu == NO_GPU:
        raise EngineMissing("runtime tensorrt needs an NVIDIA GPU and its driver, and none was found")
    info = EngineInfo(
        runtime="tensorrt",
        device=gpu.name,
        precision=precision,
        weights=weights.card.name,
        weights_id=weights.id,
        largest_batch=options.batch,
    )
    cuda = Cuda(import_driver(), library, gpu)
    if options.trial_first:
        options = replace(options, capability=capability_that_runs(library, gpu, weights, options), trial_first=False)
    return TensorRtEngine(weights, info, cuda, options)


def import_driver() -> Any:
    """The module `pycuda.driver`, ready for use; raises `EngineMissing`."""
    try:
        driver = importlib.import_module("pycuda.driver")
        driver.init()
    except Exception as error:  # ImportError, or pycuda's own errors, which cannot be named before the import
        raise EngineMissing(f"runtime tensorrt needs pycuda: pip install 'nightbridge[nvidia]' ({error})") from error
    return driver
