from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from stream.subscribe import Subscriber
from stream.wire.messages import Header, Status, encode_feeds
from tests.command import ROOT, nightbridge
from tests.published import Camera, relay
from tests.viewing import UNDECODABLE, message, on_air, saying, status
from tests.waiting import DEADLINE, wait_until
from tools.view_figures import Figures

KEYS = {
    "feed",
    "pictures",
    "seconds",
    "rate_fps",
    "bit_rate",
    "age_p50_ms",
    "age_p95_ms",
    "capture_clock",
    "lost",
    "loss_percent",
    "dropped",
    "states",
}


def test_the_figures_are_printed_and_written_as_json(tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    with on_air(capture_clock="arrival", state="tainted") as publisher:
        done = nightbridge(ROOT, "view", publisher.endpoint, "pier", "--stats", "--seconds", "3", "--json", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "age p50" in done.stdout.splitlines()[0]
    figures = json.loads(path.read_text())
    assert figures.keys() == KEYS
    assert (figures["feed"], figures["lost"], figures["capture_clock"]) == ("pier", 0, "arrival")
    assert figures["states"]["tainted"] >= figures["pictures"] > 5
    assert 0 < figures["age_p50_ms"] <= figures["age_p95_ms"] < 1000
    assert figures["rate_fps"] == pytest.approx((figures["pictures"] - 1) / figures["seconds"])


def test_one_picture_makes_no_rate() -> None:
    figures = Figures()
    figures.add(message(bytes(1000), "h264"))
    assert "0.0 pictures/s; 8 kbit/s" in figures.line(Subscriber("tcp://127.0.0.1:1", "pier", ("video",)))


class Clock:
    """Stands for the module `time`: both clocks go on only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return round(self.now * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tools.view_figures.time", clock)
    return clock


def unopened() -> Subscriber:
    return Subscriber("tcp://127.0.0.1:1", "pier", ("video",))


def losing(lost: int) -> Subscriber:
    """A subscriber that so many messages did not reach."""
    return cast("Subscriber", SimpleNamespace(lost=lost, received=100, dropped={}, states={}))


def watch(figures: Figures, clock: Clock, pictures: int, rate: float, age_ms: float) -> None:
    """Let pictures of 1000 bytes come."""
    for _ in range(pictures):
        clock.now += 1 / rate
        came = message(bytes(1000), "h264")
        header = msgspec.structs.replace(came.header, capture_ns=round(clock.now * 1e9 - age_ms * 1e6))
        figures.add(replace(came, header=header))


def test_the_line_tells_of_the_last_seconds_and_the_end_of_all(clock: Clock) -> None:
    figures = Figures()
    watch(figures, clock, pictures=2400, rate=32, age_ms=150)
    assert figures.line(unopened()) == "age p50 150 ms, p95 150 ms; 32.0 pictures/s; 256 kbit/s; lost 0"
    watch(figures, clock, pictures=41, rate=4, age_ms=900)
    assert figures.line(unopened()) == "age p50 900 ms, p95 900 ms; 4.0 pictures/s; 32 kbit/s; lost 0"
    values = figures.values(unopened())
    assert values["pictures"] == 2441
    assert values["age_p50_ms"] == pytest.approx(150)
    assert values["rate_fps"] == pytest.approx(2440 / (2399 / 32 + 41 / 4))


def test_the_line_says_no_age_where_no_clock_told(clock: Clock) -> None:
    figures = Figures()
    figures.add(message(bytes(1000), "h264"))
    clock.now += 0.1
    assert figures.line(unopened()) == "0.0 pictures/s; 8 kbit/s; lost 0"


def test_the_line_tells_what_was_lost_on_the_way_in_the_last_seconds(clock: Clock) -> None:
    figures = Figures()
    for lost, told in ((1, 1), (7, 7), (7, 6), (9, 2), (9, 2), (9, 0)):
        watch(figures, clock, pictures=5, rate=1, age_ms=0)
        assert figures.line(losing(lost)).endswith(f"; lost {told}")
    assert figures.values(losing(9))["lost"] == 9


def test_the_line_tells_how_many_cannot_be_decoded_and_for_how_long_nothing_was_seen(clock: Clock) -> None:
    figures, line = Figures(), []
    for undecodable in (0, 3, 3, 3):
        figures.note_undecodable(undecodable)
        clock.now += 4
        figures.add(message(bytes(1000), "h264"), is_seen=undecodable == 0)
        line.append(figures.line(unopened()))
    assert line == [
        "0.0 pictures/s; 8 kbit/s; lost 0",
        "no picture for 4 s; lost 0; 3 cannot be decoded",
        "no picture for 8 s; lost 0; 3 cannot be decoded",
        "no picture for 12 s; lost 0",
    ]
    figures.add(message(bytes(1000), "h264"))
    assert not figures.is_stale()


def test_where_nothing_that_came_could_be_decoded_there_is_no_picture_yet() -> None:
    figures = Figures()
    figures.add(message(UNDECODABLE, "h264"), is_seen=False)
    figures.note_undecodable(1)
    assert figures.line(unopened()) == "no picture yet; 1 cannot be decoded"


def test_the_line_tells_what_the_relay_dropped_and_lost_in_the_last_seconds(clock: Clock) -> None:
    figures = Figures()
    line = []
    for dropped, lost in ((1000, 50), (1000, 50), (1040, 50), (1040, 53), (1040, 53), (1040, 53), (5, 0), (6, 0)):
        watch(figures, clock, pictures=5, rate=1, age_ms=0)
        figures.add_status(status("live", dropped=dropped, lost=lost))
        line.append(figures.line(unopened()).partition("; lost 0")[2])
    assert line == [
        "",
        "",
        "; the relay dropped 40 (overload)",
        "; the relay dropped 40 (overload); the relay lost 3 (damaged)",
        "; the relay lost 3 (damaged)",
        "",
        "",  # begun anew
        "; the relay dropped 1 (overload)",
    ]


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (status("live"), ""),
        (status("ended"), "; ended"),
        (status("connecting", "no route"), "; connecting: no route"),
        (status("live", "no picture can be decoded"), "; live: no picture can be decoded"),
    ],
)
def test_the_line_tells_what_is_wrong_with_a_feed(clock: Clock, says: Status, told: str) -> None:
    figures = Figures()
    figures.add_status(says)
    assert figures.line(unopened()) == f"no picture yet{told}"
    watch(figures, clock, pictures=1, rate=1, age_ms=0)
    assert figures.line(unopened()).endswith(f"; lost 0{told}")
    clock.now += 3
    assert figures.line(unopened()) == f"no picture for 3 s; lost 0{told}"


def test_what_the_relay_dropped_is_over_although_it_says_nothing_more(clock: Clock) -> None:
    figures = Figures()
    for dropped in (0, 40):
        watch(figures, clock, pictures=1, rate=1, age_ms=0)
        figures.add_status(status("live", dropped=dropped))
    assert figures.line(unopened()).endswith("lost 0; the relay dropped 40 (overload)")
    watch(figures, clock, pictures=10, rate=1, age_ms=0)
    assert figures.line(unopened()).endswith("lost 0")


def test_the_figures_tell_what_the_relay_drops() -> None:
    dropped = count(1000, 10)
    with on_air() as publisher, saying(publisher, lambda: status("live", dropped=next(dropped))):
        words = ["view", publisher.endpoint, "pier", "--stats", "--seconds", f"{DEADLINE}"]
        program = subprocess.Popen([sys.executable, "-m", "tools", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert program.stdout is not None
        try:
            told = next((line for line in program.stdout if "relay" in line), "nothing")
        finally:
            program.kill()
            program.communicate()
    assert told.startswith("age p50 ")
    assert "the relay dropped " in told
    assert told.endswith(" (overload)\n")


def test_figures_of_a_silent_feed_end_with_1() -> None:
    with relay() as publisher:
        done = nightbridge(ROOT, "view", publisher.endpoint, "pier", "--stats", "--seconds", "0.3")
    assert done.returncode == 1
    assert "no picture of feed pier" in done.stderr


def test_a_feed_that_has_gone_silent_is_told_by_the_figures() -> None:
    with relay() as publisher:
        program = subprocess.Popen(
            [sys.executable, "-m", "tools", "view", publisher.endpoint, "pier", "--stats"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert program.stdout is not None
        try:
            assert publisher.wait_for_viewer("pier", DEADLINE)
            Camera(publisher).show(3)
            silent = next(line for line in program.stdout if line.startswith("no picture for"))
            program.terminate()
            assert program.wait(DEADLINE) == 0
        finally:
            program.kill()
            program.communicate()
    assert re.fullmatch(r"no picture for ([2-9]|\d\d+) s; lost 0\n", silent)


def test_the_feeds_of_a_relay_are_listed_with_how_they_do_and_written_as_json(tmp_path: Path) -> None:
    live = Status(state="live", received=70, published=60, under_way=2, dropped={"late": 5}, lost={"damaged": 3})
    dead = Status(state="failed", received=0, published=0, under_way=0, dropped={}, lost={}, reason="[no] route")
    path = tmp_path / "feeds.json"
    with relay() as publisher:
        listing = [sys.executable, "-m", "tools", "view", publisher.endpoint, "--feeds", "--json", str(path)]
        with subprocess.Popen(listing, cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
            wait_until(lambda: publisher.wait_for_viewer("*", 1.0), "somebody asks")
            assert not publisher.wait_for_viewer("pier", 0.0), "who lists the feeds is no viewer of them"
            assert not publisher.take_join("pier")
            publisher.publish("*", "feeds", Header(), encode_feeds({"quay": dead, "pier": live}))
            printed = program.communicate()[0]
    assert (program.returncode, printed.splitlines()) == (
        0,
        [
            "pier  live    70 received  60 published  5 dropped  3 lost",
            "quay  failed  0 received   0 published   0 dropped  0 lost  [no] route",
        ],
    )
    feeds = json.loads(path.read_text())["feeds"]
    assert feeds["pier"] == msgspec.to_builtins(live) | {"reason": None}
    assert feeds["quay"]["reason"] == "[no] route"
