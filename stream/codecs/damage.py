"""Which pictures of a segment are damaged, and which depend on damaged ones. Pure.

Damage becomes known in decoding order, before a picture comes out, and in presentation order, when it does.
"""

from __future__ import annotations

from collections import deque

from av.video.frame import VideoFrame

from stream.frame import AccessUnit, State


class Damage:
    """Derives the states of frames from what is known about access units and pictures."""

    def __init__(self) -> None:
        self._going_in = False  # in decoding order, until a key frame goes in
        self._coming_out = False  # in presentation order, until the picture is refreshed
        self._begun: dict[int, bool] = {}  # by number, what began a refresh since; whether it says when that ends
        self._states: deque[tuple[AccessUnit | None, State]] = deque()  # of pictures that are still to leave
        self._before: State = "clean"  # of the one that left last

    def enter(self, *, key: bool, damaged: bool) -> bool:
        """Take in an access unit; True if an earlier one since the last key frame, in decoding order, was damaged."""
        if key:  # it may only start a refresh, or be shown after pictures that are decoded later
            if self._going_in:
                self._spoil()
            self._going_in = False
        tainted = self._going_in
        self._going_in = self._going_in or damaged
        return tainted

    def note_damage(self) -> None:
        """Note that something before the next access unit is missing or damaged."""
        self._going_in = True

    def come_out(self, picture: VideoFrame, unit: AccessUnit | None, *, damaged: bool) -> None:
        """Take the next decoded picture in presentation order; it has no unit if it was made up for a missing one."""
        self._states.append((unit, self._state(picture, unit, damaged) if unit else "concealed"))

    def _state(self, picture: VideoFrame, unit: AccessUnit, damaged: bool) -> State:
        again = unit.key and not all(self._begun.values())  # no end announced: two in a row have refreshed all of it
        if (unit.key and picture.key_frame) or again or unit.completes_refresh_of in self._begun:
            self._coming_out = False
            self._begun.clear()
        if unit.key and self._coming_out:
            self._begun[unit.number] = unit.announces_refresh
        if unit.damaged or damaged or unit.tainted:
            self._spoil()
        if unit.damaged or damaged:
            return "concealed"
        return "tainted" if self._coming_out else "clean"

    def _spoil(self) -> None:
        self._coming_out = True
        self._begun.clear()

    def leave(self, unit: AccessUnit, *, mixed: bool) -> State:
        """The state of a unit's frame, the next one to leave; `mixed`: its neighbours were blended into it."""
        before, (left, own) = self._before, self._states.popleft()
        while left is not unit:  # it was made up, or the deinterlacer failed on it
            before, (left, own) = own, self._states.popleft()
        self._before = own
        after = self._states[0][1] if self._states else "clean"
        return "tainted" if mixed and own == "clean" and (before, after) != ("clean", "clean") else own
