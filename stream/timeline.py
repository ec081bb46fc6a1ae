"""One clock for a feed's whole life: strictly increasing times of pictures, whatever time stamps its source gives."""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from math import floor
from statistics import median_low

from msgspec.structs import replace

from stream.frame import Frame

JUMP = Fraction(5)
"""Seconds, like all times here: a live time stamp that is further ahead of the elapsed time than this is a jump."""
LONGEST_GAP = Fraction(60)
"""Between two pictures of a recording, whose arrivals tell nothing about elapsed time; more is a jump."""
JITTER = Fraction(1, 2)
"""By how much pictures arrive early or late on a thin link: a key frame alone takes that long."""
PERSISTS = 3
"""Consecutive pictures on a new line of time stamps after which it is trusted: one wild stamp alone changes nothing."""
USUAL_STEP = Fraction(1, 25)
"""Between pictures, until the feed has shown its own."""
STEPS_KEPT = 9
"""Remembered steps between pictures; their median is the usual one."""
SECOND_NS = 1_000_000_000
CLOCK_SET_BACK = 5_000_000_000
"""Nanoseconds: if arrivals go back further, it is not reordering of pictures; the machine's own clock was set."""
WRAPS = (1 << 32, 1 << 33)
"""Ticks after which the time stamps of RTP and of MPEG-TS wrap around to 0."""
LARGEST_STAMP = 1 << 61
"""Ticks; a feed that begins beyond this lacks room to go on: the wire's limit is twice as many."""


