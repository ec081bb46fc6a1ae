"""The door of every engine: a ring of slots that are filled in place, submitted, waited for and read in place.

A runtime is a subclass that makes a slot's planes, starts a batch and finishes a slot; everything that
callers rely on (checks, the ring, use after exit) lives here once.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from engines.colour import Colour
from engines.errors import EngineError, EngineMismatch

SCALE = 2
"""Every network of this project doubles."""

Plane = NDArray[np.uint8]


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
    engine: Engine = field(repr=False)
    colour: Colour = field(default_factory=Colour)

    def wait(self) -> None:
        """Block until the output planes hold the enhanced picture; raises `EngineError` where that failed."""
        self.engine.wait(self)

    def release(self) -> None:
        """Give the slot back; its planes must not be touched any more."""
        self.engine.release(self)


class Engine(ABC):
    """An opened network. A context manager; all methods may be called from any thread."""

    def __init__(self, info: EngineInfo, slots: int) -> None:
        """`slots` bounds the memory: no more pictures of one size than this are in the engine at once.

        So many sizes are kept, too; then the one that was not asked for for the longest time is forgotten.
        """
        self.info = info
        self._slots = slots
        self._rings: dict[tuple[int, int], list[Slot]] = {}
        self._made: dict[tuple[int, int], int] = {}
        self._free = threading.Condition()
        self._making = threading.Lock()
        self._opened = False

    def __enter__(self) -> Self:
        self._open()
        self._opened = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._free:
            self._opened = False
            self._rings.clear()
            self._made.clear()
            self._free.notify_all()
        self._close()

    def acquire(self, width: int, height: int, timeout: float | None = None) -> Slot:
        """A free slot for pictures of this size; waits for one, `timeout` seconds at most (None: for ever).

        Raises `EngineMismatch` for a size outside `info`, `TimeoutError`, and `EngineError` after exit or where
        there is no memory. The first call for a size prepares the engine for it, which can take seconds.
        """
        low, high = self.info.smallest, self.info.largest
        if not (low[0] <= width <= high[0] and low[1] <= height <= high[1]):
            raise EngineMismatch(
                f"a picture of {width}x{height}; this engine takes {low[0]}x{low[1]} to {high[0]}x{high[1]}"
            )
        size = (width, height)
        with self._free:
            if not self._free.wait_for(lambda: self._has_room(size), timeout):
                raise TimeoutError(f"no free slot for {width}x{height} within {timeout} s")
            self._check_open()
            ring = self._rings[size] = self._rings.pop(size, [])  # sizes stand in the order of their last use
            if ring:
                return ring.pop()
            self._made[size] = self._made.get(size, 0) + 1
            self._forget_sizes()
        try:
            with self._making, self._as_engine_error():
                return self._make(width, height)
        except BaseException:
            with self._free:
                if self._opened:
                    self._made[size] -= 1
                    self._free.notify_all()
            raise

    def submit(self, slots: Sequence[Slot]) -> None:
        """Start enhancing filled slots, which may be one batch and must all have one size."""
        self._check_open()
        sizes = {(slot.width, slot.height) for slot in slots}
        if len(sizes) != 1 or len(slots) > self.info.largest_batch:
            raise EngineMismatch(
                f"a batch of {len(slots)} pictures of sizes {sorted(sizes)}; "
                f"a batch is 1 to {self.info.largest_batch} pictures of one size"
            )
        with self._as_engine_error():
            self._start(slots)

    def wait(self, slot: Slot) -> None:
        """See `Slot.wait`."""
        self._check_open()
        with self._as_engine_error():
            self._finish(slot)

    def release(self, slot: Slot) -> None:
        """See `Slot.release`."""
        with self._free:
            if self._opened:
                self._rings[slot.width, slot.height].append(slot)
                self._free.notify_all()

    def enhance(self, y: Plane, uv: Plane, colour: Colour) -> tuple[Plane, Plane]:
        """One picture through the engine, copied in and out: for pictures and tests, not for video."""
        height, width = y.shape
        slot = self.acquire(width, height)
        try:
            slot.y[:], slot.uv[:], slot.colour = y, uv, colour
            self.submit([slot])
            slot.wait()
            return slot.y_out.copy(), slot.uv_out.copy()
        finally:
            slot.release()

    def _check_open(self) -> None:
        if not self._opened:
            raise EngineError("the engine is closed: use it inside its `with` block")

    def _has_room(self, size: tuple[int, int]) -> bool:
        return not self._opened or bool(self._rings.get(size)) or self._made.get(size, 0) < self._slots

    def _forget_sizes(self) -> None:
        """Free the memory of sizes beyond `slots` that nobody uses, least recently used first."""
        idle = [size for size, ring in self._rings.items() if len(ring) == self._made[size]]
        for size in idle[: max(0, len(self._rings) - self._slots)]:
            del self._rings[size], self._made[size]
            self._forget(*size)

    @contextmanager
    def _as_engine_error(self) -> Iterator[None]:
        """What a runtime raises, as `EngineError`."""
        try:
            yield
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"{self.info.runtime} failed: {error}") from error

    @abstractmethod
    def _open(self) -> None:
        """Take the device."""

    @abstractmethod
    def _close(self) -> None:
        """Free the device and all memory."""

    @abstractmethod
    def _make(self, width: int, height: int) -> Slot:
        """A slot with fresh planes."""

    def _forget(self, width: int, height: int) -> None:  # noqa: B027 - a runtime may have nothing to free
        """Free what was prepared for a size that has no slots any more."""

    @abstractmethod
    def _start(self, slots: Sequence[Slot]) -> None:
        """Start one batch."""

    @abstractmethod
    def _finish(self, slot: Slot) -> None:
        """Wait for one slot of a started batch."""
