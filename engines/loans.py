"""Which engine each slot in use came from, and which engine used the memory of a feed last."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from weakref import WeakKeyDictionary

from engines.door import Door, Memory, Slot
from engines.errors import EngineError


@dataclass(eq=False)
class Loan:
    """A slot in a caller's hands, and the engine that it came from."""

    slot: Slot
    engine: Door
    under_way: bool = False
    """Whether it was submitted and not waited for yet."""
    failure: EngineError | None = None
    """Why it could not be submitted; raised to whoever waits for it."""


class Loans:
    """The slots in callers' hands. All methods may be called from any thread."""

    def __init__(self, changed: threading.Condition) -> None:
        """`changed` guards the loans, and is notified when one ends."""
        self._changed = changed
        self._loans: dict[int, Loan] = {}  # by id of the slot
        self._users: WeakKeyDictionary[Memory, Door] = WeakKeyDictionary()  # the last engine that used a memory

    def lend(self, slot: Slot, engine: Door) -> None:
        """Begin a loan."""
        with self._changed:
            self._loans[id(slot)] = Loan(slot, engine)

    def of(self, slot: Slot) -> Loan:
        """The loan of a slot; raises `KeyError` if there is none."""
        with self._changed:
            return self._loans[id(slot)]

    def end(self, slot: Slot) -> Loan | None:
        """End a loan and return it; None if there is none, as after `clear`."""
        with self._changed:
            self._changed.notify_all()
            return self._loans.pop(id(slot), None)

    def clear(self) -> None:
        """Forget all loans."""
        with self._changed:
            self._loans.clear()
            self._changed.notify_all()

    def any_of(self, engine: Door) -> bool:
        """Whether a caller has a slot of this engine."""
        with self._changed:
            return any(loan.engine is engine for loan in self._loans.values())

    def batches(self, slots: Sequence[Slot]) -> Iterator[tuple[Door, list[Loan]]]:
        """Split slots, in order, into batches of one engine each, none larger than that engine takes."""
        for engine, loans in groupby(map(self.of, slots), lambda loan: loan.engine):
            whole, limit = list(loans), engine.info.largest_batch
            for start in range(0, len(whole), limit):
                yield engine, whole[start : start + limit]

    def pass_memories_on(self, engine: Door, batch: Sequence[Loan], last: Door) -> None:
        """Bring the memories of a batch up to date before `engine` uses them.

        Waits for the `last` engine's pictures; clears what another engine used, since that is lost on its device.
        """
        for loan in batch:
            memory = loan.slot.memory
            if memory is None:
                continue
            with self._changed:
                before, self._users[memory] = self._users.get(memory, engine), engine
            if before not in (engine, last):
                memory.clear()
                loan.slot.keep = 0.0
            elif before is not engine:
                self._finish(before, memory)

    def _finish(self, engine: Door, memory: Memory) -> None:
        """Wait until no picture of a feed is under way in an engine; their errors go to their own waiters."""
        with self._changed:
            loans = [loan for loan in self._loans.values() if loan.engine is engine and loan.slot.memory is memory]
        for loan in loans:
            if loan.under_way:
                with suppress(EngineError):
                    engine.wait(loan.slot)
