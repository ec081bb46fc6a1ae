"""The relay as its users have it: processes, sockets, signals."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from PIL import Image

from engines.runtime import EngineOptions
from stream.subscribe import Subscriber
from stream.wire.messages import Message, decode_status
from tests.clips import UdpSender, free_port, make_clip
from tests.running import ROOT, messages, running, stopped
from tests.waiting import wait_until


def test_a_udp_feed_becomes_a_snapshot_in_another_process_and_a_stop_loses_nothing(tmp_path: Path) -> None:
    port = free_port()
    clip = make_clip(tmp_path / "clip.ts", pictures=250, size=(176, 144))
    feeds = f'[feeds.pier]\nurl = "udp://127.0.0.1:{port}"\n'
    with running(tmp_path, feeds) as (relay, endpoint), UdpSender(clip, port, bit_rate=600_000, repeat=True):
        snapshot = tmp_path / "snapshot.png"
        view = [sys.executable, "-m", "tools", "view", endpoint, "pier", "--snapshot", str(snapshot)]
        subprocess.run(view, cwd=ROOT, check=True, timeout=60)
        with Image.open(snapshot) as picture:
            assert picture.size == (352, 288)
            assert np.asarray(picture).std() > 10
        with Subscriber(endpoint, "pier", ("status", "video"), max_age=3600) as viewer:
            messages(viewer, 20)
            assert stopped(relay) < 2.5
            last: Message | None = None
            while (message := viewer.receive(1)) is not None:
                last = message if message.kind == "status" else last
    assert last is not None
    status = decode_status(last.payload)
    assert status.state == "ended"
    assert status.under_way == 0
    assert status.published > 0
    assert status.received == status.published + sum(status.dropped.values()) + sum(status.lost.values())


def test_a_relay_without_any_camera_runs_and_stops(tmp_path: Path) -> None:
    feeds = f'[feeds.dead]\nurl = "udp://127.0.0.1:{free_port()}"\nread_timeout = "200ms"\nopen_timeout = "200ms"\n'
    with running(tmp_path, feeds) as (relay, endpoint):
        with Subscriber(endpoint, "dead", ("status",)) as viewer:
            (status,) = [decode_status(message.payload) for message in messages(viewer, 1)]
        assert (status.state, status.published) == ("connecting", 0)
        assert stopped(relay) < 2.5


def test_a_relay_may_open_as_many_files_as_the_machine_lets_it(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(before[1], 65_536) if before[1] != resource.RLIM_INFINITY else 65_536
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    try:
        with running(tmp_path, "") as (relay, _):
            assert resource.prlimit(relay.pid, resource.RLIMIT_NOFILE) == (most, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_relay_without_feeds_says_so_and_stops(tmp_path: Path) -> None:
    with running(tmp_path, "") as (relay, _):
        assert stopped(relay) < 2.5
    assert "has no feeds: add a table [feeds.NAME] with a url" in (tmp_path / "log").read_text()


def test_a_feeds_status_comes_about_once_a_second(tmp_path: Path) -> None:
    with (
        running(tmp_path, f'[feeds.dead]\nurl = "udp://127.0.0.1:{free_port()}"\n') as (_, endpoint),
        Subscriber(endpoint, "dead", ("status",)) as viewer,
    ):
        times = [message.header.published_ns / 1e9 for message in messages(viewer, 4)]
    assert 0.9 <= median(np.diff(times)) <= 1.5


def test_a_high_water_mark_that_is_too_low_for_so_many_feeds_is_told_at_the_start_and_when_feeds_come(
    tmp_path: Path,
) -> None:
    config, log = tmp_path / "config.toml", tmp_path / "log"
    feeds = [f'[feeds.f{number}]\nurl = "missing.mp4"\n' for number in range(17)]
    config.write_text("".join(feeds))
    asked = subprocess.run(
        [sys.executable, "-c", SAY, "run", config], cwd=ROOT, capture_output=True, text=True, check=False
    )
    words = "[relay] high_water_mark is 64; 17 feeds need 68, or viewers lose messages"
    assert asked.stderr.count(words) == 1
    with running(tmp_path, "".join(feeds[:16])):
        assert "[relay] high_water_mark" not in log.read_text()
        config.write_text(config.read_text() + feeds[16])
        wait_until(lambda: f"reloaded {config}: added f16" in log.read_text(), "the new feed")
        wait_until(lambda: f"{words}; a new value takes effect at the next start" in log.read_text(), "the warning")


SIGNALS = """
import os, signal, threading
from tools.common.signals import stop_on_signals

