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
