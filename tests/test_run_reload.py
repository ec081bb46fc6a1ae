"""A relay whose file of settings changes."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import cast

import pytest

from engines.cards import SHIPPED
from stream.relay import Relay
from stream.subscribe import Subscriber
from stream.wire.messages import decode_status
from tests.clips import UdpSender, free_port, make_clip
from tests.running import messages, running, stopped
from tests.waiting import wait_until
from tools.run import FileWatch, reload_settings, tables_of


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
            wait_until(lambda: "new settings not applied" in log.read_text(), "the complaint")
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
    complaints = [line for line in log.read_text().splitlines() if "new settings not applied" in line]
    assert len(complaints) == 1
    assert "[feeds.tape] url is 3" in complaints[0]


def test_a_file_that_is_being_written_is_left_alone_until_it_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[relay]\n")
    watch = FileWatch(path)
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
    watch.accept()
    assert not watch.changed()
    path.rename(tmp_path / "known.toml")
    path.write_text("[relay]\n[feeds.c]\n")
    assert not watch.changed()
    assert watch.changed()
    watch.refuse()
    (tmp_path / "known.toml").rename(path)
    assert not watch.changed()
    assert watch.changed(), "the known one comes back after another was refused"
    watch.accept()
    path.unlink()
    assert not watch.changed()
    assert not watch.changed()


def test_a_file_that_is_empty_or_away_for_five_looks_has_changed_until_it_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[relay]\n")
    watch = FileWatch(path)
    path.write_text("")
    assert [watch.changed() for _ in range(6)] == [False, False, False, False, True, True]
    watch.refuse()
    path.unlink()
    assert [watch.changed() for _ in range(5)] == [False, False, False, False, True]
    watch.refuse()
    path.write_text("[relay]\n")
    assert [watch.changed() for _ in range(2)] == [False, True]
    watch.accept()
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
        wait_until(lambda: "new settings not applied" in log.read_text(), "the refusal")
        messages(viewer, 5)  # one a look
        assert log.read_text().count("new settings not applied") == 1
        config.write_text(config.read_text() + "# saved once more\n")
        wait_until(lambda: log.read_text().count("new settings not applied") == 2, "the same of another file")
        messages(viewer, 3)
        password.write_text("secret")
        wait_until(lambda: f"reloaded {config}: added pier" in log.read_text(), "the new feed")
        messages(viewer, 3)
    assert log.read_text().count("new settings not applied") == 2
    assert log.read_text().count(f"reloaded {config}") == 1


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
        wait_until(lambda: f"effect: {config} is empty or holds only comments" in log.read_text(), "the refusal")
        make_clip(tape, pictures=10, size=(176, 144))
        config.write_text(before)
        relay.send_signal(signal.SIGHUP)
        wait_until(lambda: f"reloaded {config}: opened again tape" in log.read_text(), "the second attempt")
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
        wait_until(lambda: "new settings not applied" in log.read_text(), "the refusal")
        for viewer in (east, west):
            assert decode_status(messages(viewer, 4)[-1].payload).state == "connecting"
        assert log.read_text().count("new settings not applied") == 1
        assert f"{config} has no feeds, so it may be incomplete; send SIGHUP to apply it anyway" in log.read_text()
        relay.send_signal(signal.SIGHUP)
        wait_until(lambda: f"reloaded {config}: removed east, west" in log.read_text(), "the removal")
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
        (lambda config: config.write_text(""), "{config} is empty or holds only comments"),
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
        assert f"reloaded {config}: no feed changed" in log.read_text()
    assert log.read_text().count("new settings not applied") == 1


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
    assert reload_settings(config, relay, asked=True) == (
        f"{config}: [engine] weights field-lite ({tmp_path}/mine) have no fp32.onnx: "
        "it is listed in card.json but missing from the folder"
    )