stop = threading.Event()
interrupt = threading.Thread(target=lambda: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(200)])
with stop_on_signals(stop.set):
    interrupt.start()
    while interrupt.is_alive():
        stop.wait(0.00001)
        stop.clear()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.wait(10)
"""


def test_a_signal_is_heard_at_any_moment() -> None:
    """It comes in the middle of whatever the waiting thread does."""
    done = subprocess.run([sys.executable, "-c", SIGNALS], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0


def test_wrong_settings_end_the_start_with_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[feeds.pier]\nurl = "udp://127.0.0.1:5000"\nage_budgit = "1s"\n')
    done = subprocess.run(
        [sys.executable, "-m", "tools", "run", str(tmp_path / "config.toml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "age_budgit" in done.stderr
    assert "age_budget" in done.stderr


SAY = """
import engines.runtime
from tools.app import main
engines.runtime.open_with_fallback = lambda *asked: exit(str(asked))
main()
"""
"""The command as far as its engine, which it tells of in place of opening it: `python -c SAY run`."""


@pytest.mark.parametrize(("feeds", "parallel"), [(0, 1), (1, 1), (3, 1), (4, 2), (9, 2)])
def test_two_pictures_are_computed_side_by_side_from_four_feeds_on_where_the_file_does_not_say(
    tmp_path: Path, feeds: int, parallel: int
) -> None:
    config = tmp_path / "config.toml"
    config.write_text("".join(f'[feeds.f{number}]\nurl = "udp://:{5000 + number}"\n' for number in range(feeds)))
    asked = subprocess.run(
        [sys.executable, "-c", SAY, "run", config], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert f"parallel={parallel})" in asked.stderr


def test_the_engine_is_the_one_that_the_file_asks_for(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        f"""
        [engine]
        runtime = "openvino"
        weights = "paper"
        precision = "bf16"
        batch = 3
        threads = 5
        parallel = 4
        cache = "{tmp_path}"
        """
    )
    asked = subprocess.run(
        [sys.executable, "-c", SAY, "run", config], cwd=ROOT, capture_output=True, text=True, check=False
    )
    options = EngineOptions("bf16", threads=5, cache=tmp_path, batch=3, parallel=4)
    assert str(("openvino", "paper", options)) in asked.stderr


FAILING = """
import engines.runtime, stream.relay
from tests.doubling import DoublingEngine
from tools.app import main

words = "rtsp://relay:secret@10.0.0.7 broke"

def broken_stage(*arguments):
    raise RuntimeError(words)

engines.runtime.open_with_fallback = lambda *asked: DoublingEngine()
stream.relay.light_up = broken_stage
main()
"""
"""The command with a stage that fails: `python -c FAILING run`."""


def test_a_relay_that_fails_ends_with_1_and_one_line_and_tells_the_words_of_no_error(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[relay]\nendpoint = "tcp://127.0.0.1:*"\n[feeds.dead]\nurl = "udp://127.0.0.1:{free_port()}"\n')
    done = subprocess.run(
        [sys.executable, "-c", FAILING, "run", config], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "nightbridge: the relay failed: unexpected RuntimeError"
    assert "a stage failed, the relay stops: unexpected RuntimeError" in done.stderr
    assert done.stderr.count("in broken_stage") == 1
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr + done.stdout


def test_an_endpoint_that_is_taken_is_told_in_one_line(tmp_path: Path) -> None:
    feeds = f'[feeds.dead]\nurl = "udp://127.0.0.1:{free_port()}"\n'
    with running(tmp_path, feeds) as (_, endpoint):
        (tmp_path / "second.toml").write_text(f'[relay]\nendpoint = "{endpoint}"\n{feeds}')
        done = subprocess.run(
            [sys.executable, "-m", "tools", "--log-level", "error", "run", str(tmp_path / "second.toml")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert endpoint in done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc, which is Linux")
def test_a_relay_with_one_feed_fits_into_600_megabytes(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=100, size=(352, 288))
    with running(tmp_path, f'[feeds.tape]\nurl = "{clip}"\nmode = "replay"\n') as (relay, endpoint):
        with Subscriber(endpoint, "tape", ("status",)) as viewer:
            while decode_status(messages(viewer, 1)[0].payload).state != "ended":
                pass
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{relay.pid}/status").read_text())
    assert peak
    assert int(peak[1]) * 1024 < 600e6
