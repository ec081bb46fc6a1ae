"""What the engine remembers of one feed from picture to picture, so that its brightness and noise do not flicker."""

from __future__ import annotations

import math

from engines.door import Memory, Slot, kept_after
from stream.frame import Frame


class Recall:
    """Lends a feed's memory to the slots of its pictures, in their order; for one thread.

    Starts afresh when the picture size changes or time runs backwards. The weight of old pictures decays, and nothing
    is kept across a cut, which the network detects by itself.
    """

    def __init__(self) -> None:
        self._memory: Memory | None = None
        self._size = (0, 0)
        self._shown = 0.0  # seconds

    def lend(self, slot: Slot, frame: Frame) -> None:
        """Set the memory of a slot that holds `frame`."""
        base = frame.time_base
        shown = frame.pts * base.numerator / base.denominator
        size, seconds = (frame.width, frame.height), shown - self._shown
        if self._memory is None or size != self._size or seconds < 0:
            self._memory, seconds = slot.engine.new_memory(), math.inf
        slot.memory, slot.keep = self._memory, kept_after(seconds)
        self._size, self._shown = size, shown
