"""Memory of a process that runs for weeks."""

from __future__ import annotations

import ctypes

M_ARENA_MAX = -8
"""Of glibc's malloc.h."""
ARENAS = 2


def bound_arenas() -> None:
    """Let glibc allocate from two pools, not from eight for each core; without effect where there is no glibc.

    A feed's threads come and go with its connections. Each would begin another pool, whose gaps nobody else can use.
    """
    try:
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)
    except AttributeError:
        return
