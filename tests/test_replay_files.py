"""`nightbridge replay --to` as its users have it: processes, kills, files."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from stream.files import convert
from stream.files.join import join
from stream.files.parts import Parts
from stream.settings import load_settings
from tests.clips import make_clip
from tests.command import ROOT
from tests.converting import headless, with_sound
from tests.doubling import DoublingEngine
from tests.replaying import COMMAND, finished, names, numbers, packets, replay, result
from tools.app import app
from tools.replay_files import Job, file_jobs, to_files


@pytest.fixture
def mission(tmp_path: Path) -> Path:
    """400 pictures with sound and KLV."""
    clip = make_clip(tmp_path / "clip.ts", pictures=400, size=(96, 80), b_frames=2, klv=True)
    return with_sound(clip, tmp_path / "mission.ts", "mp2")


def test_what_was_killed_goes_on_where_it_was_and_the_file_is_whole(tmp_path: Path, mission: Path) -> None:
    out, parts = tmp_path / "out" / "mission.ts", tmp_path / "out" / ".part-mission.ts"
    words = (mission, "--to", "out", "--json", "done.json")
    with replay(tmp_path, *words, pictures=300) as first:
        first.waits_for(lambda: (parts / "000001.nut").exists(), "the second part")
        first.waits_for(lambda: (parts / "growing.nut").exists(), "the third part")
        first.process.send_signal(signal.SIGKILL)
        first.code()
    assert not out.exists()
    second = finished(tmp_path, *words, pictures=150)  # which is enough for the rest alone
    assert second.code() == 0, second.said
    assert "resuming after 250 pictures" in second.said
    assert result(tmp_path)["files"][0]["pictures"] == 400
    assert names(tmp_path / "out") == ["mission.ts"]
    assert numbers(out) == list(range(400))
    for kind in ("audio", "data"):
        assert packets(out, kind) == packets(mission, kind)
    assert len(packets(out, "data")) == 400
    assert [time for time, _ in sorted(packets(out, "video"))] == [
        time for time, _ in sorted(packets(mission, "video"))
    ]
    again = finished(tmp_path, *words, pictures=0)
    assert (again.code(), result(tmp_path)["files"][0]["state"]) == (0, "there already")


def test_a_signal_keeps_all_that_is_done(tmp_path: Path, mission: Path) -> None:
    words = (mission, "--to", "out.mkv", "--json", "done.json")
    with replay(tmp_path, *words, seconds=0.01) as first:
        first.waits_for((tmp_path / ".part-out.mkv" / "growing.nut").exists, "the first part")
        first.process.send_signal(signal.SIGTERM)
        assert first.code() == 1
    assert "run the same command again to resume" in first.said
    assert "Traceback" not in first.said
    [stopped] = result(tmp_path)["files"]
    assert stopped["state"] == "stopped"
    assert not (tmp_path / "out.mkv").exists()
    second = finished(tmp_path, *words, pictures=400 - stopped["pictures"])
    assert second.code() == 0, second.said
    assert result(tmp_path)["files"][0]["resumed"] == stopped["pictures"]
    assert numbers(tmp_path / "out.mkv") == list(range(400))
    assert "the data is left out" in second.said


def test_a_folder_becomes_files_of_the_same_names_and_a_bad_one_spoils_no_other(tmp_path: Path) -> None:
    missions = tmp_path / "missions"
    missions.mkdir()
    for name in ("a.mp4", "b.m2ts", "d.avi"):
        make_clip(missions / name, pictures=8, size=(96, 80), codec="mpeg4" if name == "d.avi" else "libx264")
    (missions / "c.mkv").write_bytes(b"no recording")
    (missions / "notes.txt").write_text("no recording")
    done = finished(tmp_path, "missions", "--to", "out", "--json", "done.json")
    assert done.code() == 1
    assert "c.mkv: Invalid data found" in done.said
    assert "24 pictures; of 4 recordings 3 done, 1 failed" in done.said
    assert names(tmp_path / "out") == ["a.mp4", "b.m2ts", "d.mkv"]
    assert [numbers(tmp_path / "out" / name) for name in ("a.mp4", "b.m2ts", "d.mkv")] == [list(range(8))] * 3
    states = [outcome["state"] for outcome in result(tmp_path)["files"]]
    assert (states, result(tmp_path)["complete"]) == (["done", "done", "failed", "done"], False)


def test_a_file_that_cannot_be_written_spoils_no_other(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        make_clip(tmp_path / name, pictures=8, size=(96, 80))
    (tmp_path / "out" / "a.mp4").mkdir(parents=True)
    done = finished(tmp_path, "a.mp4", "b.mp4", "--to", "out", "--json", "done.json")
    assert done.code() == 1
    assert "a.mp4 to out/a.mp4: Is a directory" in done.said
    assert "of 2 recordings 1 done, 1 failed" in done.said
    assert [outcome["state"] for outcome in result(tmp_path)["files"]] == ["failed", "done"]
    assert numbers(tmp_path / "out" / "b.mp4") == list(range(8))


def test_a_recording_that_the_engine_fails_on_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make_clip(tmp_path / "a.mp4", pictures=3, size=(96, 80))
    monkeypatch.setattr("engines.runtime.open_engine", lambda *_: DoublingEngine(failures=1))
    [outcome] = cast(
        "list[dict[str, str]]", to_files(load_settings(None), file_jobs([clip], tmp_path / "out"), False)["files"]
    )
    assert outcome["reason"] == f"{clip} to {tmp_path}/out/a.mp4: a failure on purpose"


def to_new_folder(files: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """What becomes of recordings that are to be files of a folder."""
    monkeypatch.setattr("engines.runtime.open_engine", lambda *_: DoublingEngine())
    return cast("list[dict[str, object]]", to_files(load_settings(None), file_jobs(files, folder), False)["files"])


def test_access_units_that_gave_no_picture_are_told_of_all_recordings_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=12, size=(96, 80), key_interval=5)
    files = [headless(clip, tmp_path / name) for name in ("a.mp4", "b.mp4")]
    assert [outcome["lost"] for outcome in to_new_folder([*files, clip], tmp_path / "out", monkeypatch)] == [4, 4, 0]
    assert capsys.readouterr().out == ("26 pictures; of 3 recordings 3 done; 8 access units gave no picture\n")


def test_a_recording_that_cannot_be_read_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no recording")
    [outcome] = to_new_folder([tmp_path / "a.mp4"], tmp_path / "new" / "out", monkeypatch)
    assert outcome["state"] == "failed"
    assert names(tmp_path) == ["a.mp4"]


def test_a_finished_file_is_made_anew_where_its_recording_is_newer_or_somebody_says_so(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=5, size=(96, 80))
    words = ("clip.mp4", "--to", "out", "--json", "done.json")
    states = []
    for further in ((), (), ("--from-start",)):
        finished(tmp_path, *words, *further)
        states.append(result(tmp_path)["files"][0]["state"])
    out = tmp_path / "out" / "clip.mp4"
    os.utime(clip, ns=(0, out.stat().st_mtime_ns + 3_000_000_000))  # more than any file system rounds
    finished(tmp_path, *words)
    states.append(result(tmp_path)["files"][0]["state"])
    assert states == ["done", "there already", "done", "done"]


@pytest.mark.parametrize("name", ["bright.wmv", "bright.FLV", "bright.mov"])
def test_a_place_that_ends_like_a_video_that_can_be_written_is_a_file(name: str, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", pictures=2, size=(96, 80))
    assert [job.target for job in file_jobs([clip], tmp_path / name)] == [tmp_path / name]


def test_a_recording_that_grew_while_its_file_was_made_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = make_clip(tmp_path / "whole.ts", pictures=30, size=(96, 80)).read_bytes()
    source = tmp_path / "grows.ts"
    source.write_bytes(content[: len(content) // 2 // 188 * 188])
    os.utime(source, (1e9, 1e9))

    def join_and_grow(*arguments: Any) -> None:
        join(*arguments)
        source.write_bytes(content)

    monkeypatch.setattr(convert, "join", join_and_grow)
    [grown] = to_new_folder([source], tmp_path / "out", monkeypatch)
    monkeypatch.setattr(convert, "join", join)
    whole, again = (to_new_folder([source], tmp_path / "out", monkeypatch)[0] for _ in range(2))
    assert (grown["state"], whole["state"], again["state"]) == ("done", "done", "there already")
    assert numbers(tmp_path / "out" / "grows.ts") == list(range(30))


def test_a_file_is_finished_as_soon_as_its_parts_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill just then costs no second work."""
    source = make_clip(tmp_path / "clip.mp4", pictures=5, size=(96, 80))
    os.utime(source, (1e9, 1e9))
    [job] = file_jobs([source], tmp_path / "out")
    leave = Parts.__exit__
    seen = []

    def leave_and_look(parts: Parts, *why: Any) -> None:
        leave(parts, *why)
        seen.append(job.finished)

    monkeypatch.setattr(Parts, "__exit__", leave_and_look)
    to_new_folder([source], tmp_path / "out", monkeypatch)
    assert seen == [True]


