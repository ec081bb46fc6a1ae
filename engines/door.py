"""The door, the interface of every engine: fill slots in place, submit them, wait, and read them in place.

Callers use `Door`. It is implemented for one runtime (`engines.ring`), and for several at once (`engines.fallback`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from engines.colour import Colour
from engines.errors import EngineMismatch

SCALE = 2
"""Output size over input size, for every network."""

MEMORY_SECONDS = 0.4
"""Time constant of a feed's memory: shorter flickers more, longer follows changes later."""

Size = tuple[int, int]
"""Width and height."""
Shape = tuple[int, ...]

FAR = -1000.0
"""Fills what is kept of the last picture where there was none: no code value is near it, so nothing of it is used."""

Plane = NDArray[np.uint8]
Numbers = NDArray[np.float32]
Past = dict[str, NDArray[np.float16]]
"""The last picture as the graph kept it, by the names in `PAST`: (1, places, C), see `engines.picture.PictureGraph`."""
PAST = ("past_y", "past_uv")
"""Inputs of the graph; its outputs are `past_y_out` and `past_uv_out`."""


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is and what it takes."""

    runtime: str
    """`openvino`, `tensorrt` or `torch`."""
    device: str
    """The runtime's name for it, for people: "Intel(R) Xeon(R) Processor", "NVIDIA H200"."""
    precision: str
    """`fp32`, `bf16`, `fp16` or `int8`."""
    weights: str
    """Name of the weights, such as `field`."""
    weights_id: str
    """SHA-256 of the stored weights, in hex."""
    scale: int = SCALE
    smallest: tuple[int, int] = (16, 16)
    """Width and height; odd sizes are fine."""
    largest: tuple[int, int] = (4096, 4096)
    largest_batch: int = 32
    batch: int = 32
    """Pictures computed together; the rest of a larger batch only waits inside the engine."""
    depth: int = 3
    """Submitted batches that keep it busy: with fewer it idles between two, and more only wait."""

    def __str__(self) -> str:
        return f"{self.runtime} {self.precision} on {self.device}, weights {self.weights}"


def kept_after(seconds: float) -> float:
    """The share of a feed's memory, 0 to 1, to keep for a picture this long after the previous one."""
    return math.exp(-seconds / MEMORY_SECONDS)


class Memory:
    """What an engine keeps of one feed from picture to picture, so that brightness and noise do not flicker.

    These are the numbers of feature fusing (`engines.network.memory`) and the last picture (`engines.temporal`). The
    caller of `Door.new_memory` owns it, sets it on one slot after another, and uses it for one picture size only.
    """

    def __init__(self, numbers: int) -> None:
        """An empty memory, for a feed that has had no picture yet."""
        self._both = np.zeros((2, 1, numbers), np.float32)
        self._pasts: tuple[Past, Past] | None = None
        self.version = 0
        """Calls of `swap` and `clear`: they tell an engine with a copy on its device that another used the memory."""

    @classmethod
    def of(cls, numbers: Numbers) -> Self:
        """A memory that holds these numbers (1, C) and no picture."""
        memory = cls(numbers.shape[1])
        memory._both[0] = numbers
        return memory

    def numbers(self) -> Numbers:
        """A copy of the numbers, (1, C) float32; outdated if an engine keeps them on its device, see
        `Door.read_memory`."""
        held: Numbers = self._both[0].copy()
        return held

    def swap(self) -> tuple[Numbers, Numbers]:
        """What the next picture reads, and where to write what it leaves: (1, C) float32 each."""
        self._both = self._both[::-1]
        self.version += 1
        return self._both[1], self._both[0]

    def swap_past(self, shapes: Mapping[str, Shape]) -> tuple[Past, Past]:
        """The last picture, which the next one reads, and where to write that one; `shapes` are without the batch, and
        always the same."""
        if self._pasts is None:
            self._pasts = no_past(shapes), no_past(shapes)
        self._pasts = self._pasts[::-1]
        return self._pasts[1], self._pasts[0]

    def forget_past(self) -> None:
        """Free the last picture, once an engine keeps it on its device."""
        self._pasts = None

    def clear(self) -> None:
        """Empty the memory; a picture still under way writes to the old arrays, not to the new ones."""
        self._both = np.zeros_like(self._both)
        self._pasts = None
        self.version += 1


