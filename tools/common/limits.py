"""What a process that runs for weeks may take of its machine."""

from __future__ import annotations

import ctypes
import resource

M_ARENA_MAX = -8
"""Of glibc's malloc.h."""
ARENAS = 2

MOST_FILES = 65_536
"""Open at once: each viewer and each connection to a camera takes one."""


def bound_arenas() -> None:
    """Let glibc allocate from two pools, not from eight for each core; without effect where there is no glibc.

    A feed's threads come and go with its connections. Each would begin another pool, whose gaps nobody else can use.
    """
    try:
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)
    except AttributeError:
        return


def raise_file_limit() -> None:
    """Let the process open as many files as its hard limit allows, `MOST_FILES` at most; 1024 is usual at first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
