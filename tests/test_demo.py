from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from engines.colour import Colour
from stream.encode import Encoder
from stream.errors import StreamError
from stream.frame import plane_view
from stream.settings import EncoderSettings
from stream.wire.messages import Kind, Message, Stamped
from tests.clips import make_clip
from tests.command import ROOT
from tests.waiting import wait_until
from tools import demo_parts
from tools.demo import CLIP, demo
from tools.demo_parts import CommandProcess
from tools.demo_pictures import Pairs, as_rgb, compare, enlarged, side_by_side

LONGEST = 90.0
"""Seconds that a demo of 3 s may take on a busy machine."""


class Demo:
    """A `nightbridge demo` in a session of its own, which no process of it can leave."""

    def __init__(self, folder: Path, *words: str, **environment: str) -> None:
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tools", "demo", *words],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.scratch)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def members(self) -> set[int]:
        """Its processes that are alive, itself included."""
        return {pid for pid, (_, session) in processes().items() if session == self.process.pid}

    def left_behind(self) -> list[object]:
        """Processes and files that are there after its end."""
        return [*self.members(), *self.scratch.iterdir()]

    def finish(self) -> tuple[int, str, str]:
        """Exit code, output and errors, once it has ended."""
        output, errors = self.process.communicate(timeout=LONGEST)
        return self.process.returncode, output, errors


@contextmanager
def running_demo(folder: Path, *words: str, **environment: str) -> Iterator[Demo]:
    """A demo of which nothing is left after the block, whatever happens."""
    demo = Demo(folder, *words, **environment)
    try:
        yield demo
    finally:
        for pid in demo.members():
            os.kill(pid, signal.SIGKILL)
        demo.process.communicate()


