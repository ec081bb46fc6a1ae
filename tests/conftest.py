"""What holds for all tests: what the caller's environment says of relays, proxies and terminals reaches none, nor does
nohup; those marked `gpu` need one, and none leaves the process with real-time priority."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator

import pytest

from engines.nvidia.gpu import has_driver

TERMINAL = {"COLUMNS", "LINES", "TERMINAL_WIDTH", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
TERMINAL |= {"CLICOLOR_FORCE", "FORCE_COLOR", "GITHUB_ACTIONS", "NO_COLOR", "PY_COLORS"}
"""Environment variables that change how commands print."""

for name in [*os.environ]:
    if name.upper().startswith("NIGHTBRIDGE__") or name.lower().endswith("_proxy") or name in TERMINAL:
        del os.environ[name]

for signal_ignored in (signal.SIGHUP, signal.SIGINT):  # as under nohup, and in the background of a script
    if signal.getsignal(signal_ignored) == signal.SIG_IGN:
        signal.signal(signal_ignored, lambda *_: None)  # ignored here, but not by the commands that tests begin


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need a GPU where there is none."""
    if item.get_closest_marker("gpu") is not None and not has_driver():
        pytest.skip("no NVIDIA GPU here")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With NIGHTBRIDGE_REQUIRE_GPU=1 a test that needs a GPU fails where a mark or a fixture would skip it.

    The test itself may still find that this GPU lacks a part, such as NVENC.
    """
    report = yield
    required = os.environ.get("NIGHTBRIDGE_REQUIRE_GPU") == "1" and item.get_closest_marker("gpu") is not None
    if required and report.skipped and report.when == "setup":
        report.outcome = "failed"
        report.longrepr = f"skipped in spite of NIGHTBRIDGE_REQUIRE_GPU=1: {report.longreprtext}"
    return report


@pytest.fixture(autouse=True)
def _usual_priority() -> Iterator[None]:
    """A test that left this process with real-time priority would starve the processes of those after it."""
    before = os.sched_getscheduler(0)
    yield
    assert os.sched_getscheduler(0) == before, "the test changed the priority of the process"
