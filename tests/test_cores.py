from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.cores import available_cores

ALL = len(os.sched_getaffinity(0))


def test_without_limits_all_cores_are_used(tmp_path: Path) -> None:
    assert available_cores(tmp_path) == ALL
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert available_cores(tmp_path) == ALL


@pytest.mark.parametrize("quota", [1_000, 50_000, 100_000])
def test_a_container_of_one_core_or_less_gets_one(tmp_path: Path, quota: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota} 100000\n")
    assert available_cores(tmp_path) == 1


def test_a_part_of_a_core_counts_as_one(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert available_cores(tmp_path) == min(2, ALL)


def test_no_more_cores_are_used_than_there_are(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000000 100000\n")
    assert available_cores(tmp_path) == ALL


def test_the_older_cgroup_files_are_understood(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    assert available_cores(tmp_path) == 1
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert available_cores(tmp_path) == ALL


@pytest.fixture
def own_groups(tmp_path: Path) -> Path:
    """What the kernel tells of a process in a unit of systemd, by version 2 and by version 1."""
    path = tmp_path / "own_groups"
    path.write_text("4:memory:/others\n3:cpu,cpuacct:/jobs/relay\n0::/system.slice/relay.service\n")
    return path


def limited(group: Path, cores: float) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "cpu.max").write_text(f"{int(cores * 100_000)} 100000\n")


@pytest.fixture
def _of_many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


@pytest.mark.usefixtures("_of_many_cores")
@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({"system.slice/relay.service": 2}, 2),
        ({"system.slice": 3}, 3),
        ({"": 4}, 4),
        ({"system.slice/relay.service": 5, "system.slice": 3, "": 8}, 3),
        ({"system.slice/other.service": 1, "others": 1, "jobs/relay": 1}, 16),
        ({}, 16),
    ],
)
def test_the_smallest_quota_of_the_units_own_group_and_of_the_slices_it_lies_in_counts(
    tmp_path: Path, own_groups: Path, limits: dict[str, float], cores: int
) -> None:
    for group, quota in limits.items():
        limited(tmp_path / "tree" / group, quota)
    assert available_cores(tmp_path / "tree", own_groups) == cores


@pytest.mark.usefixtures("_of_many_cores")
@pytest.mark.parametrize("group", ["cpu/jobs/relay", "cpu/jobs", "cpu"])
def test_so_do_those_of_the_older_cgroup_files(tmp_path: Path, own_groups: Path, group: str) -> None:
    (tmp_path / "tree" / group).mkdir(parents=True)
    (tmp_path / "tree" / group / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "tree" / group / "cpu.cfs_quota_us").write_text("250000\n")
    assert available_cores(tmp_path / "tree", own_groups) == 3


@pytest.mark.usefixtures("_of_many_cores")
@pytest.mark.parametrize("told", [None, "", "nonsense\n", "0::/../elsewhere\n"])
def test_where_the_groups_of_the_process_are_not_told_the_quota_at_the_root_counts(
    tmp_path: Path, told: str | None
) -> None:
    if told is not None:
        (tmp_path / "own_groups").write_text(told)
    limited(tmp_path / "tree", 2)
    assert available_cores(tmp_path / "tree", tmp_path / "own_groups") == 2
