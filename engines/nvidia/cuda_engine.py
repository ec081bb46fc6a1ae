"""What all engines on an NVIDIA GPU share: page-locked slots, and copies that overlap with the network.

A batch passes through three streams; each waits for the one before on events, without blocking the host:

    upload     slot planes ─► lane                        waits until the lane's last batch is computed
    compute    memory ─► lane, network, lane ─► memory    waits for the upload, and for the lane's last download
    download   lane ─► slot planes                        waits for the network

So batch n + 1 is uploaded and batch n - 1 downloaded while batch n is computed.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from engines.door import PAST, SCALE, EngineInfo, Memory, Numbers, Shape, Size, Slot, no_past
from engines.errors import EngineError
from engines.nvidia.cuda_lanes import Device, Event, Lane, Lanes, Stream, counts_to_see
from engines.ring import EXIT_SECONDS, Engine

log = logging.getLogger(__name__)


@dataclass
class CudaSlot(Slot):
    """A slot whose planes are page-locked, so that the GPU copies them by itself."""

    coefficients: Numbers = field(kw_only=True)
    """(largest batch, 2, 3, 4), page-locked: for all pictures of a batch that starts with this slot."""
    kept: Numbers = field(kw_only=True)
    """(largest batch, 1), page-locked: as above."""
    done: Event = field(kw_only=True)
    """Passed once the output planes are written."""
    left: list[Any] = field(kw_only=True, repr=False)
    """Takes all of these when the slot is finalised, in any thread: pycuda frees them only while the device is
    current, and otherwise leaks them."""

    def __del__(self) -> None:
        self.left.append((self.sent(), self.fetched(), self.coefficients, self.kept, self.done))

    def sent(self) -> dict[str, NDArray[Any]]:
        """The planes that are uploaded for each picture, by the name of the graph's input."""
        return {"y": self.y, "uv": self.uv}

    def fetched(self) -> dict[str, NDArray[Any]]:
        """The planes that are downloaded, by the name of the graph's output."""
        return {"y_out": self.y_out, "uv_out": self.uv_out}


State = dict[str, Any]
"""Device memory for what is kept of one feed, by the names in `engines.nvidia.cuda_lanes.STATE`."""


class DeviceMemory:
    """A feed's memory on the device; when finalised, in any thread, it is left for the next feed of its size.

    Freeing it could block on all of the GPU's work, with all Python threads stopped (pycuda holds the GIL).
    """

    def __init__(self, state: State, version: int, size: Size, spare: list[tuple[Size, State]]) -> None:
        self.state, self.version, self.size, self._spare = state, version, size, spare
        self.written = False
        """Whether a picture has left anything in it; until then it may hold what another feed left."""

    def __del__(self) -> None:
        self._spare.append((self.size, self.state))


