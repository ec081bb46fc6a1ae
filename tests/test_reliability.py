"""Weeks of bad links in a minute: nothing is left behind by what was lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import ROOT
from tests.rtsp_server import require_rtsp_server

RECONNECTS = 300


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc, which is Linux")
def test_three_hundred_reconnects_leave_no_memory_thread_or_file_behind() -> None:
    """The long run of the same, with more reconnects, is told in docs/reliability.md."""
    require_rtsp_server()
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability", str(RECONNECTS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcome = json.loads(done.stdout)
    assert outcome["reconnects"] >= RECONNECTS
    assert outcome["unaccounted"] == 0
    assert outcome["last"]["threads"] <= outcome["first"]["threads"]
    assert outcome["last"]["files"] <= outcome["first"]["files"]
    assert outcome["memory_slope"] < 8192  # a leak of one connection's buffers is many times that
