from __future__ import annotations

import inspect
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engines import fallback
from engines.errors import EngineMissing
from stream.errors import SettingsError, SourceLost
from tests.command import ROOT, nightbridge
from tests.waiting import DEADLINE
from tools import app
from tools.engine import engine

HEAVY = {"av", "numpy", "nncf", "onnx", "openvino", "pydantic", "pygame", "tensorrt_rtx", "torch", "zmq"}


def test_the_help_names_every_command() -> None:
    done = nightbridge(ROOT, "--help")
    assert done.returncode == 0
    for command in app.COMMANDS:
        assert f" {command.__name__} " in done.stdout


def test_the_commands_are_registered_without_heavy_imports() -> None:
    script = f"import sys, tools.app; print(sorted({HEAVY} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_default_that_the_help_shows_may_be_typed() -> None:
    commands: list[Any] = [*app.COMMANDS, *(each.callback for each in engine.registered_commands)]
    tried = 0
    for command in commands:
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            for about in getattr(parameter.annotation, "__metadata__", ()):
                if about.parser and parameter.default not in (None, parameter.empty):
                    shown = parameter.default if about.show_default is True else about.show_default
                    assert about.parser(str(shown)) == parameter.default, f"{command.__name__}: {parameter.name}"
                    tried += 1
    assert tried >= 2


def test_openvino_tells_nobody_that_it_is_used(tmp_path: Path) -> None:
    """It keeps an id in the user's home, and sends that to Google Analytics."""
    environment = {name: text for name, text in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    done = subprocess.run(
        [sys.executable, "-c", "import engines, openvino"],
        cwd=ROOT,
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["chek"],
        ["check", "--fast"],
        ["--log-level", "loud", "check"],
        ["view", "tcp://127.0.0.1:1", "Pier/1"],
        ["record", "tcp://127.0.0.1:1", "Pier/1", "missing"],
    ],
    ids=" ".join,
)
def test_wrong_use_ends_with_2_and_no_traceback(words: list[str]) -> None:
    done = nightbridge(ROOT, *words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_the_version_is_told() -> None:
    assert nightbridge(ROOT, "--version").stdout.startswith("nightbridge")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (SourceLost("udp://:5000 went away"), 1, "udp://:5000 went away"),
        (EngineMissing("no GPU"), 1, "no GPU"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), 1, "a.png: No such file or directory"),
        (SettingsError("[a] b is 1"), 2, "[a] b is 1"),
    ],
)
def test_an_error_is_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int, line: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(app, "app", fail)
    monkeypatch.setattr(fallback, "is_left_behind", lambda: False)  # threads of other tests hang in theirs for ever
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == code
    assert capsys.readouterr() == ("", f"nightbridge: {line}\n")


def test_the_name_of_a_file_that_is_no_utf_8_is_printed_as_it_is(tmp_path: Path) -> None:
    name = b"night\xff.png"
    program = f"from tools import app; app.app = lambda: print({os.fsdecode(name)!r}); app.main()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, name + b"\n", b"")


def test_the_log_level_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    done = nightbridge(tmp_path, "--log-level", "debug", "check")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("nightbridge: config.toml: No such file or directory\n")


def test_the_log_level_is_stronger_than_the_settings() -> None:
    assert 'log_level = "error"' in nightbridge(ROOT, "--log-level", "error", "check").stdout


LEFT = """
import atexit, sys, threading, time
from engines import fallback
from tests.fake_engine import Fake
from tools import app

def command():
    if sys.argv[1] == "named":
        with Fake("tensorrt") as engine:
            engine.gate.clear()
            threading.Thread(target=engine.acquire, args=(32, 32), daemon=True).start()
            engine.making.wait()
            sys.exit(3)
    openers = {"torch": lambda: time.sleep(99)} if sys.argv[1] == "busy" else {}
    with fallback.FallbackEngine(Fake("openvino"), openers):
        sys.exit(3)

fallback.EXIT_SECONDS = 0.1
atexit.register(print, "ended as usual")
app.app = command
app.main()
"""
"""A command whose GPU is still being opened at its end, or made ready by who uses it, or not."""


