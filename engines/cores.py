"""How many cores this process may use, which decoders, engine and encoders share."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePath

CGROUP = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
"""Where Linux tells the groups of the process: one a line, NUMBER:CONTROLLERS:PATH, no controllers for version 2."""


def available_cores(cgroup: Path = CGROUP, own_groups: Path = OWN_GROUPS) -> int:
    """At least 1: what the kernel lets the process run on, and no more than its share of time (Linux), which a
    container may limit, or systemd for a unit and for the slices it lies in."""
    quotas = [quota for group in _groups(cgroup, own_groups) if (quota := _quota(group)) is not None]
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, quotas)]))


def _groups(cgroup: Path, own_groups: Path) -> Iterator[Path]:
    """Folders of the groups that the process lies in, by cgroup version 2 and 1: its own, and all above that."""
    roots = {"": cgroup, "cpu": cgroup / "cpu"}
    yield from roots.values()
    with suppress(OSError, ValueError):  # not Linux, or not told
        for line in os.fsdecode(own_groups.read_bytes()).splitlines():
            _, controllers, path = line.split(":", 2)
            group = PurePath(path.lstrip("/"))
            for controller in roots.keys() & controllers.split(","):
                yield from (roots[controller] / each for each in (group, *group.parents))


def _quota(group: Path) -> float | None:
    """Cores' worth of time in each period, by cgroup version 2 or 1; None where there is no limit."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        cores = int(quota) / int(period)
    except (OSError, ValueError):  # no such files, or "max"
        return None
    return cores if cores > 0 else None
