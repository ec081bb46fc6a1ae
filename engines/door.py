"""The door of every engine: slots that are filled in place, submitted, waited for and read in place.

`Door` is what callers see. Behind it stands the ring of one runtime (`engines.ring`), or several (`engines.fallback`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from engines.colour import Colour
from engines.errors import EngineMismatch

SCALE = 2
"""Every network of this project doubles."""

MEMORY_SECONDS = 0.4
"""Time constant of what is remembered of a feed: shorter flickers more, longer follows changes late."""

Plane = NDArray[np.uint8]
Numbers = NDArray[np.float32]


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is and what it takes."""

    runtime: str
    """`openvino`, `tensorrt` or `torch`."""
    device: str
    """As the runtime calls it, for people: "Intel(R) Xeon(R) Processor", "NVIDIA H200"."""
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
    """Pictures that it computes as one: more of a batch only wait in it for their turn."""
    depth: int = 3
    """Batches that keep it busy: with fewer in it, it stands idle between two; more only wait in it."""

    def __str__(self) -> str:
        return f"{self.runtime} {self.precision} on {self.device}, weights {self.weights}"


def kept_after(seconds: float) -> float:
    """The share of a feed's memory, 0 to 1, that is kept for a picture that comes so much later than the last one."""
    return math.exp(-seconds / MEMORY_SECONDS)


class Memory:
    """What an engine keeps of one feed from picture to picture, so that brightness does not flicker.

    Belongs to whoever asked for it (`Engine.remember`), is lent to one slot after another, and is used for pictures of
    one size only.
    """

    def __init__(self, numbers: int) -> None:
        """Empty: for a feed whose first picture is still to come."""
        self._both = np.zeros((2, 1, numbers), np.float32)
        self.turns = 0
        """How often it was turned or cleared; an engine that keeps a copy elsewhere sees by it that another used it."""

    @classmethod
    def of(cls, numbers: Numbers) -> Self:
        """One that holds these numbers (1, C), as if a picture had left them."""
        memory = cls(numbers.shape[1])
        memory._both[0] = numbers
        return memory

    def numbers(self) -> Numbers:
        """(1, numbers) float32, the caller's: what it holds, unless an engine keeps that elsewhere meanwhile; see
        `Door.recollect`."""
        held: Numbers = self._both[0].copy()
        return held

    def turn(self) -> tuple[Numbers, Numbers]:
        """(1, numbers) float32 each: what to read for the next picture, and where to write what it leaves."""
        self._both = self._both[::-1]
        self.turns += 1
        return self._both[1], self._both[0]

    def clear(self) -> None:
        """Become empty; whoever still writes what a picture leaves does not write it here."""
        self._both = np.zeros_like(self._both)
        self.turns += 1


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
    """Of the feed that the picture belongs to; None for a picture that stands alone. No two of a batch share one."""
    keep: float = 0.0
    """The share of the memory that is kept, 0 to 1; less across a cut, which the network sees by itself. Beyond 1 the
    picture goes on past the memory, see `engines.tiles`."""
    under_way: bool = field(default=False, repr=False)
    """Whether it was submitted, and nobody has waited for it yet; the engine's."""

    def wait(self) -> None:
        """Block until the output planes hold the enhanced picture; raises `EngineError` where that failed.

        Another call, from any thread, does the same.
        """
        self.engine.wait(self)

    def release(self) -> None:
        """Give the slot back; its planes must not be touched any more.

        Returns when the engine has done with it, too: at once, unless nobody waited for a slot that was submitted.
        """
        self.engine.release(self)


class Door(ABC):
    """An opened network. A context manager; all methods may be called from any thread."""

    info: EngineInfo
    """What enhances now; with `engines.fallback` that can change, but for the weights."""
    reason: str | None = None
    """Why that is not the engine that should, for people; None where nothing went wrong."""

    @property
    def failures(self) -> dict[str, int]:
        """By runtime: how often its engine was given up for the next one, for one size or for all."""
        return {self.info.runtime: 0}

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @abstractmethod
    def acquire(self, width: int, height: int, timeout: float | None = None) -> Slot:
        """A free slot for pictures of this size; waits for one, `timeout` seconds at most (None: for ever).

        Raises `EngineMismatch` for a size outside `info`, `TimeoutError`, and `EngineError` after exit or where
        there is no memory. The first call for a size prepares the engine for it, which can take seconds.
        """

    @abstractmethod
    def prepare(self, width: int, height: int) -> None:
        """Return when the engine is ready for pictures of this size, so that `acquire` need not make it so.

        Raises what `acquire` raises.
        """

    @abstractmethod
    def is_ready(self, width: int, height: int) -> bool:
        """Whether `acquire` need not prepare the engine for this size."""

    @abstractmethod
    def allow(self, slots: int, sizes: int) -> None:
        """From now on let so many pictures of one size be in the engine at once, and keep so many sizes.

        What is beyond that and nobody uses is freed.
        """

    @abstractmethod
    def remember(self) -> Memory:
        """An empty memory for a feed, to be set on the slots of its pictures in their order."""

    def recollect(self, memory: Memory) -> Numbers:
        """What a memory that this engine made holds after `wait`: (1, numbers) float32, the caller's.

        Raises `EngineMismatch` where several engines share it.
        """
        del memory
        raise EngineMismatch(f"{self.info} does not tell what it remembers")

    @abstractmethod
    def submit(self, slots: Sequence[Slot]) -> None:
        """Start enhancing filled slots, which may be one batch and must all have one size."""

    @abstractmethod
    def wait(self, slot: Slot) -> None:
        """See `Slot.wait`."""

    @abstractmethod
    def release(self, slot: Slot) -> None:
        """See `Slot.release`."""

    def enhance(
        self, y: Plane, uv: Plane, colour: Colour, memory: Memory | None = None, keep: float = 0.0
    ) -> tuple[Plane, Plane]:
        """One picture through the engine, copied in and out: for pictures and tests, not for video."""
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
