"""The relay as its users have it: processes, sockets, signals."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import cast

import numpy as np
import pytest
from PIL import Image

from engines.cards import SHIPPED
from engines.runtime import EngineOptions
from stream.relay import Relay
from stream.subscribe import Subscriber
from stream.wire.messages import Message, decode_status
from tests.clips import UdpSender, free_port, make_clip
from tests.waiting import wait_until
from tools.run import Watch, read_again, tables_of

ROOT = Path(__file__).parents[1]
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


def test_cameras_come_and_go_as_the_file_says_and_an_untouched_one_loses_no_frame(tmp_path: Path) -> None:
    port = free_port()
    clip = make_clip(tmp_path / "clip.ts", pictures=400, size=(176, 144), key_interval=400)
    tape = make_clip(tmp_path / "tape.mp4", pictures=10, size=(176, 144))
    kept = f'[feeds.kept]\nurl = "udp://127.0.0.1:{port}"\nmode = "replay"\nread_timeout = "30s"\n'
    config, log = tmp_path / "config.toml", tmp_path / "log"

    def write(feeds: str) -> None:
        start, mark, _ = config.read_text().partition("[feeds")
        (tmp_path / "new.toml").write_text(start + feeds if mark else start)
        (tmp_path / "new.toml").replace(config)

    with (
        running(tmp_path, kept) as (relay, endpoint),
        Subscriber(endpoint, "kept", ("video", "status"), max_age=3600) as viewer,
    ):
        messages(viewer, 1)  # it is subscribed
        with UdpSender(clip, port, bit_rate=400_000) as camera:
            came = messages(viewer, 10)
            write(f'{kept}[feeds.tape]\nurl = "{tape}"\nmode = "replay"\n')
            wait_until(lambda: "added tape" in log.read_text(), "the new feed")
            wait_until(lambda: "feed tape: ended" in log.read_text(), "its end")
            write(f"{kept}[feeds.tape]\nurl = 3\n")
            wait_until(lambda: "the settings stay as they were" in log.read_text(), "the complaint")
            write(kept)
            wait_until(lambda: "removed tape" in log.read_text(), "the end of the new feed")
            relay.send_signal(signal.SIGHUP)
            wait_until(lambda: "no feed changed" in log.read_text(), "the answer to SIGHUP")
            assert not camera.wait(0)
            assert camera.wait(30)
        last = time.monotonic()
        while time.monotonic() - last < 2:
            message = viewer.receive(2)
            if message is not None and message.kind == "video":
                last = time.monotonic()
                came.append(message)
    pictures = [message.header for message in came if message.kind == "video"]
    assert [header.seq for header in pictures] == list(range(len(pictures)))
    assert len(pictures) > 300
    complaints = [line for line in log.read_text().splitlines() if "the settings stay" in line]
    assert len(complaints) == 1
    assert "[feeds.tape] url is 3" in complaints[0]


def test_a_file_that_is_being_written_is_left_alone_until_it_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[relay]\n")
    watch = Watch(path)
    assert not watch.changed()
    path.write_text("")
    assert not watch.changed()
    assert not watch.changed()
    path.write_text("[relay]\n[feeds.a]\n")
    assert not watch.changed()
    path.write_text("[relay]\n[feeds.a]\n[feeds.b]\n")
    assert not watch.changed()
    assert watch.changed()
    assert watch.changed(), "until it is taken"
    watch.take()
    assert not watch.changed()
    path.rename(tmp_path / "known.toml")
    path.write_text("[relay]\n[feeds.c]\n")
    assert not watch.changed()
    assert watch.changed()
    watch.refuse()
    (tmp_path / "known.toml").rename(path)
    assert not watch.changed()
    assert watch.changed(), "the known one comes back after another was refused"
    watch.take()
    path.unlink()
    assert not watch.changed()
    assert not watch.changed()


def test_a_file_that_is_empty_or_away_for_five_looks_has_changed_until_it_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[relay]\n")
    watch = Watch(path)
    path.write_text("")
    assert [watch.changed() for _ in range(6)] == [False, False, False, False, True, True]
    watch.refuse()
    path.unlink()
    assert [watch.changed() for _ in range(5)] == [False, False, False, False, True]
    watch.refuse()
    path.write_text("[relay]\n")
    assert [watch.changed() for _ in range(2)] == [False, True]
    watch.take()
    assert not watch.changed()
    path.unlink()
    assert [watch.changed() for _ in range(4)] == [False] * 4
    path.write_text("[relay]\n[feeds.a]\n")
    assert [watch.changed() for _ in range(2)] == [False, True], "the looks at nothing do not count"


def test_settings_are_taken_as_soon_as_the_password_is_there_that_they_name(tmp_path: Path) -> None:
    config, log, password = tmp_path / "config.toml", tmp_path / "log", tmp_path / "password"
    dead = f'[feeds.dead]\nurl = "udp://127.0.0.1:{free_port()}"\n'
    pier = '[feeds.pier]\nurl = "rtsp://127.0.0.1:1/"\nusername = "relay"\npassword_file = "password"\n'
    with running(tmp_path, dead) as (_, endpoint), Subscriber(endpoint, "dead", ("status",)) as viewer:
        config.write_text(config.read_text() + pier)
        wait_until(lambda: "the settings stay as they were" in log.read_text(), "the refusal")
        messages(viewer, 5)  # one a look
        assert log.read_text().count("the settings stay as they were") == 1
        config.write_text(config.read_text() + "# saved once more\n")
        wait_until(lambda: log.read_text().count("the settings stay as they were") == 2, "the same of another file")
        messages(viewer, 3)
        password.write_text("secret")
        wait_until(lambda: "was read again: added pier" in log.read_text(), "the new feed")
        messages(viewer, 3)
    assert log.read_text().count("the settings stay as they were") == 2
    assert log.read_text().count("was read again") == 1


@pytest.mark.parametrize(
    ("text", "tables"),
    [
        ("", {}),
        ("# A comment.\n", {}),
        ("\ufeff# A comment.\n", {}),
        ("[relay]\n", {"relay": {}}),
        ("\ufeff[relay]\n", {"relay": {}}),
        ("[relay\n", {}),
    ],
)
def test_a_file_says_nothing_where_it_holds_no_table_with_a_byte_order_mark_or_without(
    tmp_path: Path, text: str, tables: dict[str, object]
) -> None:
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    assert tables_of(tmp_path / "config.toml") == tables


@pytest.mark.parametrize("nothing", ["", "# The first line of more.\n"], ids=["empty", "comments"])
def test_on_sighup_a_file_that_says_nothing_changes_nothing_and_a_failed_feed_is_opened_again(
    tmp_path: Path, nothing: str
) -> None:
    config, log, tape = tmp_path / "config.toml", tmp_path / "log", tmp_path / "tape.mp4"
    dead = f'[feeds.dead]\nurl = "udp://127.0.0.1:{free_port()}"\n'
    with running(tmp_path, f'{dead}[feeds.tape]\nurl = "{tape}"\nmode = "replay"\n') as (relay, _):
        wait_until(lambda: "feed tape: failed" in log.read_text(), "the failure")
        before = config.read_text()
        config.write_text(nothing)
        relay.send_signal(signal.SIGHUP)
        wait_until(lambda: f"the settings stay as they were: {config} says nothing" in log.read_text(), "the refusal")
        make_clip(tape, pictures=10, size=(176, 144))
        config.write_text(before)
        relay.send_signal(signal.SIGHUP)
        wait_until(lambda: "was read again: opened again tape" in log.read_text(), "the second attempt")
        wait_until(lambda: "feed tape: ended" in log.read_text(), "the end of the recording")
        assert stopped(relay) < 5
    assert "removed" not in log.read_text()
    assert "feed tape: 10 received, 10 published" in log.read_text()


@pytest.mark.parametrize("of_the_environment", [False, True], ids=["", "beside one of the environment"])
def test_a_file_that_was_cut_off_in_front_of_its_feeds_removes_none_until_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_the_environment: bool
) -> None:
    if of_the_environment:
        monkeypatch.setenv("NIGHTBRIDGE__FEEDS__ROOF__URL", f"udp://127.0.0.1:{free_port()}")
    config, log = tmp_path / "config.toml", tmp_path / "log"
    dead = "".join(f'[feeds.{name}]\nurl = "udp://127.0.0.1:{free_port()}"\n' for name in ("east", "west"))
    feeds = f"# The cameras of the pier.\n{dead}"
    with (
        running(tmp_path, feeds) as (relay, endpoint),
        Subscriber(endpoint, "east", ("status",)) as east,
        Subscriber(endpoint, "west", ("status",)) as west,
    ):
        config.write_text(config.read_text().partition("cameras")[0])
        wait_until(lambda: "the settings stay as they were" in log.read_text(), "the refusal")
        for viewer in (east, west):
            assert decode_status(messages(viewer, 4)[-1].payload).state == "connecting"
        assert log.read_text().count("the settings stay as they were") == 1
        assert f"{config} has no feeds, as if it were cut off; SIGHUP takes it as it is" in log.read_text()
        relay.send_signal(signal.SIGHUP)
        wait_until(lambda: "was read again: removed east, west" in log.read_text(), "the removal")
        assert stopped(relay) < 2.5
    [told] = [line for line in log.read_text().splitlines() if "removed" in line]
    assert " WARNING " in told


Shown = Callable[[], tuple[str | None, list[str], bool]]
"""What the relay tells of its settings over HTTP: the reason why they are refused, the tables that need a restart, and
whether they are current."""


@contextmanager
def running_with_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shown]:
    """`nightbridge run` on one dead feed."""
    monkeypatch.setenv("NIGHTBRIDGE__RELAY__METRICS", "127.0.0.1:0")
    with running(tmp_path, f'[feeds.dead]\nurl = "udp://127.0.0.1:{free_port()}"\n'):
        log = (tmp_path / "log").read_text()
        found = re.search(r"status at http://(\S+)", log)
        assert found, log

        def page(path: str) -> str:
            connection = HTTPConnection(found[1], timeout=10)
            connection.request("GET", path)
            return connection.getresponse().read().decode()

        def shown() -> tuple[str | None, list[str], bool]:
            settings = json.loads(page("/status"))["settings"]
            [current] = re.findall(r"(?m)^nightbridge_settings_current (\S+)", page("/metrics"))
            return settings["reason"], settings["need_restart"], bool(float(current))

        yield shown


@pytest.mark.parametrize(
    ("vanish", "reason"),
    [
        (lambda config: config.write_text(""), "{config} says nothing"),
        (lambda config: config.unlink(), "{config}: No such file or directory"),
    ],
    ids=["empty", "away"],
)
def test_a_file_that_stays_empty_or_away_is_told_once_and_changes_no_feed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vanish: Callable[[Path], object], reason: str
) -> None:
    config, log = tmp_path / "config.toml", tmp_path / "log"
    with running_with_metrics(tmp_path, monkeypatch) as shown:
        before = config.read_text()
        vanish(config)
        wait_until(lambda: not shown()[2], "the refusal")
        assert shown() == (reason.format(config=config), [], False)
        config.write_text(before)
        wait_until(lambda: shown() == (None, [], True), "its being taken")
        assert "was read again: no feed changed" in log.read_text()
    assert log.read_text().count("the settings stay as they were") == 1


def test_settings_that_are_refused_show_in_status_and_metrics_until_others_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, kept = tmp_path / "config.toml", tmp_path / "kept.toml"
    with running_with_metrics(tmp_path, monkeypatch) as shown:
        assert shown() == (None, [], True)
        config.rename(kept)
        broken = tmp_path / "broken.toml"
        broken.write_text("[feeds.dead]\nurl = 3\n")
        broken.replace(config)
        wait_until(lambda: not shown()[2], "the refusal")
        reason, _, _ = shown()
        assert reason is not None
        assert reason.startswith(f"{config}: [feeds.dead] url is 3")
        kept.replace(config)  # the very file that was there before
        wait_until(lambda: shown() == (None, [], True), "its being taken")
        config.write_text(config.read_text().replace("[relay]", "[relay]\nhigh_water_mark = 7"))
        wait_until(lambda: shown() == (None, ["[relay]"], True), "what needs a restart")


def test_weights_that_cannot_be_read_refuse_what_the_file_says(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED / "field-lite", tmp_path / "mine", ignore=shutil.ignore_patterns("fp32.onnx"))
    config = tmp_path / "config.toml"
    config.write_text('[engine]\nweights = "./mine"\nprecision = "fp32"\n[feeds.pier]\nurl = "udp://:5000"\n')
    relay = cast("Relay", None)  # which is not asked for anything
    assert read_again(config, relay, asked=True) == (
        f"{config}: [engine] weights field-lite ({tmp_path}/mine) have no fp32.onnx: "
        "their card tells of it, but it is not in the folder"
    )


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
        wait_until(lambda: "was read again: added f16" in log.read_text(), "the new feed")
        wait_until(lambda: f"{words}; another one takes effect at the next start" in log.read_text(), "the warning")


SIGNALS = """
import os, signal, threading
from tools.common.signals import stopped_by_signals

stop = threading.Event()
interrupt = threading.Thread(target=lambda: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(200)])
with stopped_by_signals(stop.set):
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
