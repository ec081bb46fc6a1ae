"""`nightbridge run` in a process of its own, and what it tells."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stream.subscribe import Subscriber
from stream.wire.messages import Message
from tests.command import ROOT
from tests.waiting import wait_until

NO_TORCH = "raise ImportError('torch must not be needed here')"


@contextmanager
def running(tmp_path: Path, feeds: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`nightbridge run` on these feeds where torch cannot be imported, and its endpoint."""
    config = tmp_path / "config.toml"
    config.write_text(f'[relay]\nendpoint = "tcp://127.0.0.1:*"\n[engine]\ncache = "cache"\n{feeds}')
    (tmp_path / "without").mkdir(exist_ok=True)
    (tmp_path / "without" / "torch.py").write_text(NO_TORCH)
    log = tmp_path / "log"
    with log.open("w") as stderr:
        relay = subprocess.Popen(
            [sys.executable, "-m", "tools", "run", str(config)],
            cwd=ROOT,
            stderr=stderr,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "without")},
        )
    try:
        wait_until(lambda: "publishing" in log.read_text() or relay.poll() is not None, "the relay's start")
        endpoint = re.search(r"at (tcp://\S+)", log.read_text())
        assert endpoint, log.read_text()
        yield relay, endpoint[1]
    finally:
        relay.kill()
        relay.wait()


def stopped(relay: subprocess.Popen[str]) -> float:
    """Seconds from SIGTERM to the relay's good end."""
    began = time.monotonic()
    relay.send_signal(signal.SIGTERM)
    assert relay.wait(30) == 0
    return time.monotonic() - began


def messages(viewer: Subscriber, amount: int) -> list[Message]:
    came: list[Message] = []
    while len(came) < amount:
        message = viewer.receive(30)
        assert message is not None, f"{len(came)} of {amount} messages came"
        came.append(message)
    return came
