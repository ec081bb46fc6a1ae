"""What holds for all tests: those marked `gpu` need one, and none leaves the process with real-time priority."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from engines.gpu import has_driver


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need a GPU where there is none; with NIGHTBRIDGE_REQUIRE_GPU=1, fail them."""
    if item.get_closest_marker("gpu") is None or has_driver():
        return
    if os.environ.get("NIGHTBRIDGE_REQUIRE_GPU") == "1":
        pytest.fail("no NVIDIA GPU here, and NIGHTBRIDGE_REQUIRE_GPU=1")
    pytest.skip("no NVIDIA GPU here")


@pytest.fixture(autouse=True)
def _usual_priority() -> Iterator[None]:
    """A test that left this process with real-time priority would starve the processes of those after it."""
    before = os.sched_getscheduler(0)
    yield
    assert os.sched_getscheduler(0) == before, "the test changed the priority of the process"
