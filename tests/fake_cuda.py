"""A CUDA driver without a device, with pycuda's names: what is started asynchronously runs as late as it may.

Streams are queues. Nothing in them runs until somebody synchronises, and then no more than is needed, in a random order
of what CUDA would allow. A missing event shows as wrong data. Using the driver without a current context, or from a
thread that leaves one behind, fails as it would there.
"""

from __future__ import annotations

import enum
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Error(Exception):
    """As `pycuda.driver.Error`."""


class OutOfMemory(Error):
    """As `pycuda.driver.MemoryError`."""


class Operation:
    """Something in a stream."""

    def __init__(
        self, work: Callable[[], None], waits_for: Operation | None = None, scratch: int | None = None
    ) -> None:
        """`scratch` is the address of memory that no operation of another stream may have before this one is done."""
        self.work, self.waits_for, self.scratch, self.done = work, waits_for, scratch, False


class event_flags:  # noqa: N801 - pycuda's name
    DISABLE_TIMING, BLOCKING_SYNC = 2, 1


class host_alloc_flags:  # noqa: N801 - pycuda's name
    PORTABLE = 1


class FakeCuda:
    """Stands for the module `pycuda.driver`."""

    Error, MemoryError = Error, OutOfMemory
    event_flags, host_alloc_flags = event_flags, host_alloc_flags

    def __init__(self, seed: int = 1) -> None:
        self.allocations: dict[int, NDArray[np.uint8]] = {}
        self.failure: Exception | None = None
        """What every call raises from now on, as after the loss of the device."""
        self.copied_pageable = 0
        """Copies that were not from or to page-locked memory."""
        self._random = random.Random(seed)
        self.leaked = 0
        """Memory whose last reference went where no context was current: pycuda does not free it then."""
        self.locked = 0
        """Page-locked arrays that still have a reference."""
        self._default = Stream(self)
        self._streams: list[Stream] = [self._default]
        self._handles: dict[int, Any] = {}
        self._stacks = threading.local()
        self._lock = threading.RLock()
        self._next = 1 << 20
        self._locked: list[tuple[int, int]] = []
        self._scratch: dict[int, tuple[Stream, Operation]] = {}
        driver = self

        class Context:
            """As `pycuda.driver.Context`."""

            @staticmethod
            def pop() -> None:
                driver.stack().pop()

            def push(self) -> None:
                driver.check(current=False)
                driver.stack().append(self)

        self.Context = Context

    def stack(self) -> list[Any]:
        """The current contexts of this thread."""
        if not hasattr(self._stacks, "contexts"):
            self._stacks.contexts = []
        return self._stacks.contexts  # type: ignore[no-any-return]

    def check(self, current: bool = True) -> None:
        if current and not self.stack():
            raise Error("no context is current on this thread")
        if self.failure is not None:
            raise self.failure

    def Device(self, number: int) -> FakeCuda:  # noqa: N802 - pycuda's name
        assert number == 0
        return self

    def retain_primary_context(self) -> Any:
        return self.Context()

    def Stream(self, flags: int = 0) -> Stream:  # noqa: N802 - pycuda's name
        self.check()
        assert flags == 1, "streams that wait for the default stream"
        self._streams.append(stream := Stream(self))
        self._handles[stream.handle] = stream
        return stream

    def Event(self, _flags: int = 0) -> Event:  # noqa: N802 - pycuda's name
        self.check()
        event = Event(self)
        self._handles[event.handle] = event
        return event

    def at(self, handle: int) -> Any:
        """The stream or the event of a handle."""
        return self._handles[handle]

    def mem_alloc(self, octets: int) -> Allocation:
        self.check()
        with self._lock:
            address, self._next = self._next, self._next + octets + 4096
        self.allocations[address] = np.full(octets, 0xFF, np.uint8)  # as floats: not a number
        return Allocation(self, address)

    def to_device(self, array: NDArray[Any]) -> Allocation:
        allocation, numbers = self.mem_alloc(array.nbytes), array.copy()
        self._default.add(Operation(lambda: self._write(int(allocation), numbers)))
        return allocation

    def device(self, address: int, octets: int) -> NDArray[np.uint8]:
        """A view of device memory; fails where it was freed or never allocated."""
        for base, memory in self.allocations.items():
            if base <= address and address + octets <= base + memory.size:
                return memory[address - base : address - base + octets]
        raise Error(f"illegal address {address}")

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: Any, mem_flags: int = 0) -> NDArray[Any]:
        self.check()
        assert mem_flags == host_alloc_flags.PORTABLE
        array = np.zeros(shape, dtype)
        self.locked += 1
        weakref.finalize(array, self.unlocked)
        self._locked.append((array.ctypes.data, array.nbytes))
        return array

    def unlocked(self) -> None:
        """A page-locked array is freed."""
        self.locked -= 1
        self.freed()

    def freed(self) -> None:
        """Something is freed by whichever thread."""
        self.leaked += not self.stack()

    def is_locked(self, array: NDArray[Any]) -> bool:
        start = array.ctypes.data
        return any(base <= start and start + array.nbytes <= base + size for base, size in self._locked)

    def memcpy_htod_async(self, to: int, array: NDArray[Any], stream: Stream) -> None:
        self._copy(stream, array, lambda: self._write(to, array))

    def memcpy_dtoh_async(self, array: NDArray[Any], source: int, stream: Stream) -> None:
        def read() -> None:
            array.reshape(-1).view(np.uint8)[:] = self.device(source, array.nbytes)

        self._copy(stream, array, read)

    def memcpy_dtod_async(self, to: int, source: int, octets: int, stream: Stream) -> None:
        self.check()

        def move() -> None:
            self.device(to, octets)[:] = self.device(source, octets)

        stream.add(Operation(move))

    def _copy(self, stream: Stream, array: NDArray[Any], work: Callable[[], None]) -> None:
        self.check()
        assert array.flags.c_contiguous
        self.copied_pageable += not self.is_locked(array)
        stream.add(Operation(work))

    def _write(self, to: int, array: NDArray[Any]) -> None:
        self.device(to, array.nbytes)[:] = array.reshape(-1).view(np.uint8)

    def claim(self, stream: Stream, operation: Operation) -> None:
        """See that nothing in another stream may still use the operation's scratch memory."""
        if operation.scratch is not None:
            other, last = self._scratch.get(operation.scratch, (stream, operation))
            assert other is stream or last.done, "two streams have one scratch memory at once"
            self._scratch[operation.scratch] = stream, operation

    def run_until(self, wanted: Operation | None) -> None:
        """Run queues, in any allowed order, until an operation is done."""
        self.check()
        with self._lock:
            while wanted is not None and not wanted.done:
                ready = [stream for stream in self._streams if stream.is_ready()]
                assert ready, "a deadlock: every stream waits for another"
                self._random.choice(ready).step()


