"""An engine without a network: every pixel becomes four equal ones, at a pace that the test decides."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from engines.door import EngineInfo, Slot
from engines.errors import EngineError
from engines.ring import Engine


class DoublingEngine(Engine):
    """Doubles in `wait`. With a `pace`, every picture takes one permit of it; `failures` pictures fail first."""

    def __init__(self, pace: threading.Semaphore | None = None, failures: int = 0) -> None:
        super().__init__(EngineInfo("doubling", "test", "uint8", "none", "0" * 64), slots=4)
        self.batches: list[int] = []
        """How many pictures each call of `submit` brought."""
        self._pace = pace
        self._failures = failures

    def _open(self) -> None: ...

    def _close(self) -> None: ...

    def _make(self, width: int, height: int) -> Slot:
        half = ((height + 1) // 2, (width + 1) // 2)
        return Slot(
            width=width,
            height=height,
            y=np.zeros((height, width), np.uint8),
            uv=np.zeros((2, *half), np.uint8),
            y_out=np.zeros((2 * height, 2 * width), np.uint8),
            uv_out=np.zeros((2, height, width), np.uint8),
            engine=self,
        )

    def _start(self, slots: Sequence[Slot]) -> None:
        self.batches.append(len(slots))

    def _finish(self, slot: Slot) -> None:
        if self._pace is not None:
            self._pace.acquire()
        if self._failures:
            self._failures -= 1
            raise EngineError("a failure on purpose")
        slot.y_out[:] = slot.y.repeat(2, 0).repeat(2, 1)
        slot.uv_out[:] = slot.uv.repeat(2, 1).repeat(2, 2)[:, : slot.height, : slot.width]
