"""Pictures of a camera or a recording with stamps that a test wants."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import av

from engines.colour import Colour
from stream.frame import Frame
from stream.timeline import Timeline

MPEG_TS = Fraction(1, 90_000)
STEP = 3600
"""Ticks of MPEG-TS between two pictures at 25 a second."""
HOUR = 3600 * 90_000
PICTURE = av.VideoFrame(16, 16, "yuv420p")


def frame(pts: int | None, seconds: float | Fraction = 0.0, base: Fraction = MPEG_TS) -> Frame:
    """A picture that came after `seconds`; without a stamp where `pts` is None."""
    return Frame(
        picture=PICTURE,
        colour=Colour(),
        pts=0 if pts is None else pts,
        source_pts=pts,
        time_base=base,
        received_ns=1_800_000_000_000_000_000 + round(seconds * 1_000_000_000),
        capture_ns=7,
        capture_clock="arrival",
        state="clean",
        source_sha256=bytes(32),
    )


def live(stamps: Iterable[int | None], timeline: Timeline | None = None, step: float = 0.04) -> list[int]:
    """Where a live feed's pictures are placed that come evenly, one after every `step` seconds."""
    timeline = timeline or Timeline()
    return [timeline.place(frame(pts, number * step)).pts for number, pts in enumerate(stamps)]


def recorded(stamps: Iterable[int | None], timeline: Timeline) -> list[int]:
    """The same for a file that is read as fast as it goes."""
    timeline.begin(recorded=True)
    return [timeline.place(frame(pts)).pts for pts in stamps]


def steps(count: int, start: int = 0, step: int = STEP) -> list[int]:
    return [start + number * step for number in range(count)]
