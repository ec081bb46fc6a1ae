"""Where a GPU computes: lanes that take the batches of one picture size in turn, and what a GPU's library must offer.

Which batch is where, and what waits for what, is decided in `engines.nvidia.cuda_engine`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from numpy.typing import NDArray

from engines.door import Numbers

LANES = 3
"""Batches of one size that are under way at once: one is uploaded, one computed, one downloaded."""

USUAL_BATCH = 8
"""As in the default settings."""


class Event(Protocol):
    """A place in a stream."""

    def record(self, stream: Any, /) -> None:
        """From now on it stands for what is in the stream by now."""

    def query(self) -> bool:
        """Whether the stream has come here."""

    def synchronize(self) -> None:
        """Wait until the stream has come here."""


class Stream(Protocol):
    """Work that the GPU does in order."""

    def wait_for_event(self, event: Any, /) -> None:
        """What follows waits for the event."""

    def synchronize(self) -> None:
        """Wait for all of it."""


class Device(Protocol):
    """A GPU, as one library or another gives access to it."""

    def current(self) -> AbstractContextManager[None]:
        """Within it, and in this thread only, the device may be used."""

    def stream(self) -> Stream:
        """A new stream, which waits for no other by itself."""

    def event(self, *, sleeps: bool = False) -> Event:
        """A new event; who waits for one that `sleeps` leaves the processor to others."""

    def locked(self, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
        """Page-locked host memory, which lives as long as the array."""

    def copy(self, numbers: Numbers) -> Any:
        """Device memory with these numbers, which lives as long as what is returned."""

    def write(self, memory: Any, numbers: Numbers, stream: Any) -> None:
        """Copy page-locked numbers to what `copy` returned for some of their shape; done when the stream is."""

    def read(self, memory: Any, numbers: Numbers, stream: Any) -> None:
        """Copy what `copy` returned to page-locked numbers of its shape; done when the stream is."""


class Lane(ABC):
    """Device memory for one batch at a time, and the network that works on it."""

    def __init__(self, device: Device) -> None:
        self.filled, self.computed, self.fetched = device.event(), device.event(), device.event()

    @abstractmethod
    def send(self, plane: NDArray[Any], name: str, index: int, stream: Any) -> None:
        """Copy from page-locked memory to an input of picture `index`, and of as many behind it as it holds."""

    @abstractmethod
    def fetch(self, plane: NDArray[Any], name: str, index: int, stream: Any) -> None:
        """Copy an output of picture `index` to page-locked memory."""

    @abstractmethod
    def recall(self, memory: Any, index: int, stream: Any) -> None:
        """Copy a feed's memory on the device to the input `memory` of picture `index`."""

    @abstractmethod
    def retain(self, memory: Any, index: int, stream: Any) -> None:
        """Copy the output `memory_out` of picture `index` to a feed's memory on the device."""

    @abstractmethod
    def run(self, count: int, stream: Any) -> None:
        """Start the network on the first `count` pictures."""


class Lanes:
    """The lanes of one picture size, which its batches take in turn."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = list(lanes)

    def next(self) -> Lane:
        """The lane whose last batch was started longest ago."""
        self._lanes.append(lane := self._lanes.pop(0))
        return lane

    def warm_up(self, counts: Sequence[int], stream: Stream) -> None:
        """Let every lane see every count of pictures, on whatever is in its memory: kernels are compiled, graphs
        captured and memory taken now, and not while pictures wait. `stream` is nobody else's.

        Twice each: TensorRT-RTX may capture the graph of a count when that comes again. What was compiled is kept count
        by count, since a process may be ended before the last of them.
        """
        for count in counts:
            for lane in self._lanes:
                lane.run(count, stream)
                lane.run(count, stream)
            stream.synchronize()
            self.keep()

    def keep(self) -> None:
        """Keep what was compiled for the next time."""

    def close(self) -> None:
        """Keep what is worth it, and free the device memory."""
        self.keep()
        self._lanes.clear()


def counts_to_see(largest_batch: int) -> list[int]:
    """The counts of pictures that a size is made ready for, the largest first, since it needs the most memory.

    All up to `USUAL_BATCH`, and of the others the powers of two; the rest run as the next larger one.
    """
    powers = {2**power for power in range(largest_batch.bit_length())}
    return sorted({*range(1, min(USUAL_BATCH, largest_batch) + 1), *powers, largest_batch}, reverse=True)
