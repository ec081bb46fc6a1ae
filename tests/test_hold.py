from __future__ import annotations

import signal

import pytest

from engines.training.hold import held_back


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
