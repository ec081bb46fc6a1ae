from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from engines.training.hold import held_back
from tests.test_check import ROOT


def test_a_second_signal_does_not_wait_and_an_ignored_one_stays_ignored() -> None:
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with held_back() as came:
            signal.raise_signal(signal.SIGHUP)
        assert came == []
    finally:
        signal.signal(signal.SIGHUP, usual)
    held: list[int] = []

    def work() -> None:
        with held_back() as came:
            signal.raise_signal(signal.SIGINT)
            held.extend(came)
            signal.raise_signal(signal.SIGINT)
            held.append(0)  # too late

    with pytest.raises(KeyboardInterrupt):
        work()
    assert held == [signal.SIGINT]


def child(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What Python does with the code."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


TWICE = """
import signal, sys
from engines.training.hold import held_back
number = int(sys.argv[1])
signal.signal(number, signal.SIG_DFL)
with held_back() as came:
    signal.raise_signal(number)
    signal.raise_signal(number)
    print("whole", flush=True)
print("after", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_that_comes_twice_waits_until_the_block_is_whole_and_ends_the_process(number: signal.Signals) -> None:
    done = child(TWICE, str(int(number)))
    assert (done.returncode, done.stdout) == (-number, "whole\n"), done.stderr


CTRL_C_AFTER = """
import signal
from engines.training.hold import held_back
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
with held_back() as came:
    signal.raise_signal(signal.SIGTERM)
    print("held", flush=True)
    signal.raise_signal(signal.SIGINT)
    print("too late", flush=True)
"""


def test_ctrl_c_after_another_signal_does_not_wait() -> None:
    done = child(CTRL_C_AFTER)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "held\n"), done.stderr


FAILS = """
import signal, sys
from engines.training.hold import held_back
number = int(sys.argv[1])
signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
try:
    with held_back() as came:
        signal.raise_signal(number)
        raise ValueError("no room")
except ValueError:
    print("swallowed", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize(
    ("number", "ended"), [(signal.SIGINT, (0, "interrupted\n")), (signal.SIGTERM, (-signal.SIGTERM, ""))]
)
def test_a_signal_outlives_the_failure_of_the_block_and_the_failure_is_told(
    number: signal.Signals, ended: tuple[int, str]
) -> None:
    done = child(FAILS, str(int(number)))
    assert (done.returncode, done.stdout) == ended, done.stderr
    assert done.stderr == "no room\n"