@pytest.mark.parametrize("state", ["busy", "named", "idle"])
def test_a_library_that_cannot_be_interrupted_sees_no_interpreter_end(state: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEFT, state], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout == ("ended as usual\n" if state == "idle" else "")
    assert ("and was abandoned" in done.stderr) == (state == "busy")


ENDED = """
import os, signal, threading
from tools import app

def command():
    try:
        print("under way", flush=True)
        threading.Event().wait()
    finally:
        os.kill(os.getpid(), signal.SIGHUP)  # again, as where a terminal is closed
        print("cleared up", flush=True)

app.app = command
app.main()
"""


def ended_by(starter: list[str], *numbers: signal.Signals, program: str = ENDED) -> tuple[int, str]:
    """How the command ends to which these signals are sent, and what it prints meanwhile."""
    words = [*starter, sys.executable, "-c", program]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "under way\n"
            for number in numbers:
                process.send_signal(number)
            printed, _ = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
    return process.returncode, printed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_clears_up_at_a_signal_and_ends_by_it(number: signal.Signals) -> None:
    assert ended_by([], number) == (-number, "cleared up\n")


def test_a_command_that_is_started_by_nohup_outlives_its_terminal() -> None:
    assert ended_by(["nohup"], signal.SIGHUP, signal.SIGTERM) == (-signal.SIGTERM, "cleared up\n")


STOPPED = """
import signal, threading
from tools.common.signals import stop_on_signals

stop = threading.Event()
with stop_on_signals(stop.set):
    print("under way", flush=True)
    stop.wait()
    print("deaf to SIGHUP:", signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)
"""


@pytest.mark.parametrize(
    ("starter", "numbers", "printed"),
    [
        ([], [signal.SIGHUP], "deaf to SIGHUP: False\n"),
        (["nohup"], [signal.SIGHUP, signal.SIGTERM], "deaf to SIGHUP: True\n"),
    ],
    ids=["usual", "nohup"],
)
def test_a_command_that_is_stopped_by_signals_is_so_by_the_end_of_its_terminal_unless_nohup_started_it(
    starter: list[str], numbers: list[signal.Signals], printed: str
) -> None:
    assert ended_by(starter, *numbers, program=STOPPED) == (0, printed)


BAR = """
import logging, sys
from rich.console import Console
from rich.progress import Progress
from tools import app

@app.app.command()
def work(where: str):
    with Progress(console=Console(stderr=where == "stderr")) as bar:
        bar.add_task("working", total=9)
        logging.error("a line")

app.main()
"""


def with_a_bar(where: str) -> tuple[list[str], str]:
    """The lines on the terminal of a command that logs while a bar is there, and what came to stderr elsewhere."""
    terminal, its_end = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", BAR, "work", where],
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
        stdout=its_end,
        stderr=its_end if where == "stderr" else subprocess.PIPE,
        text=True,
    ) as program:
        os.close(its_end)
        shown = b""
        try:
            while chunk := os.read(terminal, 4096):
                shown += chunk
        except OSError:  # how a terminal ends on Linux
            os.close(terminal)
        elsewhere = program.stderr.read() if program.stderr else ""
    assert program.returncode == 0
    assert b"working" in shown
    return shown.decode().split("\r\n"), elsewhere


LINE = re.compile(r"[-0-9]+ [:,0-9]+ ERROR   a line")


def test_a_line_of_the_log_stands_above_the_bar() -> None:
    lines, _ = with_a_bar("stderr")
    [line] = [line.rpartition("\x1b[2K")[2] for line in lines if "a line" in line]  # that wipes out what was there
    assert LINE.fullmatch(line)


def test_a_log_that_goes_elsewhere_than_the_bar_stays_there() -> None:
    lines, elsewhere = with_a_bar("stdout")
    assert not any("a line" in line for line in lines)
    assert LINE.fullmatch(elsewhere.rstrip("\n"))


def test_a_log_without_an_end_to_go_to_stops_nobody() -> None:
    program = "import logging; from tools.app import OnStderr; logging.basicConfig(handlers=[OnStderr()]); "
    program += "logging.error('a line'); print('goes on')"
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "goes on\n")