class CudaEngine(Engine):
    """An engine on one GPU; a subclass opens the device and makes lanes."""

    def __init__(self, info: EngineInfo, slots: int) -> None:
        super().__init__(info, slots)
        self._counts = counts_to_see(info.largest_batch)
        self._device: Device | None = None
        self._starting = threading.Lock()  # batches enter the streams one at a time
        self._warming = threading.Lock()
        self._streams: list[Stream] = []
        self._warm_up_stream: Any = None
        self._lanes: dict[Size, Lanes] = {}
        self._memories: WeakKeyDictionary[Memory, DeviceMemory] = WeakKeyDictionary()
        self._spare: list[tuple[Size, State]] = []  # device memory of feeds that ended
        self._left: list[Any] = []  # what finalised slots held
        self._nothing: dict[Size, State] = {}  # what feeds without a past read
        self._staging: Any = None

    @abstractmethod
    def _open_device(self) -> Device:
        """Take the device, load what all sizes share, and set `_memory_size`."""

    @abstractmethod
    def _make_lanes(self, device: Device, width: int, height: int) -> Lanes:
        """Lanes for a size; called with the device current."""

    @abstractmethod
    def _close_device(self) -> None:
        """Give the device back; called when nothing of it is in use."""

    @contextmanager
    def _current(self) -> Iterator[Device]:
        if self._device is None:
            raise EngineError("the engine is closed: use it inside its `with` block")
        with self._device.current():
            yield self._device

    def _open(self) -> None:
        self._device = self._open_device()
        with self._current() as device:
            *self._streams, self._warm_up_stream = [device.stream() for _ in range(4)]
            self._staging = device.locked((1, self._memory_size), np.float32)

    def _forget_sizes(self) -> None:
        with self._current():
            super()._forget_sizes()
            self._left.clear()
            with self._starting:
                self._spare[:] = [spare for spare in self._spare if spare[0] in self._lanes][: self._slots]

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Log errors, as of a lost device, and go on: the device must be given back all the same."""
        try:
            yield
        except Exception as error:
            log.warning("%s: error while closing: %s", self.info.runtime, error)

    def _settle(self) -> None:
        """Wait for all work under way."""
        with self._ending():
            for stream in self._streams:
                stream.synchronize()

    def _close(self) -> None:
        """Free everything, or nothing if a thread is still preparing a size, which nothing can interrupt."""
        if not self._warming.acquire(timeout=EXIT_SECONDS):
            log.warning("engine: %s did not stop within %g s and was abandoned", self.info.runtime, EXIT_SECONDS)
            return
        try:
            self._free_device()
        finally:
            self._warming.release()

    def _free_device(self) -> None:
        with self._current():
            self._settle()
            self._close_lanes()
            self._memories.clear()
            self._spare.clear()
            self._left.clear()
            self._nothing.clear()
            self._staging = None
            self._streams = []
            self._warm_up_stream = None
        self._device = None
        with self._ending():
            self._close_device()

    def _close_lanes(self) -> None:
        """In a frame of its own, so that the last references are gone before the device is given back."""
        with self._ending():
            for lanes in self._lanes.values():
                lanes.close()
        self._lanes.clear()

    def _make(self, width: int, height: int) -> CudaSlot:
        with self._current() as device:
            if (width, height) not in self._lanes:
                self._make_ready(device, width, height)
            return CudaSlot(
                width=width,
                height=height,
                y=device.locked((height, width), np.uint8),
                uv=device.locked((2, (height + 1) // 2, (width + 1) // 2), np.uint8),
                y_out=device.locked((SCALE * height, SCALE * width), np.uint8),
                uv_out=device.locked((2, height, width), np.uint8),
                engine=self,
                coefficients=device.locked((self.info.largest_batch, 2, 3, 4), np.float32),
                kept=device.locked((self.info.largest_batch, 1), np.float32),
                done=device.event(sleeps=True),
                left=self._left,
            )

    def _make_ready(self, device: Device, width: int, height: int) -> None:
        """Prepare one size at a time: they share a stream, and a graph capture records everything on its stream."""
        with self._warming:
            lanes: Lanes | None = None
            self._check_open()
            try:
                lanes = self._make_lanes(device, width, height)
                lanes.warm_up(self._counts, self._warm_up_stream)
                self._nothing[width, height] = empty(device, lanes.state)
                self._check_open()  # once closed, nobody would free them
            except Exception as error:
                lanes = None
                free_frames(error)
                raise
            self._lanes[width, height] = lanes

    def _forget(self, width: int, height: int) -> None:
        with self._current():
            if (lanes := self._lanes.pop((width, height), None)) is not None:  # None if it was never ready
                lanes.close()
                del lanes  # while the device is current
                del self._nothing[width, height]

    def _start(self, slots: Sequence[Slot]) -> None:
        ours = [slot for slot in slots if isinstance(slot, CudaSlot)]
        with self._starting, self._current() as device:
            lane = self._lanes[ours[0].width, ours[0].height].next()
            upload, compute, download = self._streams
            self._upload(lane, ours, upload)
            self._compute(lane, ours, compute, device)
            self._download(lane, ours, download)

    def seconds_alone(self, slots: Sequence[Slot], times: int) -> dict[str, float]:
        """Time `upload`, `network` and `download` of this batch alone, each the mean of `times` runs back to back.

        No other batch may be under way. The slots' output planes are written.
        """
        ours = [slot for slot in slots if isinstance(slot, CudaSlot)]
        with self._inside_runtime(), self._starting, self._current() as device:
            lane = self._lanes[ours[0].width, ours[0].height].next()
            upload, compute, download = self._streams
            self._upload(lane, ours, upload)
            self._compute(lane, ours, compute, device)
            self._download(lane, ours, download)
            download.synchronize()
            return {
                "upload": mean_seconds(lambda: self._upload(lane, ours, upload), upload, times),
                "network": mean_seconds(lambda: self._run(lane, len(ours), compute), compute, times),
                "download": mean_seconds(lambda: self._download(lane, ours, download), download, times),
            }

    @staticmethod
    def _upload(lane: Lane, slots: Sequence[CudaSlot], stream: Stream) -> None:
        stream.wait_for_event(lane.computed)
        first = slots[0]  # its numbers are read before it is done, and not written by others until then
        for index, slot in enumerate(slots):
            first.coefficients[index] = slot.colour.coefficients()
            first.kept[index] = slot.keep if slot.memory else 0
            for name, plane in slot.sent().items():
                lane.send(plane, name, index, stream)
        lane.send(first.coefficients[: len(slots)], "colour", 0, stream)
        lane.send(first.kept[: len(slots)], "keep", 0, stream)
        lane.filled.record(stream)

    def _compute(self, lane: Lane, slots: Sequence[CudaSlot], stream: Stream, device: Device) -> None:
        stream.wait_for_event(lane.filled)
        stream.wait_for_event(lane.fetched)
        states = [self._states(device, slot, stream) for slot in slots]
        for index, (read, _) in enumerate(states):
            lane.recall(read, index, stream)
        self._run(lane, len(slots), stream)
        for index, (_, kept) in enumerate(states):
            if kept is not None:
                lane.retain(kept.state, index, stream)
                kept.written = True
        lane.computed.record(stream)

    def _run(self, lane: Lane, count: int, stream: Stream) -> None:
        """Run the next larger count that was warmed up: any other would be compiled or captured while pictures wait.

        The places beyond the batch hold old or unwritten data. Each picture is computed by itself, and the results of
        those places are neither fetched nor retained.
        """
        lane.run(min(seen for seen in self._counts if seen >= count), stream)

    @staticmethod
    def _download(lane: Lane, slots: Sequence[CudaSlot], stream: Stream) -> None:
        stream.wait_for_event(lane.computed)
        for index, slot in enumerate(slots):
            for name, plane in slot.fetched().items():
                lane.fetch(plane, name, index, stream)
            slot.done.record(stream)
        lane.fetched.record(stream)

    def _states(self, device: Device, slot: CudaSlot, stream: Stream) -> tuple[State, DeviceMemory | None]:
        """What a picture reads, and where it leaves what its feed keeps: used in the order of the compute stream."""
        size, memory = (slot.width, slot.height), slot.memory
        nothing = self._nothing[size]
        if memory is None:
            return nothing, None
        kept = self._memories.get(memory)
        if kept is None or (kept.version, kept.size) != (memory.version, size):  # new, or another engine had the feed
            numbers, _ = memory.swap()
            memory.forget_past()
            state = self._spare_state(size) or empty(device, self._lanes[size].state)
            self._staging[:] = numbers
            device.write(state["memory"], self._staging, stream)
            stream.synchronize()
            kept = self._memories[memory] = DeviceMemory(state, memory.version, size, self._spare)
        return kept.state if kept.written else {**nothing, "memory": kept.state["memory"]}, kept

    def _spare_state(self, size: Size) -> State | None:
        """What a feed of this size left. It is overwritten in stream order, after all that still use it."""
        for index, (of, _) in enumerate(self._spare):
            if of == size:
                return self._spare.pop(index)[1]
        return None

    def read_memory(self, memory: Memory) -> Numbers:
        """See `Door.read_memory`."""
        with self._inside_runtime(), self._current() as device:
            kept = self._memories.get(memory)
            if kept is None or kept.version != memory.version:  # another engine had the feed
                return memory.numbers()
            numbers, (*_, download) = device.locked((1, self._memory_size), np.float32), self._streams
            device.read(kept.state["memory"], numbers, download)
            download.synchronize()
            return numbers.copy()

    def _finish(self, slot: Slot) -> None:
        assert isinstance(slot, CudaSlot)
        with self._current():
            if not slot.done.query():  # waiting for a finished event would still let all other threads run first
                slot.done.synchronize()


def empty(device: Device, shapes: Mapping[str, Shape]) -> State:
    """Device memory for a feed that has had no picture yet; `shapes` are without the batch."""
    past = no_past({name: shape for name, shape in shapes.items() if name in PAST})
    return {name: device.copy(past.get(name, np.zeros((1, *shape), np.float32))) for name, shape in shapes.items()}


def free_frames(error: BaseException) -> None:
    """Release what the frames of an error hold, mainly device memory, while the device is still current."""
    for each in (error, error.__cause__, error.__context__):
        if each is not None:
            traceback.clear_frames(each.__traceback__)


def mean_seconds(start: Callable[[], None], stream: Stream, times: int) -> float:
    """Mean time of one of `times` runs that are started back to back, until the last is done."""
    began = time.perf_counter()
    for _ in range(times):
        start()
    stream.synchronize()
    return (time.perf_counter() - began) / times
