import math
import subprocess
import time
from fractions import Fraction
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import cast

import pytest

from stream.publish import Publisher
from stream.wire.messages import Header, encode_feeds
from tests.impostors import Impostor, hangs_up
from tests.published import Camera, relay
from tests.recorded import recording_program
from tests.viewing import NO_LOGIN, repeating, status
from tests.waiting import DEADLINE, takes_less_than, wait_until
from tools.record import Silence


def test_the_command_tells_that_nothing_comes(tmp_path: Path) -> None:
    with (
        relay() as publisher,
        recording_program(publisher, "peer", tmp_path, stderr=subprocess.PIPE) as program,
    ):
        camera = Camera(publisher)
        assert program.stderr is not None
        line = program.stderr.readline()
        wanted = f"no picture of feed peer at {publisher.endpoint}"
        assert line == f"{wanted} yet: is the relay running there, and does it have that feed?\n"
        camera.show()
        program.terminate()
        output, _ = program.communicate(timeout=DEADLINE)
    assert program.returncode == 0
    assert "0 pictures" in output


def test_the_command_tells_of_every_silence_what_the_relay_says(tmp_path: Path) -> None:
    feeds = {"pier": status("connecting", NO_LOGIN), "gate": status("live")}
    with (
        relay() as publisher,
        repeating(lambda: publisher.publish("*", "feeds", Header(), encode_feeds(feeds))),
        recording_program(publisher, "pier", tmp_path, stderr=subprocess.PIPE) as program,
    ):
        camera = Camera(publisher)
        assert program.stderr is not None
        wanted = f"no picture of feed pier at {publisher.endpoint}"
        assert program.stderr.readline() == f"{wanted} yet; the relay says: connecting: {NO_LOGIN}\n"
        camera.show(3)
        assert program.stderr.readline() == f"{wanted} for 5 s; the relay says: connecting: {NO_LOGIN}\n"
        del feeds["pier"]
        camera.show(3)
        assert program.stderr.readline() == f"{wanted} for 5 s; the relay has no feed pier; it has gate\n"
        program.terminate()
        assert program.wait(DEADLINE) == 0


def test_where_no_connection_begins_the_command_says_what_may_be_there(tmp_path: Path) -> None:
    with Impostor(hangs_up) as impostor:
        relay = cast("Publisher", SimpleNamespace(endpoint=f"tcp://127.0.0.1:{impostor.port}"))
        with recording_program(relay, "pier", tmp_path, stderr=subprocess.PIPE) as program:
            assert program.stderr is not None
            warned, told = program.stderr.readline(), program.stderr.readline()
    trouble = (
        f"connections to {relay.endpoint} fail in the handshake: what listens there is not a relay, or an encrypted"
    )
    assert trouble in warned
    assert told.startswith(f"no picture of feed pier at {relay.endpoint} yet; {trouble}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "live"),
        (["--source"], "live, and may not publish the camera's own pictures (publish_source)"),
    ],
)
def test_the_command_tells_that_no_picture_comes_although_data_does(
    words: list[str], says: str, tmp_path: Path
) -> None:
    klv = Header(codec="klv", pts=0, time_base=Fraction(1, 90000))
    feeds = encode_feeds({"pier": status("live")})
    with (
        relay() as publisher,
        repeating(lambda: publisher.publish("*", "feeds", Header(), feeds)),
        repeating(lambda: publisher.publish("pier", "data", klv, b"x")),
        recording_program(publisher, "pier", tmp_path, *words, stderr=subprocess.PIPE) as program,
    ):
        assert program.stderr is not None
        late = Timer(DEADLINE, program.kill)
        late.start()
        line = program.stderr.readline()
        late.cancel()
    assert line == f"no picture of feed pier at {publisher.endpoint} yet; the relay says: {says}\n"