def no_past(shapes: Mapping[str, Shape]) -> Past:
    """What is kept of the last picture where there was none; `shapes` are without the batch."""
    return {name: np.full((1, *shape), FAR, np.float16) for name, shape in shapes.items()}


@dataclass
class Slot:
    """A place in the engine for one picture. The planes belong to the engine; use them until `release`."""

    width: int
    height: int
    y: Plane
    """(H, W) uint8, to be filled."""
    uv: Plane
    """(2, ceil(H/2), ceil(W/2)) uint8, to be filled: U, then V."""
    y_out: Plane
    """(2H, 2W) uint8, to be read after `wait`."""
    uv_out: Plane
    """(2, H, W) uint8, to be read after `wait`."""
    engine: Door = field(repr=False)
    colour: Colour = field(default_factory=Colour)
    memory: Memory | None = None
    """The memory of the picture's feed; None for a picture on its own. No two slots of a batch share one."""
    keep: float = 0.0
    """The share of the memory to keep, 0 to 1; the network itself keeps less across a cut, and less of the last picture
    where something moved. Above 1 it extrapolates past the memory's numbers, see `engines.tiles`."""
    under_way: bool = field(default=False, repr=False)
    """Whether it was submitted and not waited for yet; set by the engine only."""

    def wait(self) -> None:
        """Block until the output planes hold the enhanced picture; raises `EngineError` if that failed.

        May be called more than once, and from any thread.
        """
        self.engine.wait(self)

    def release(self) -> None:
        """Give the slot back; its planes must not be touched after that.

        If the slot was submitted but never waited for, blocks until the engine is done with it.
        """
        self.engine.release(self)


class Door(ABC):
    """An opened network. A context manager; all methods may be called from any thread."""

    info: EngineInfo
    """The engine in use; with `engines.fallback` all but its weights can change."""
    reason: str | None = None
    """Why a better engine is not in use, for people; None if nothing went wrong."""

    @property
    def failures(self) -> dict[str, int]:
        """How often each runtime's engine was given up for the next one, for one size or for all."""
        return {self.info.runtime: 0}

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @abstractmethod
    def acquire(self, width: int, height: int, timeout: float | None = None) -> Slot:
        """A free slot for pictures of this size; waits up to `timeout` seconds for one (None: without limit).

        Raises `EngineMismatch` for a size outside `info`, `TimeoutError`, and `EngineError` after exit or if memory
        runs out. The first call for a size prepares the engine for it, which can take seconds.
        """

    @abstractmethod
    def prepare(self, width: int, height: int) -> None:
        """Make the engine ready for pictures of this size, so that `acquire` need not; blocks until it is.

        Raises what `acquire` raises.
        """

    @abstractmethod
    def is_ready(self, width: int, height: int) -> bool:
        """Whether the engine is prepared for pictures of this size."""

    @abstractmethod
    def set_limits(self, slots: int, sizes: int) -> None:
        """Set how many pictures of one size may be in the engine at once, and how many sizes it keeps.

        Unused slots and sizes beyond that are freed.
        """

    @abstractmethod
    def new_memory(self) -> Memory:
        """An empty memory for a feed; set it on the slots of the feed's pictures, in order."""

    def read_memory(self, memory: Memory) -> Numbers:
        """A copy of what a memory of this engine holds after `wait`: (1, numbers) float32.

        Raises `EngineMismatch` if several engines share it.
        """
        del memory
        raise EngineMismatch(f"the memory of {self.info} cannot be read")

    @abstractmethod
    def submit(self, slots: Sequence[Slot]) -> None:
        """Start enhancing filled slots, all of one size; they may be computed as one batch."""

    @abstractmethod
    def wait(self, slot: Slot) -> None:
        """See `Slot.wait`."""

    @abstractmethod
    def release(self, slot: Slot) -> None:
        """See `Slot.release`."""

    def enhance(
        self, y: Plane, uv: Plane, colour: Colour, memory: Memory | None = None, keep: float = 0.0
    ) -> tuple[Plane, Plane]:
        """Enhance one picture, copying planes in and out: for single pictures and tests, not for video."""
        height, width = y.shape
        slot = self.acquire(width, height)
        try:
            slot.y[:], slot.uv[:], slot.colour = y, uv, colour
            slot.memory, slot.keep = memory, keep
            self.submit([slot])
            slot.wait()
            return slot.y_out.copy(), slot.uv_out.copy()
        finally:
            slot.release()
