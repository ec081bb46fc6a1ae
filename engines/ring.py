"""The ring of slots behind the door of every runtime.

`Engine` does what all runtimes share (checks, the ring, errors after exit); a runtime's subclass makes a slot's planes,
starts a batch and finishes a slot.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from engines.door import Door, EngineInfo, Memory, Numbers, Slot
from engines.errors import EngineError, EngineMismatch

EXIT_SECONDS = 5.0
"""How long an exit waits for a thread that opens, prepares or closes an engine: nothing can interrupt it."""

_inside: set[object] = set()
"""One token for each thread that is inside a runtime, over all engines."""


def is_busy() -> bool:
    """Whether a thread is preparing a size, starting a batch or waiting for a picture, in any engine."""
    return bool(_inside)


class Engine(Door):
    """One runtime: a ring of slots for each size."""

    def __init__(self, info: EngineInfo, slots: int) -> None:
        """`slots` bounds the memory: it is the most pictures of one size at once, and the most sizes kept.

        Beyond that the least recently used size is forgotten. See `set_limits`.
        """
        self.info = info
        self._slots = self._sizes = slots
        self._rings: dict[tuple[int, int], list[Slot]] = {}
        self._made: dict[tuple[int, int], int] = {}
        self._free = threading.Condition()
        self._making: dict[tuple[int, int], threading.Lock] = {}
        self._ready: set[tuple[int, int]] = set()
        self._opened = False
        self._memory_size = 0

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException as error:
            with suppress(Exception):  # what was not opened cannot be closed
                self._close()
            if isinstance(error, EngineError) or not isinstance(error, Exception):
                raise
            raise EngineError(str(error)) from error
        self._opened = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._free:
            self._opened = False
            self._rings.clear()
            self._made.clear()
            self._making.clear()
            self._ready.clear()
            self._free.notify_all()
        self._close()

    def acquire(self, width: int, height: int, timeout: float | None = None) -> Slot:
        """See `Door.acquire`."""
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
            ring = self._rings[size] = self._rings.pop(size, [])  # sizes are ordered by last use
            if ring:
                return ring.pop()
            self._made[size] = self._made.get(size, 0) + 1
            making = self._making.setdefault(size, threading.Lock())  # a slow size delays no other
        try:
            with self._inside_runtime():
                self._forget_sizes()
                with making:
                    slot = self._make(width, height)
                    self._ready.add(size)
                    return slot
        except BaseException:
            with self._free:
                if self._opened:
                    self._made[size] -= 1
                    self._free.notify_all()
            raise

    def prepare(self, width: int, height: int) -> None:
        """See `Door.prepare`."""
        if not self.is_ready(width, height):
            self.acquire(width, height).release()

    def is_ready(self, width: int, height: int) -> bool:
        """See `Door.is_ready`."""
        with self._free:
            return (width, height) in self._ready

    def set_limits(self, slots: int, sizes: int) -> None:
        """See `Door.set_limits`."""
        surplus: list[Slot] = []  # freed outside the lock
        with self._free:
            self._slots, self._sizes = slots, sizes
            for size, ring in self._rings.items():
                while ring and self._made[size] > slots:
                    surplus.append(ring.pop())
                    self._made[size] -= 1
            self._free.notify_all()
        surplus.clear()
        self._forget_sizes()

    def new_memory(self) -> Memory:
        """See `Door.new_memory`."""
        self._check_open()
        return Memory(self._memory_size)

    def read_memory(self, memory: Memory) -> Numbers:
        """See `Door.read_memory`."""
        self._check_open()
        return memory.numbers()

    def submit(self, slots: Sequence[Slot]) -> None:
        """See `Door.submit`."""
        self._check_open()
        sizes = {(slot.width, slot.height) for slot in slots}
        if len(sizes) != 1 or len(slots) > self.info.largest_batch:
            raise EngineMismatch(
                f"a batch of {len(slots)} pictures of sizes {sorted(sizes)}; "
                f"a batch is 1 to {self.info.largest_batch} pictures of one size"
            )
        with self._inside_runtime():
            for slot in slots:
                slot.under_way = True  # even if starting the batch fails half-way
            self._start(slots)

    def wait(self, slot: Slot) -> None:
        """See `Slot.wait`."""
        self._check_open()
        with self._inside_runtime():
            try:
                self._finish(slot)
            finally:
                slot.under_way = False

    def release(self, slot: Slot) -> None:
        """See `Slot.release`."""
        if slot.under_way:  # its next user would find it busy
            with suppress(EngineError):
                self.wait(slot)
        with self._free:
            if self._opened:
                slot.memory = None  # which would outlive its feed
                self._rings[slot.width, slot.height].append(slot)
                self._free.notify_all()

    def _check_open(self) -> None:
        if not self._opened:
            raise EngineError("the engine is closed: use it inside its `with` block")

    def _has_room(self, size: tuple[int, int]) -> bool:
        return not self._opened or self._made.get(size, 0) - len(self._rings.get(size, ())) < self._slots

    def _forget_sizes(self) -> None:
        """Free unused sizes beyond those to keep, least recently used first.

        Freeing is slow, but delays only callers that ask for the same size again.
        """
        with self._free:
            idle = [size for size, ring in self._rings.items() if len(ring) == self._made[size]]
            surplus = idle[: max(0, len(self._rings) - self._sizes)]
            gone = [(size, self._making[size], self._rings.pop(size)) for size in surplus]
            for size in surplus:
                del self._made[size]
                self._ready.discard(size)
        for size, making, ring in gone:
            ring.clear()
            if making.acquire(blocking=False):  # else it is being made again
                try:
                    self._forget_unless_wanted(size)
                finally:
                    making.release()

    def _forget_unless_wanted(self, size: tuple[int, int]) -> None:
        """Forget a size unless it was asked for again; its lock must be held."""
        with self._free:
            if size in self._rings:
                return
        self._forget(*size)
        with self._free:
            if size not in self._rings:  # a caller that asks for it meanwhile waits for the lock
                self._making.pop(size, None)

    @contextmanager
    def _inside_runtime(self) -> Iterator[None]:
        """Turn what a runtime raises into `EngineError`, and count this thread for `is_busy`."""
        thread = object()
        _inside.add(thread)
        try:
            yield
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"{self.info.runtime} failed: {error}") from error
        finally:
            _inside.discard(thread)

    @abstractmethod
    def _open(self) -> None:
        """Take the device, and set `_memory_size` to how many numbers a memory has."""

    @abstractmethod
    def _close(self) -> None:
        """Free the device and all memory."""

    @abstractmethod
    def _make(self, width: int, height: int) -> Slot:
        """A slot with fresh planes."""

    def _forget(self, width: int, height: int) -> None:
        """Free what was prepared for a size that has no slots left."""

    @abstractmethod
    def _start(self, slots: Sequence[Slot]) -> None:
        """Start one batch."""

    @abstractmethod
    def _finish(self, slot: Slot) -> None:
        """Wait for one slot of a started batch."""
