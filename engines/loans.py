"""The slots that callers have of several engines, and which engine used the memory of a feed last."""

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
    """A slot that a caller has, and the engine that it came from."""

    slot: Slot
    engine: Door
    under_way: bool = False
    """Whether it is submitted, and nobody has seen its picture yet."""
    failure: EngineError | None = None
    """Why it could not be submitted; who waits for it is told."""


class Loans:
    """All slots that are lent. All methods may be called from any thread."""

    def __init__(self, changed: threading.Condition) -> None:
        """`changed` guards the loans, and is told when one ends."""
        self._changed = changed
        self._loans: dict[int, Loan] = {}  # by id of the slot
        self._users: WeakKeyDictionary[Memory, Door] = WeakKeyDictionary()  # the last engine that used a memory

    def lend(self, slot: Slot, engine: Door) -> None:
        """Begin a loan."""
        with self._changed:
            self._loans[id(slot)] = Loan(slot, engine)

    def of(self, slot: Slot) -> Loan:
        """The loan of a slot; `KeyError` where there is none."""
        with self._changed:
            return self._loans[id(slot)]

    def end(self, slot: Slot) -> Loan | None:
        """End a loan; None where there is none, as after `clear`."""
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
        """Slots as batches of one engine each, none larger than it takes, in their order."""
        for engine, loans in groupby(map(self.of, slots), lambda loan: loan.engine):
            whole, limit = list(loans), engine.info.largest_batch
            for start in range(0, len(whole), limit):
                yield engine, whole[start : start + limit]

    def pass_memories_on(self, engine: Door, batch: Sequence[Loan], last: Door) -> None:
        """Let memories that the `last` engine used hold what its pictures left, before another one uses them.

        What any other engine knows is lost on its device.
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
        """Return when no picture of a feed is under way in an engine; those that fail tell so themselves."""
        with self._changed:
            loans = [loan for loan in self._loans.values() if loan.engine is engine and loan.slot.memory is memory]
        for loan in loans:
            if loan.under_way:
                with suppress(EngineError):
                    engine.wait(loan.slot)
