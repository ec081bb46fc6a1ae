"""An engine with a time limit on its pictures, so that a GPU that hangs does not hang the relay.

A wait inside a driver cannot be interrupted. So one thread waits there for every picture in order, and callers wait for
that thread, up to a limit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from engines.door import Door, Memory, Numbers, Slot
from engines.errors import EngineError

PATIENCE_LOOKS, LOOK_SECONDS = 10, 1.0
"""A picture that has not come after so many waits of so many seconds is given up. If the process was suspended
meanwhile, it loses one wait, not the whole limit."""
LONGEST_PREPARING = 300.0
"""Seconds after which the preparation of a size no longer excuses a missing picture."""


@dataclass(eq=False)
class Watched:
    """A slot that was submitted."""

    slot: Slot
    done: threading.Event = field(default_factory=threading.Event)
    failure: Exception | None = None
    """Why there is no picture, once that is known."""


@dataclass(eq=False)
class Preparation:
    """A size that is being made ready."""

    began: float = field(default_factory=time.monotonic)


class WatchedEngine(Door):
    """Wraps another engine, and raises if a picture does not come in time.

    While a size is being prepared, which may occupy the whole device, there is no limit, for `LONGEST_PREPARING` at
    most. A slot whose picture did not come stays with the engine until that is done with it.
    """

    def __init__(self, engine: Door) -> None:
        self.info = engine.info
        self._engine = engine
        self._watched: dict[int, Watched] = {}  # by id of the slot, from `submit` to `release`
        self._tasks: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._watching = threading.Thread(target=self._watch, name="nightbridge-engine-watch", daemon=True)
        self._preparing: set[Preparation] = set()
        self._hangs = False

    def __enter__(self) -> Self:
        self._engine.__enter__()
        self._watching.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tasks.put(None)
        self._watching.join()
        self._engine.__exit__(kind, error, trace)

    def acquire(self, width: int, height: int, timeout: float | None = None) -> Slot:
        """See `Door.acquire`."""
        if self.is_ready(width, height):
            slot = self._engine.acquire(width, height, timeout)
        else:
            with self._as_preparing():
                slot = self._engine.acquire(width, height, timeout)
        slot.engine = self
        return slot

    def prepare(self, width: int, height: int) -> None:
        """See `Door.prepare`."""
        with self._as_preparing():
            self._engine.prepare(width, height)

    def is_ready(self, width: int, height: int) -> bool:
        """See `Door.is_ready`."""
        return self._engine.is_ready(width, height)

    def set_limits(self, slots: int, sizes: int) -> None:
        """See `Door.set_limits`."""
        self._engine.set_limits(slots, sizes)

    def new_memory(self) -> Memory:
        """See `Door.new_memory`."""
        return self._engine.new_memory()

    def read_memory(self, memory: Memory) -> Numbers:
        """See `Door.read_memory`."""
        return self._engine.read_memory(memory)

    def submit(self, slots: Sequence[Slot]) -> None:
        """See `Door.submit`."""
        try:
            self._engine.submit(slots)
        finally:  # a failed batch may be partly under way
            for slot in slots:
                watched = self._watched[id(slot)] = Watched(slot)
                self._tasks.put(partial(self._await, watched))

    def wait(self, slot: Slot) -> None:
        """See `Slot.wait`; raises `EngineError` also if the picture does not come in time."""
        watched = self._watched.get(id(slot))
        if watched is None:  # nothing is under way: it returns at once
            self._engine.wait(slot)
            return
        if not self._wait_for(watched):
            raise EngineError(f"no picture within {PATIENCE_LOOKS * LOOK_SECONDS:g} s")
        self._watched.pop(id(slot), None)
        if watched.failure is not None:
            raise watched.failure

    def release(self, slot: Slot) -> None:
        """See `Slot.release`."""
        if slot.under_way:
            with suppress(EngineError):
                self.wait(slot)
        self._watched.pop(id(slot), None)
        if slot.under_way:
            self._tasks.put(partial(self._engine.release, slot))  # after the wait for its picture
        else:
            self._engine.release(slot)

    def _wait_for(self, watched: Watched) -> bool:
        """Wait for a picture; returns whether it came. Once one did not, no other is waited for."""
        looks = PATIENCE_LOOKS
        while not self._hangs:
            if watched.done.wait(LOOK_SECONDS):
                return True
            looks = PATIENCE_LOOKS if self._is_preparing() else looks - 1
            if looks == 0:
                self._hangs = True
        return watched.done.is_set()

    def _watch(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()

    def _await(self, watched: Watched) -> None:
        try:
            self._engine.wait(watched.slot)
        except Exception as error:
            watched.failure = error
        watched.done.set()

    def _is_preparing(self) -> bool:
        latest = time.monotonic() - LONGEST_PREPARING
        return any(preparation.began > latest for preparation in self._preparing.copy())

    @contextmanager
    def _as_preparing(self) -> Iterator[None]:
        preparation = Preparation()
        self._preparing.add(preparation)
        try:
            yield
        finally:
            self._preparing.discard(preparation)