def test_a_file_system_that_keeps_no_times_costs_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = make_clip(tmp_path / "clip.mp4", pictures=5, size=(96, 80))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    [outcome] = to_new_folder([source], tmp_path / "out", monkeypatch)
    assert outcome["state"] == "done"
    told = (
        f"cannot give {tmp_path / 'out' / 'clip.mp4'} the modification time of its recording: Operation not permitted"
    )
    assert told in caplog.messages
    assert numbers(tmp_path / "out" / "clip.mp4") == list(range(5))


def test_another_recording_of_the_same_name_is_not_there_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_clip(tmp_path / "clip.mp4", pictures=5, size=(96, 80))
    to_new_folder([source], tmp_path / "out", monkeypatch)
    make_clip(source, pictures=8, size=(96, 80))
    os.utime(source, (1e9, 1e9))
    [other] = to_new_folder([source], tmp_path / "out", monkeypatch)
    assert (other["state"], other["pictures"]) == ("done", 8)


@pytest.mark.parametrize(
    ("kept_ns", "finished"),
    [(1_234_567_891_234_567_800, True), (1_234_567_890_000_000_000, True), (1_234_567_891_234_567_000, False)],
)
def test_a_file_is_there_already_also_where_its_file_system_keeps_no_nanoseconds(
    kept_ns: int, finished: bool, tmp_path: Path
) -> None:
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    for path, time_ns in ((source, 1_234_567_891_234_567_890), (target, kept_ns)):
        path.touch()
        os.utime(path, ns=(time_ns, time_ns))
    assert Job(source, target, 0).finished == finished


