from __future__ import annotations

import re
import subprocess
import sys
import time
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from threading import Event

import pytest

from stream.wire.messages import Header, encode_feeds
from tests.command import ROOT, nightbridge
from tests.impostors import Impostor, hangs_up
from tests.published import Camera, relay
from tests.viewing import NO_LOGIN, UNDECODABLE, on_air, repeating, saying, status
from tests.waiting import takes_less_than, wait_until
from tools.view_feed import FeedAddress, Reception, Span


@pytest.mark.parametrize(("feed", "wanted"), [("quay", "feed quay"), (None, "any feed")])
def test_where_nothing_comes_at_first_that_is_told_before_the_end(feed: str | None, wanted: str) -> None:
    words = ["view", "tcp://127.0.0.1:1", *([feed] if feed else []), "--stats"]
    program = subprocess.Popen([sys.executable, "-m", "tools", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    with program:
        assert program.stderr is not None
        line = program.stderr.readline()
        program.terminate()
    assert f"nothing received from {wanted} at tcp://127.0.0.1:1 yet: is the relay running there" in line


def test_where_the_relay_has_no_such_feed_the_viewer_says_which_it_has() -> None:
    listing = encode_feeds({"pier": status("live"), "gate": status("live")})
    with relay() as publisher, repeating(lambda: publisher.publish("*", "feeds", Header(), listing)):
        command = [sys.executable, "-m", "tools", "view", publisher.endpoint, "peir", "--stats"]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as program:
            assert program.stderr is not None
            line = program.stderr.readline()
            program.terminate()
    assert line.endswith(
        f" nothing received from feed peir at {publisher.endpoint} yet; the relay has no feed peir; it has gate, pier\n"
    )


@pytest.mark.parametrize(
    ("words", "missing", "wanted", "warnings"),
    [
        (["pier", "--snapshot", "shot.png"], "no picture of feed pier", "feed pier", 1),
        (["--snapshot", "shot.png"], "no feed", "any feed", 1),
        (["--feeds"], "no list of feeds came from a relay", "any feed", 0),
    ],
)
def test_where_no_connection_begins_what_may_be_there_is_told_and_nothing_that_contradicts_it(
    tmp_path: Path, words: list[str], missing: str, wanted: str, warnings: int
) -> None:
    with Impostor(hangs_up) as impostor:
        endpoint = f"tcp://127.0.0.1:{impostor.port}"
        done = nightbridge(tmp_path, "view", endpoint, *words)
    trouble = (
        f"connections to {endpoint} fail in the handshake: what listens there is not a relay, or an encrypted relay, "
        "which needs --relay-key and --secret-key (docs/deploy.md)"
    )
    *warned, failed = done.stderr.splitlines()
    assert [line.partition(" WARNING ")[2] for line in warned] == [
        *[f"{trouble}; still retrying"] * warnings,
        f"nothing received from {wanted} at {endpoint} yet; {trouble}",
    ]
    assert failed == f"nightbridge: {missing} at {endpoint} within 10 s; {trouble}"


def test_a_window_does_not_stand_still_while_the_relay_is_asked_why_nothing_comes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tools.view_feed.QUIET_SECONDS", 1.2)

    def longest_turn() -> float:
        with relay() as publisher, Reception(FeedAddress(publisher.endpoint, "pier", "video", None)) as reception:
            turned = [time.monotonic() for _ in reception.messages(Span(Event(), 3.0))]
        return max(after - before for before, after in pairwise(turned))

    assert takes_less_than(0.5, longest_turn)
    assert "is the relay running there" in caplog.text


def test_all_feeds_are_asked_for_until_a_picture_comes() -> None:
    with relay() as publisher, Reception(FeedAddress(publisher.endpoint, "pier", "video", None)) as reception:
        turns = reception.messages(Span(Event(), None))
        wait_until(lambda: next(turns) == [] and publisher.wait_for_viewer("*", 0.0), "the question")
        Camera(publisher).show()
        wait_until(lambda: next(turns) == [] and not publisher.wait_for_viewer("*", 0.0), "the end of the question")
        with saying(publisher, lambda: status("connecting", NO_LOGIN)):
            wait_until(lambda: next(turns) == [] and reception.status, "a status")


def test_where_a_camera_s_own_pictures_do_not_come_the_viewer_says_that_they_may_not_be_published() -> None:
    listing = encode_feeds({"pier": status("live")})
    with relay() as publisher, repeating(lambda: publisher.publish("*", "feeds", Header(), listing)):
        done = nightbridge(ROOT, "view", publisher.endpoint, "pier", "--stats", "--source", "--seconds", "3")
    assert done.stderr == (
        f"nightbridge: no picture of feed pier at {publisher.endpoint} within 3 s; "
        "the relay says: live, and may not publish the camera's own pictures (publish_source)\n"
    )


def test_where_the_camera_is_at_fault_the_viewer_says_what_the_relay_says(tmp_path: Path) -> None:
    path = tmp_path / "shot.png"
    with relay() as publisher, saying(publisher, lambda: status("connecting", NO_LOGIN)):
        done = nightbridge(ROOT, "view", publisher.endpoint, "pier", "--snapshot", str(path), "--seconds", "7")
    wanted, says = f"feed pier at {publisher.endpoint}", f"; the relay says: connecting: {NO_LOGIN}"
    warned, failed = done.stderr.splitlines()
    assert done.returncode == 1
    assert warned.endswith(f"nothing received from {wanted} yet{says}")
    assert failed == f"nightbridge: no picture of {wanted} within 7 s{says}"


def test_where_no_picture_can_be_decoded_the_viewer_says_so(tmp_path: Path) -> None:
    with relay() as publisher:
        broken = Header(key=True, codec="h264", pts=0, time_base=Fraction(1, 25))
        with repeating(lambda: publisher.publish("pier", "video", broken, UNDECODABLE)):
            words = ["pier", "--snapshot", str(tmp_path / "shot.png"), "--seconds", "3"]
            done = nightbridge(ROOT, "view", publisher.endpoint, *words)
    assert done.returncode == 1
    assert re.fullmatch(
        f"nightbridge: no picture of feed pier at {publisher.endpoint} within 3 s; "
        r"[1-9]\d* came that cannot be decoded\n",
        done.stderr.splitlines(keepends=True)[-1],
    )


def test_a_relay_that_does_not_tell_of_its_feeds_is_named(tmp_path: Path) -> None:
    path = tmp_path / "feeds.json"
    with on_air() as publisher:  # pictures alone
        done = nightbridge(ROOT, "view", publisher.endpoint, "--feeds", "--seconds", "0.5", "--json", str(path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"nightbridge: no list of feeds came from a relay at {publisher.endpoint} within 0.5 s\n"
    assert not path.exists()
