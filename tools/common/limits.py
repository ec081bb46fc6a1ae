"""Limits of memory and open files for a process that runs for weeks."""

from __future__ import annotations

import ctypes
import resource

M_ARENA_MAX = -8
"""From glibc's malloc.h."""
ARENAS = 2

MOST_FILES = 65_536
"""Open files: each viewer and each connection to a camera takes one."""


def bound_arenas() -> None:
    """Let glibc use two malloc arenas, in place of eight per core; no effect without glibc.

    A feed's threads come and go with its connections. Each would begin another arena, whose gaps no other can use.
    """
    try:
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)
    except AttributeError:
        return


def raise_file_limit() -> None:
    """Raise the soft limit of open files, usually 1024, to the hard limit, but to `MOST_FILES` at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