def test_a_file_of_a_recorder_whose_clock_is_ahead_is_made_once(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=5, size=(96, 80))
    os.utime(clip, (4e9, 4e9))
    states = []
    for _ in range(2):
        finished(tmp_path, "clip.mp4", "--to", "out", "--json", "done.json")
        states.append(result(tmp_path)["files"][0]["state"])
    assert states == ["done", "there already"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["missing.mp4"], "'missing.mp4' does not exist"),
        (["empty"], "empty: the folder holds no media files"),
        (["a.mp4", "--to", "a.mp4"], "a.mp4 is one of the recordings and would be overwritten"),
        (["in", "--to", "in"], "in/a.mp4 is one of the recordings and would be overwritten"),
        (["in/a.mp4", "in/b.mp4", "--to", "out.mkv"], "out.mkv is one file, and there are 2 recordings"),
        (["a.mp4", "in/a.mp4", "--to", "out"], "a.mp4 and in/a.mp4 would both become out/a.mp4"),
        (["a.mp4", "--to", "notes.txt"], "notes.txt is not a folder"),
        (["a.mp4", "--to", "new/y.webm"], "a video file cannot end in '.webm'; try .mp4 or .mkv"),
        (["a.mp4", "--to", "out", "--speed", "4"], "--to always converts as fast as possible"),
        (["a.mp4", "--speed", "fast"], "'fast'; must be a number from 0.01 to 100, or max"),
        (["a.mp4", "--speed", "nan"], "'nan'; must be a number from 0.01 to 100, or max"),
        (["a.mp4", "--feed", "Pier/1"], "'--feed': 'Pier/1'; must be 1 to 64 of a-z, 0-9, _ and -"),
        (["a.mp4", "--endpoint", "5560"], "'5560'; must be an endpoint such as"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_wrong_use_is_told_and_nothing_is_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    words: list[str],
    reason: str,
) -> None:
    caplog.set_level(logging.INFO)  # which the command changes, and pytest sets back
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for folder in ("in", "empty"):
        (tmp_path / folder).mkdir()
    for name in ("a.mp4", "in/a.mp4", "in/b.mp4"):
        make_clip(tmp_path / name, pictures=2, size=(96, 80))
    (tmp_path / "notes.txt").write_text("no folder")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    done = CliRunner().invoke(app, ["replay", *words])
    assert done.exit_code == 2
    assert reason in done.stderr
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_a_terminal_shows_how_far_all_recordings_are(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        make_clip(tmp_path / name, pictures=30, size=(96, 80))
    terminal, its_end = os.openpty()
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "replay", "a.mp4", "b.mp4", "--to", "out"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PICTURES": "60", "SECONDS": "0.02", "TERM": "xterm"},
        stdout=subprocess.DEVNULL,
        stderr=its_end,
    )
    os.close(its_end)
    deadline = threading.Timer(30, command.kill)
    deadline.start()
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:  # how a terminal ends on Linux
        pass
    deadline.cancel()
    os.close(terminal)
    assert command.wait() == 0
    assert b"a.mp4" in shown
    assert b"b.mp4" in shown
    assert b" pictures" in shown
