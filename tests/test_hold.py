from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.command import ROOT


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
import signal, sys
from engines.training.hold import held_back
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
with held_back() as came:
    signal.raise_signal(int(sys.argv[1]))
    print("held", flush=True)
    signal.raise_signal(signal.SIGINT)
    print("too late", flush=True)
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_after_another_signal_does_not_wait(first: signal.Signals) -> None:
    done = child(CTRL_C_AFTER, str(int(first)))
    assert (done.returncode, done.stdout) == (-first, "held\n"), done.stderr


IGNORED = """
import signal
from engines.training.hold import held_back
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with held_back() as came:
    signal.raise_signal(signal.SIGHUP)
print(came, signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)
"""


def test_an_ignored_signal_stays_ignored() -> None:
    done = child(IGNORED)
    assert (done.returncode, done.stdout) == (0, "[] True\n"), done.stderr


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
