"""How many cores this process may use, which decoders, engine and encoders share."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePath

CGROUP = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
"""Where Linux lists the process's cgroups: one a line, NUMBER:CONTROLLERS:PATH, no controllers for version 2."""


def available_cores(cgroup: Path = CGROUP, own_groups: Path = OWN_GROUPS) -> int:
    """The cores in the process's affinity mask, but no more than its CPU quota allows (Linux); at least 1.

    A container may set a quota, and systemd for a unit and the slices that it lies in.
    """
    quotas = [quota for group in _groups(cgroup, own_groups) if (quota := _quota(group)) is not None]
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, quotas)]))


def _groups(cgroup: Path, own_groups: Path) -> Iterator[Path]:
    """Folders of the process's own cgroup and all above it, for cgroup versions 2 and 1."""
    roots = {"": cgroup, "cpu": cgroup / "cpu"}
    yield from roots.values()
    with suppress(OSError, ValueError):  # not Linux, or not readable
        for line in os.fsdecode(own_groups.read_bytes()).splitlines():
            _, controllers, path = line.split(":", 2)
            group = PurePath(path.lstrip("/"))
            for controller in roots.keys() & controllers.split(","):
                yield from (roots[controller] / each for each in (group, *group.parents))


def _quota(group: Path) -> float | None:
    """A cgroup's CPU quota in cores, by cgroup version 2 or 1; None if there is no limit."""
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