def test_a_feed_of_few_pictures_is_silent_only_after_more_than_its_usual_time() -> None:
    silence = Silence(100.0)
    assert (silence.due, silence.describe(is_well=True), silence.due) == (105.0, "yet", math.inf)
    for came in (106.0, 112.0, 118.0):
        silence.picture_came(came)
        assert (silence.due, silence.describe(is_well=True)) == (came + 5, None)
    assert (silence.due, silence.describe(is_well=True), silence.due) == (136.0, "for 18 s", math.inf)


def test_a_feed_that_is_not_well_is_silent_at_once_however_few_pictures_it_has() -> None:
    silence = Silence(100.0)
    for came in (106.0, 166.0):
        silence.picture_came(came)
    assert (silence.describe(is_well=False), silence.due) == ("for 5 s", math.inf)


def test_a_feed_of_many_pictures_is_silent_at_once_after_any_pause_before() -> None:
    silence = Silence(100.0)
    for came in (101.0, 701.0, 701.04):
        silence.picture_came(came)
    assert (silence.describe(is_well=True), silence.due) == ("for 5 s", math.inf)


SOON = """
import tools.record
tools.record.SILENCE_SECONDS = 1.0
from tools.app import main
main()
"""
"""The command that looks into a silence after a second."""

WITHOUT_DESCRIPTORS = """
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
import tools.record
ask = tools.record.listed_feeds
def listed_feeds(*words):
    limits = getrlimit(RLIMIT_NOFILE)
    setrlimit(RLIMIT_NOFILE, (3, limits[1]))
    try:
        return ask(*words)
    finally:
        setrlimit(RLIMIT_NOFILE, limits)
tools.record.listed_feeds = listed_feeds
"""
WITHOUT_THREADS = """
import tools.record
def listed_feeds(*_):
    raise RuntimeError("can't start new thread")
tools.record.listed_feeds = listed_feeds
"""
"""Put before it: the machine has none left for asking the relay."""


def test_the_command_waits_for_the_next_picture_of_a_feed_that_is_well(tmp_path: Path) -> None:
    feeds = {"pier": status("live")}
    with (
        relay() as publisher,
        repeating(lambda: publisher.publish("*", "feeds", Header(), encode_feeds(feeds))),
        recording_program(publisher, "pier", tmp_path, command=("-c", SOON), stderr=subprocess.PIPE) as program,
    ):
        camera = Camera(publisher)
        assert program.stderr is not None
        wanted = f"no picture of feed pier at {publisher.endpoint}"
        assert program.stderr.readline() == f"{wanted} yet; the relay says: live\n"
        camera.show()
        assert program.stderr.readline() == f"{wanted} for 3 s; the relay says: live\n"


@pytest.mark.parametrize("lack", [WITHOUT_DESCRIPTORS, WITHOUT_THREADS], ids=["descriptors", "threads"])
def test_a_relay_that_cannot_be_asked_ends_no_recording(lack: str, tmp_path: Path) -> None:
    command = ("-c", lack + SOON)
    with (
        relay() as publisher,
        recording_program(publisher, "pier", tmp_path, command=command, stderr=subprocess.PIPE) as program,
    ):
        camera = Camera(publisher)
        assert program.stderr is not None
        assert program.stderr.readline().endswith(" yet: is the relay running there, and does it have that feed?\n")
        camera.show(3)
        assert program.stderr.readline().endswith(" for 1 s: is the relay running there, and does it have that feed?\n")
        program.terminate()
        output, _ = program.communicate(timeout=DEADLINE)
    assert program.returncode == 0
    assert "3 pictures" in output


def test_a_command_that_asks_why_nothing_comes_ends_soon_when_it_is_asked_to_stop(tmp_path: Path) -> None:
    def seconds_to_end() -> float:
        with (
            relay() as publisher,
            recording_program(publisher, "pier", tmp_path, command=("-c", SOON), stderr=subprocess.PIPE) as program,
        ):
            wait_until(lambda: publisher.wait_for_viewer("*", 1.0), "the question")
            began = time.monotonic()
            program.terminate()
            _, told = program.communicate(timeout=DEADLINE)
            assert (program.returncode, told) == (0, "")
            return time.monotonic() - began

    assert takes_less_than(1.0, seconds_to_end)
