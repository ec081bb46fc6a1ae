"""Lanes, which take the batches of one picture size in turn, and the interfaces of a GPU library that they need.

`engines.nvidia.cuda_engine` decides which batch uses which lane, and what waits for what.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from numpy.typing import NDArray

from engines.door import PAST, Numbers, Shape

LANES = 3
"""Batches of one size under way at once: one is uploaded, one computed, one downloaded."""

STATE = ("memory", *PAST)
"""What a feed has on the device: inputs of the graph, whose outputs `memory_out`, `past_y_out` and `past_uv_out` are
the inputs of the feed's next picture."""

USUAL_BATCH = 8
"""As in the default settings."""


class Event(Protocol):
    """A place in a stream."""

    def record(self, stream: Any, /) -> None:
        """Mark the work that is in the stream so far."""

    def query(self) -> bool:
        """Whether the stream has reached the event."""

    def synchronize(self) -> None:
        """Wait until the stream has reached the event."""


class Stream(Protocol):
    """A queue of work that the GPU does in order."""

    def wait_for_event(self, event: Any, /) -> None:
        """Make later work in the stream wait for the event."""

    def synchronize(self) -> None:
        """Wait for all work in the stream."""


class Device(Protocol):
    """A GPU, through one library or another."""

    def current(self) -> AbstractContextManager[None]:
        """A context in which this thread, and only it, may use the device."""

    def stream(self) -> Stream:
        """A new stream, which does not synchronise with the default stream."""

    def event(self, *, sleeps: bool = False) -> Event:
        """A new event; waiting for one that `sleeps` blocks the thread instead of spinning."""

    def locked(self, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
        """Page-locked host memory, which lives as long as the array."""

    def copy(self, numbers: NDArray[Any]) -> Any:
        """Device memory with these numbers; it lives as long as the returned object."""

    def write(self, memory: Any, numbers: Numbers, stream: Any) -> None:
        """Copy page-locked numbers to memory that `copy` returned for the same shape; done when the stream is."""

    def read(self, memory: Any, numbers: Numbers, stream: Any) -> None:
        """Copy memory that `copy` returned to page-locked numbers of its shape; done when the stream is."""


class Lane(ABC):
    """Device memory for one batch at a time, and the network that works on it."""

    def __init__(self, device: Device) -> None:
        self.filled, self.computed, self.fetched = device.event(), device.event(), device.event()

    @abstractmethod
    def send(self, plane: NDArray[Any], name: str, index: int, stream: Any) -> None:
        """Copy page-locked memory to an input, from picture `index` on, for as many pictures as it holds."""

    @abstractmethod
    def fetch(self, plane: NDArray[Any], name: str, index: int, stream: Any) -> None:
        """Copy an output of picture `index` to page-locked memory."""

    @abstractmethod
    def recall(self, state: Mapping[str, Any], index: int, stream: Any) -> None:
        """Copy what a feed has on the device, by names in `STATE`, to the inputs of picture `index`."""

    @abstractmethod
    def retain(self, state: Mapping[str, Any], index: int, stream: Any) -> None:
        """Copy the outputs of picture `index` to what its feed has on the device, by names in `STATE`."""

    @abstractmethod
    def run(self, count: int, stream: Any) -> None:
        """Start the network on the first `count` pictures."""


class Lanes:
    """The lanes of one picture size, used in turn by its batches."""

    def __init__(self, lanes: Sequence[Lane], state: Mapping[str, Shape]) -> None:
        """`state` are the shapes of what a feed has on the device, without the batch."""
        self._lanes = list(lanes)
        self.state = dict(state)

    def next(self) -> Lane:
        """The lane whose last batch was started longest ago."""
        self._lanes.append(lane := self._lanes.pop(0))
        return lane

    def warm_up(self, counts: Sequence[int], stream: Stream) -> None:
        """Run every lane on every count of pictures, with whatever is in its memory: this compiles kernels, captures
        graphs and allocates memory before pictures wait. Nothing else may use `stream`.

        Each runs twice, since TensorRT-RTX may capture a graph when a count comes again. What was compiled is kept
        after each count, in case the process is ended before the last one.
        """
        for count in counts:
            for lane in self._lanes:
                lane.run(count, stream)
                lane.run(count, stream)
            stream.synchronize()
            self.keep()

    def keep(self) -> None:
        """Store what was compiled for the next start."""

    def close(self) -> None:
        """Store what was compiled, and free the device memory."""
        self.keep()
        self._lanes.clear()


def counts_to_see(largest_batch: int) -> list[int]:
    """The counts of pictures to warm up, the largest first, since it needs the most memory.

    These are all up to `USUAL_BATCH`, the larger powers of two, and `largest_batch`; other counts run as the next
    larger one.
    """
    powers = {2**power for power in range(largest_batch.bit_length())}
    return sorted({*range(1, min(USUAL_BATCH, largest_batch) + 1), *powers, largest_batch}, reverse=True)