class Allocation:
    """Device memory, freed with its last reference."""

    def __init__(self, driver: FakeCuda, address: int) -> None:
        self._driver, self._address = driver, address

    def __int__(self) -> int:
        return self._address

    def __del__(self) -> None:
        self._driver.freed()
        self._driver.allocations.pop(self._address, None)


class Stream:
    """A queue of operations."""

    def __init__(self, driver: FakeCuda) -> None:
        self.queue: deque[Operation] = deque()
        self.handle = id(self)
        self.captured: list[Operation] | None = None
        """What is not run but kept for a graph, while one is captured."""
        self._driver = driver

    def add(self, operation: Operation) -> None:
        with self._driver._lock:
            if self.captured is None:
                self._driver.claim(self, operation)
            (self.queue if self.captured is None else self.captured).append(operation)

    def is_ready(self) -> bool:
        return bool(self.queue) and ((head := self.queue[0]).waits_for is None or head.waits_for.done)

    def step(self) -> None:
        operation = self.queue.popleft()
        operation.work()
        operation.done = True

    def wait_for_event(self, event: Event) -> None:
        self._driver.check()
        self.add(Operation(lambda: None, event.recorded))

    def synchronize(self) -> None:
        self._driver.check()
        self._driver.run_until(self.queue[-1] if self.queue else None)


class FakeBindings:
    """Stands for the module `cuda.bindings.driver`: a graph is a list of operations, which runs again when launched."""

    CUresult = enum.Enum("CUresult", ["CUDA_SUCCESS", "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"])
    CUstreamCaptureMode = enum.Enum("CUstreamCaptureMode", ["CU_STREAM_CAPTURE_MODE_THREAD_LOCAL"])
    CUstream = int

    def __init__(self, driver: FakeCuda) -> None:
        self.driver = driver
        self.fails = ""
        """The call that fails."""
        self.launches: list[int] = []
        """Operations of each graph that was launched."""
        self.held = 0
        """Graphs and what was made of them, that were not destroyed."""

    def _told(self, name: str, *results: object) -> tuple[object, ...]:
        self.driver.check()
        if name == self.fails:
            return (self.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, *[None for _ in results])
        return (self.CUresult.CUDA_SUCCESS, *results)

    def cuStreamBeginCapture(self, stream: int, mode: object) -> tuple[object, ...]:  # noqa: N802
        assert mode is self.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        assert self.driver.at(stream).captured is None
        if self.fails != "cuStreamBeginCapture":
            self.driver.at(stream).captured = []
        return self._told("cuStreamBeginCapture")

    def cuStreamEndCapture(self, stream: int) -> tuple[object, ...]:  # noqa: N802
        graph, self.driver.at(stream).captured = self.driver.at(stream).captured, None
        self.held += self.fails != "cuStreamEndCapture"
        return self._told("cuStreamEndCapture", graph)

    def cuGraphInstantiate(self, graph: object, flags: int) -> tuple[object, ...]:  # noqa: N802
        assert flags == 0
        self.held += self.fails != "cuGraphInstantiate"
        return self._told("cuGraphInstantiate", graph)

    def cuGraphLaunch(self, ready: list[Operation], stream: int) -> tuple[object, ...]:  # noqa: N802
        self.launches.append(len(ready))
        for operation in ready:
            self.driver.at(stream).add(Operation(operation.work, scratch=operation.scratch))
        return self._told("cuGraphLaunch")

    def cuGraphExecDestroy(self, _: object) -> tuple[object, ...]:  # noqa: N802
        self.held -= 1
        return self._told("cuGraphExecDestroy")

    def cuGraphDestroy(self, _: object) -> tuple[object, ...]:  # noqa: N802
        self.held -= 1
        return self._told("cuGraphDestroy")


class Event:
    """The place in a stream where it was last recorded; waiting for one that never was does not wait."""

    def __init__(self, driver: FakeCuda) -> None:
        self.recorded: Operation | None = None
        self.handle = id(self)
        self._driver = driver

    def record(self, stream: Stream | None = None) -> None:
        self._driver.check()
        self.recorded = Operation(lambda: None)
        (stream or self._driver._default).add(self.recorded)

    def query(self) -> bool:
        self._driver.check()
        return self.recorded is None or self.recorded.done

    def synchronize(self) -> None:
        self._driver.check()
        self._driver.run_until(self.recorded)
