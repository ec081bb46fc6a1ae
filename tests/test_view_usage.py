from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import ROOT, nightbridge
from tests.published import relay
from tests.waiting import DEADLINE, wait_until


@pytest.mark.parametrize(
    ("feed", "words", "missing"),
    [
        ("*", ["--feeds"], "no list of feeds came from a relay at"),
        ("pier", ["pier", "--snapshot", "shot.png"], "no picture of feed pier at"),
    ],
)
def test_who_is_stopped_names_no_time_that_was_not_waited(
    tmp_path: Path, feed: str, words: list[str], missing: str
) -> None:
    with relay() as publisher:
        command = [sys.executable, "-m", "tools", "view", publisher.endpoint, *words]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as program:
            wait_until(lambda: publisher.wait_for_viewer(feed, 1.0), "somebody asks")
            program.send_signal(signal.SIGINT)
            told = program.communicate(timeout=DEADLINE)[1]
    assert (program.returncode, told) == (1, f"nightbridge: {missing} {publisher.endpoint}\n")


@pytest.mark.parametrize("words", [["--feeds"], ["--snapshot", "shot.png"], ["pier", "--snapshot", "shot.png"]])
def test_no_time_at_all_is_not_waited(tmp_path: Path, words: list[str]) -> None:
    done = nightbridge(tmp_path, "view", "tcp://127.0.0.1:1", *words, "--seconds", "0")
    assert done.returncode == 1
    assert done.stderr.endswith(" at tcp://127.0.0.1:1 within 0 s\n")


@pytest.mark.parametrize(
    "words",
    [
        ["--snapshot", "a.png", "--stats"],
        ["--feeds", "--stats"],
        ["--feeds", "--snapshot", "a.png"],
        ["pier", "--feeds"],
        ["--feeds", "--source"],
        ["--snapshot", "a.jpg"],
        ["--snapshot", "/no/a.png"],
        ["--stats", "--json", "/no/a"],
        ["--json", "a.json"],
        ["--seconds", "-1"],
        ["--relay-key", __file__],
    ],
)
def test_options_that_do_not_go_together_are_wrong_use(words: list[str]) -> None:
    assert nightbridge(ROOT, "view", "tcp://127.0.0.1:5560", *words).returncode == 2


def test_an_endpoint_that_is_none_is_told_with_an_example() -> None:
    done = nightbridge(ROOT, "view", "10.0.0.2:5560", "pier", "--stats")
    assert done.returncode == 2
    assert "'10.0.0.2:5560'; must be an endpoint such as" in done.stderr


def test_without_pygame_the_error_says_what_to_install() -> None:
    script = "import sys; sys.modules['pygame'] = None; from tools.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "view", "tcp://127.0.0.1:5560", "pier"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("nightbridge: the window needs pygame: pip install 'nightbridge[view]'")
    assert done.stderr.count("\n") == 1


def test_without_a_display_the_error_says_what_works() -> None:
    done = nightbridge(ROOT, "view", "tcp://127.0.0.1:5560", "pier", SDL_VIDEODRIVER="none of them")
    assert done.returncode == 1
    assert "--snapshot and --stats need none" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_window_that_nobody_would_see_is_an_error() -> None:
    seen_by = ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY")
    done = subprocess.run(
        [sys.executable, "-m", "tools", "view", "tcp://127.0.0.1:5560", "pier", "--seconds", "1"],
        cwd=ROOT,
        env={name: text for name, text in os.environ.items() if name not in seen_by},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("nightbridge: no window can be opened here (")