def processes() -> dict[int, tuple[int, int]]:
    """Parent and session of every process that has not ended."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, _, session = entry.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            found[int(entry.parent.name)] = int(parent), int(session)
    return found


def children() -> set[int]:
    """Processes that this one has begun and that have not ended."""
    return {pid for pid, (parent, _) in processes().items() if parent == os.getpid()}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[object]]:
    """Folder, output and leftovers of a demo, whose user has settings for another relay in the environment."""
    folder = tmp_path_factory.mktemp("demo")
    with running_demo(
        folder, "--seconds", "3", "--json", "figures.json", NIGHTBRIDGE__RELAY__ENDPOINT="tcp://nowhere.invalid:1"
    ) as demo:
        code, output, errors = demo.finish()
        assert (code, errors) == (0, "")
        return folder, output, demo.left_behind()


def test_the_demo_makes_a_dark_feed_at_least_5_db_better(shown: tuple[Path, str, list[object]]) -> None:
    figures = json.loads((shown[0] / "figures.json").read_text())
    assert figures["psnr_out_db"] > figures["psnr_in_db"] + 5
    assert figures["frames_published"] > 25
    assert figures["pictures_compared"] > 3
    assert 0 < figures["age_p50_ms"] <= figures["age_p95_ms"] < 1500
    assert figures["view_age_p50_ms"] > figures["age_p50_ms"]
    assert 0 < figures["first_picture_s"] < LONGEST
    assert 5 < figures["rate_fps"] < 40


def test_the_demo_tells_rate_age_and_quality_in_plain_lines(shown: tuple[Path, str, list[object]]) -> None:
    head, *lines = shown[1].splitlines()
    assert head.startswith("Nightbridge demo: ")
    assert [line.split()[0] for line in lines] == ["started", "rate", "age", "PSNR", "picture"]
    assert "\x1b" not in shown[1]


def test_the_picture_shows_dark_and_bright_side_by_side(shown: tuple[Path, str, list[object]]) -> None:
    with Image.open(shown[0] / "demo.png") as sheet:
        assert sheet.size == (1280, 512)
        assert "danielbuechele" in sheet.info["Copyright"]
        pixels = np.asarray(sheet, float)
    before, after = pixels[32:, :640], pixels[32:, 640:]
    assert before.mean() < 50
    assert after.mean() > 80
    assert np.corrcoef(before.mean(2).ravel(), after.mean(2).ravel())[0, 1] > 0.8
    assert all(pixels[:32, left : left + 300].max() > 200 for left in (0, 640))


def test_the_demo_leaves_nothing_behind(shown: tuple[Path, str, list[object]]) -> None:
    assert shown[2] == []
    assert {path.name for path in shown[0].iterdir()} == {"demo.png", "figures.json", "scratch"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_all_is_starting_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    with running_demo(tmp_path) as demo:
        wait_until(lambda: len(demo.members()) == 3, "the start of camera and relay")
        demo.process.send_signal(number)
        code, _, errors = demo.finish()
        assert (code, errors) == (1, "nightbridge: stopped before there were pictures to compare\n")
        assert demo.left_behind() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_control_c_or_a_closed_terminal_while_watching_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals
) -> None:
    with running_demo(tmp_path, "--seconds", "60") as demo:
        assert demo.process.stdout is not None
        while not demo.process.stdout.readline().startswith("started"):
            assert demo.process.poll() is None
        os.killpg(demo.process.pid, number)  # a terminal sends it to all of them
        _, _, errors = demo.finish()
        assert "Traceback" not in errors
        assert demo.left_behind() == []


def test_a_relay_that_fails_is_one_clear_error(tmp_path: Path) -> None:
    with running_demo(tmp_path, NIGHTBRIDGE__ENGINE__WEIGHTS="nowhere") as demo:
        code, _, errors = demo.finish()
        assert code == 1
        assert errors.startswith("nightbridge: the relay ended unexpectedly with exit code 2\n")
        assert 'WEIGHTS is "nowhere"; it must be one of field, field-lite, paper, or a folder of weights' in errors
        assert "Traceback" not in errors
        assert demo.left_behind() == []


def test_a_process_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_parts, "STOP_SECONDS", 0.1)
    before = children()
    with CommandProcess("camera", tmp_path, "simulate", str(CLIP), "udp://127.0.0.1:9", "--loop", "--seconds", "60"):
        (child,) = children() - before
        os.kill(child, signal.SIGSTOP)
    assert child not in processes()


def test_a_process_that_has_ended_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    before = children()
    with CommandProcess("camera", tmp_path, "simulate", "gone.mp4", "udp://127.0.0.1:9") as camera:
        wait_until(lambda: "gone.mp4" in camera.last_words(), "a complaint about the clip")
        (tmp_path / "camera.log").write_text("nightbridge: first\nsecond\n")
        wait_until(lambda: children() <= before, "its end")
        with pytest.raises(
            StreamError, match=r"^the camera ended unexpectedly with exit code 2\n  camera: first\n  camera: second"
        ):
            camera.check()


def test_a_folder_that_may_not_be_written_to_is_told_before_anything_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(StreamError, match=f"demo.png cannot be written into {tmp_path}"):
        demo()


def test_a_free_port_can_be_used() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as used:
        used.bind(("127.0.0.1", demo_parts.free_port(socket.SOCK_DGRAM)))


class Link:
    """Encodes pictures of a clip as camera and relay do, into messages."""

    def __init__(self, kind: Kind, width: int, height: int) -> None:
        self._kind: Kind = kind
        self._size = width, height
        settings = EncoderSettings(bit_rate=20_000_000)
        self._encoder = Encoder(settings, width, height, Colour(), Fraction(1, 90000), Fraction(25))

    def message(self, frame: av.VideoFrame, number: int) -> Message:
        """Picture `number` of the camera."""
        picture = frame.reformat(*self._size, format="yuv420p")
        planes = [plane_view(plane) for plane in picture.planes]
        (unit,) = self._encoder.encode(planes[0], planes[1], planes[2], number * 3600)
        common: dict[str, Any] = {"v": 1, "relay": "run", "feed": "demo", "seq": number, "published_ns": 0}
        header = Stamped(codec="h264", key=unit.key, pts=unit.pts, time_base=unit.time_base, **common)
        return Message(self._kind, header, unit.payload)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[av.VideoFrame]]:
    """A clip of 23 pictures, and what is on them."""
    path = make_clip(tmp_path_factory.mktemp("clips") / "numbers.mp4", pictures=23, bit_rate=4_000_000, matrix="bt601")
    with av.open(path) as container:
        return path, list(container.decode(video=0))


def paired(frames: list[av.VideoFrame], first: int, last: int, dropped: set[int]) -> Pairs:
    """What a viewer pairs that comes with picture `first` of a clip that is played again and again."""
    camera, relay, pairs = Link("source", 80, 60), Link("video", 160, 120), Pairs(Fraction(25))
    late: list[Message] = []
    for number in range(first, last):
        frame = frames[number % len(frames)]
        pairs.add(camera.message(frame, number))
        late += [] if number in dropped else [relay.message(frame, number)]
        while len(late) > 3:
            pairs.add(late.pop(0))
    return pairs


def test_a_viewer_that_comes_late_pairs_the_same_moments(clip: tuple[Path, list[av.VideoFrame]]) -> None:
    pairs = paired(clip[1], 33, 75, {50}).found
    assert [pair.number for pair in pairs] == [35, 40, 45, 55, 60, 65, 70]
    assert {(pair.camera.width, pair.relay.width) for pair in pairs} == {(80, 160)}


def test_pictures_are_compared_with_the_clip_as_it_was_played(clip: tuple[Path, list[av.VideoFrame]]) -> None:
    path, frames = clip
    before, after = compare(path, paired(frames, 33, 75, set()).found)
    assert before < after
    assert after > 35
    assert compare(path, paired(frames[1:] + frames[:1], 33, 75, set()).found)[1] < 30


def test_a_long_demo_keeps_few_pictures(
    clip: tuple[Path, list[av.VideoFrame]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.demo_pictures.MOST_PAIRS", 4)
    assert [pair.number for pair in paired(clip[1], 0, 60, set()).found] == [0, 5, 10, 15]


def test_side_by_side_is_the_enlarged_picture_and_the_relays(clip: tuple[Path, list[av.VideoFrame]]) -> None:
    pair = paired(clip[1], 0, 12, set()).found[0]
    sheet = np.asarray(side_by_side(pair, "before", "after"))
    assert sheet.shape == (32 + 120, 320, 3)
    np.testing.assert_array_equal(sheet[32:, :160], np.asarray(enlarged(pair.camera, 160, 120)))
    np.testing.assert_array_equal(sheet[32:, 160:], as_rgb(pair.relay))