class Timeline:
    """Places the pictures of one feed on a strictly increasing clock, across all its segments. Pure; for one thread.

    A good time stamp is kept, apart from a shift that is 0 until a lasting repair. A bad one (a jump, a step back, a
    standstill, a wrap, a missing stamp) is replaced: the picture is placed one usual step after the one before it, or
    later if the arrival of pictures shows that more time has passed.
    """

    def __init__(self) -> None:
        self.repairs = 0
        """Time stamps that were replaced: each that is missing, stands still or is wild; of a jump, a step back or a
        wrap only the first. A segment that begins at a time of its own is not counted."""
        self._recorded = False
        self._begins = True
        self._last: Fraction | None = None  # the picture before, as placed; seconds, like all that follows
        self._shift = Fraction(0)  # from trusted stamps to the clock
        self._other = Fraction(0)  # the same for stamps that are not trusted yet
        self._others = 0  # consecutive pictures on that line; 0: there is no such line
        self._arrivals = Arrivals()
        self._passed_ns = 0  # between the arrivals of the latest two pictures
        self._behind_ns = 0  # by how much arrivals are ahead of the clock, if they are
        self._anchor = (Fraction(0), 0)  # where some picture belongs, and its arrival in nanoseconds
        self._since = 0  # pictures since the anchor
        self._steps: deque[Fraction] = deque(maxlen=STEPS_KEPT)

    def begin(self, recorded: bool) -> None:
        """Begin a new segment, whose stamps may go on or start anew. `recorded`: its pictures come at any speed."""
        self._recorded = recorded
        self._begins = True
        self._others = 0

    def place(self, frame: Frame) -> Frame:
        """The next picture of the feed, in presentation order, with a `pts` after that of every earlier one."""
        self._passed_ns = self._arrivals.add(frame.received_ns)
        self._behind_ns += self._passed_ns
        self._since += 1
        self.repairs += not frame.stamped
        placed = self._first(frame) if self._last is None else self._next(frame, self._last)
        now = placed * frame.time_base
        if self._last is not None:
            ahead_ns = self._behind_ns - nanoseconds(now - self._last)
            self._behind_ns = min(max(ahead_ns, 0), nanoseconds(LONGEST_GAP))
        self._last = now
        return frame if placed == frame.pts else replace(frame, pts=placed)

    def _first(self, frame: Frame) -> int:
        """Where the feed's first picture belongs, in ticks: where its stamp says."""
        placed = frame.pts
        if abs(placed) >= LARGEST_STAMP:
            placed = 0
            self.repairs += 1
        self._shift = (placed - frame.pts) * frame.time_base
        self._anchor, self._since = (placed * frame.time_base, self._arrivals.now_ns), 0
        self._begins = not frame.stamped
        return placed

    def _next(self, frame: Frame, last: Fraction) -> int:
        """Where a picture after one placed at `last` belongs, in ticks."""
        if not (frame.stamped or self._recorded):
            return self._reckoned(last, frame.time_base)
        base = frame.time_base
        shifted = frame.pts + (round(self._shift / base) if self._shift else 0)
        for wrap in (0, *WRAPS):
            placed = shifted + wrap
            now = placed * base
            if self._can_follow(now - last):
                self.repairs += wrap > 0
                self._believe(self._shift + wrap * base if wrap else self._shift, now)
                return placed
        placed = frame.pts + round(self._other / base)
        if not (self._others and self._can_follow(placed * base - last)):
            placed = self._reckoned(last, base)
            self.repairs += frame.stamped and not self._begins
            self._other, self._others = (placed - frame.pts) * base, 0
        self._others += 1
        if self._others == PERSISTS or self._begins:
            self._believe(self._other, placed * base)
        return placed

    def _can_follow(self, step: Fraction) -> bool:
        """Whether a picture so long after the one before it is plausible, rather than a jump."""
        if step <= 0:
            return False
        if self._recorded:
            return step <= LONGEST_GAP
        return step <= JUMP or step <= JUMP + Fraction(self._behind_ns, SECOND_NS)

    def _believe(self, shift: Fraction, placed: Fraction) -> None:
        """Trust stamps with this shift; the picture that confirms it belongs at `placed`."""
        self._shift, self._others = shift, 0
        if not self._begins:
            self._measure(placed - self._anchor[0])
        self._anchor, self._since, self._begins = (placed, self._arrivals.now_ns), 0, False

    def _reckoned(self, last: Fraction, base: Fraction) -> int:
        """Where a picture belongs, in ticks, by the usual step and its arrival alone; always after `last`.

        Arrivals jitter: they count only if they differ by more than `JITTER`.
        """
        step = median_low(self._steps) if self._steps else USUAL_STEP
        placed, arrived_ns = self._anchor
        passed = Fraction(self._arrivals.now_ns - arrived_ns, SECOND_NS)
        late = placed + passed - last - step
        if not self._recorded and abs(late) > JITTER:
            step = step + late if late > 0 else step / 2
            paused = self._passed_ns > nanoseconds(
                JUMP
            )  # or the machine's clock was set ahead; neither tells the usual step
            if self._since >= STEPS_KEPT and not paused:
                self._measure(passed)
            if self._since >= STEPS_KEPT or paused:
                self._anchor, self._since = (placed + passed, self._arrivals.now_ns), 0
        return max(round((last + step) / base), floor(last / base) + 1)

    def _measure(self, seconds: Fraction) -> None:
        """Learn the usual step from the `seconds` since the anchor."""
        self._steps.append(seconds / self._since)


class Arrivals:
    """A clock that never goes back, driven by arrivals of pictures, which are not in presentation order."""

    def __init__(self) -> None:
        self.now_ns = 0
        """Nanoseconds since the first picture."""
        self._latest_ns: int | None = None

    def add(self, received_ns: int) -> int:
        """Advance the clock by a picture's arrival (UTC, nanoseconds since 1970); returns by how many nanoseconds."""
        if self._latest_ns is None or received_ns < self._latest_ns - CLOCK_SET_BACK:
            self._latest_ns = received_ns
        passed_ns = max(0, received_ns - self._latest_ns)
        self._latest_ns = max(self._latest_ns, received_ns)
        self.now_ns += passed_ns
        return passed_ns


def nanoseconds(seconds: Fraction) -> int:
    """Seconds as nanoseconds, rounded down."""
    return seconds.numerator * SECOND_NS // seconds.denominator
