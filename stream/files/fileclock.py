"""The clock of a file: times that only increase, even if the recorder's clock was set. Pure."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from stream.files.parts import Part
from stream.sources.pace import LONGEST_GAP

LONGEST_STEP_BACK = 1
"""Seconds; more means that the recorder's clock was set, less that single time stamps are wrong."""

FAR = 10
"""Seconds; a time stamp that is further both from the packet before in its stream and from the pictures around it is
wrong."""

Span = tuple[Fraction, Fraction | float]
"""The times of two pictures in a file, in seconds; the second is infinity if it is not known."""


class FileClock:
    """When each picture of a recording is shown in a file, in ticks of the recording's video.

    Time stamps are kept, except for jumps: where the recorder's clock was set, the times go on without a gap. A step
    ahead of more than `LONGEST_GAP` counts as such, unless it is a pause.
    """

    def __init__(self, time_base: Fraction, rate: Fraction) -> None:
        """`rate` is in pictures a second."""
        self.placed = self.last = 0
        """When the latest picture should be shown, and when it is shown."""
        self.jump = 0
        """What is added to the recording's times."""
        self._counted = 0  # added to time stamps that count from where decoding began
        self._begun = False
        self._step = max(1, round(1 / (rate * time_base)))
        self._gap = LONGEST_GAP / float(time_base)
        self._back = round(Fraction(LONGEST_STEP_BACK) / time_base)

    def go_on(self, part: Part, pts: int) -> None:
        """Resume after a part whose last picture has the time stamp `pts` this time."""
        self.placed, self.last, self.jump, self._begun = part.placed, part.last, part.jump, True
        self._counted = part.placed - part.jump - pts

    def place(self, pts: int, *, pause: bool = False) -> int:
        """When the next picture is shown, whose time stamp is `pts`; a `pause` before it may have any length."""
        placed = pts + self._counted + self.jump
        if not self._begun:
            self._begun, self.last = True, placed - 1
        elif placed < self.last - self._back or (placed > self.last + self._gap and not pause):
            self.jump += self.last + self._step - placed
            placed = self.last + self._step
        self.placed = placed
        self.last = max(placed, self.last + 1)
        return self.last


class CopyClock:
    """Times in a file for copied packets, in their own ticks; they increase, however wrong a time stamp is."""

    def __init__(self, time_base: Fraction, file_base: Fraction) -> None:
        """Time bases of the packets and of their stream in the file, where no two may have the same time."""
        self._base = time_base
        self._step = max(1, ceil(file_base / time_base))
        self._least: int | None = None
        self._expected = 0

    def place(self, stamp: int | None, duration: int, between: Span, following: int | None = None) -> int:
        """The time of the next packet, which came `between` two pictures; `following` is the next one's time stamp.

        A packet whose time stamp is far both from these pictures and from the packet before is placed right after that
        packet; the first one right before `following`. A packet without a time stamp is also placed after the one
        before if it has a duration, as sound does; else at the time of the first picture, as KLV.
        """
        if stamp is None:
            stamp = self._expected if duration and self._least is not None else round(between[0] / self._base)
        expected = self._expected
        if self._least is None:
            expected = stamp if following is None else following - max(duration, self._step)
        if min(abs(stamp - expected) * self._base, outside(stamp * self._base, between)) > FAR:
            stamp = expected
        stamp = stamp if self._least is None else max(stamp, self._least)
        self._least = stamp + self._step
        self._expected = stamp + max(duration, self._step)
        return stamp


class Jumps:
    """Where everything but video belongs in a file: only the pictures show when the recorder's clock was set."""

    def __init__(self, jumps: list[tuple[int, Fraction]], start: Fraction = Fraction(0)) -> None:
        """`jumps`: from which access unit on how many seconds are added; `start`: the recording's first time."""
        self._jumps = [(0, Fraction(0)), *jumps]
        self._at = 0
        self.now = start
        """The time in the file of the picture that came last."""

    def pass_picture(self, unit: int, seconds: Fraction) -> None:
        """Access unit `unit` has come, in the order of the recording, with this time in the recording."""
        while self._at + 1 < len(self._jumps) and self._jumps[self._at + 1][0] <= unit:
            self._at += 1
        self.now = seconds + self._jumps[self._at][1]

    def of(self, seconds: Fraction, between: Span) -> Fraction:
        """What is added to the time of something that came between two pictures, the second of which came last: it
        may belong before a jump or after it.
        """
        near = [self._jumps[self._at], *self._jumps[max(0, self._at - 1) : self._at + 2]]  # in doubt, the latest
        return min((jump for _, jump in near), key=lambda jump: outside(seconds + jump, between))


def outside(seconds: Fraction, between: Span) -> Fraction | float:
    """Seconds by which a time lies before the first of two pictures, or after the second; 0 between them."""
    return max(between[0] - seconds, seconds - between[1], 0)
