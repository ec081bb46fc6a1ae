"""`nightbridge enhance` as its users have it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from stream.files.parts import GROWING
from tests.clips import make_clip, read_number
from tests.command import ROOT, nightbridge
from tests.converting import headless, with_sound
from tests.waiting import wait_until
from tools.enhance import save as save_picture

Enhance = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def enhance(tmp_path: Path, cache: Path) -> Enhance:
    """The command, run in the test's own folder on a page that is wide enough for every message."""
    return lambda *words: nightbridge(tmp_path, "enhance", *words, XDG_CACHE_HOME=str(cache), COLUMNS="200")


def dusk(width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8: a dark gradient with a lit window."""
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.stack((6 + rows // 6, 8 + columns // 8, 12 + 0 * rows), axis=2)
    picture[height // 2 : height // 2 + 8, width // 3 : width // 3 + 6] = 90
    return picture.astype(np.uint8)


def save(path: Path, width: int = 64, height: int = 48) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(dusk(width, height)).save(path)
    return path


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_dark_picture_becomes_a_bright_one_of_twice_the_size(tmp_path: Path, enhance: Enhance) -> None:
    save(tmp_path / "dark.png")
    done = enhance("dark.png", "made/bright.png")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 picture to made/bright.png\n", "")
    with Image.open(tmp_path / "made" / "bright.png") as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (128, 96))
        assert np.asarray(picture).mean() > 1.5 * dusk(64, 48).mean()
    assert names(tmp_path / "made") == ["bright.png"]


@pytest.mark.parametrize("size", [(64, 48), (4100, 32)], ids=["at once", "in tiles"])
def test_a_picture_without_colour_stays_without(tmp_path: Path, enhance: Enhance, size: tuple[int, int]) -> None:
    Image.fromarray(dusk(*size)).convert("L").save(tmp_path / "infrared.png")
    assert enhance("infrared.png", "bright.png").returncode == 0
    with Image.open(tmp_path / "bright.png") as picture:
        assert np.ptp(np.asarray(picture), axis=2).max() == 0


def test_little_is_lost_in_a_jpeg_of_what_was_made(tmp_path: Path, enhance: Enhance) -> None:
    save(tmp_path / "dark.png")
    assert enhance("dark.png", "bright.jpg").returncode == 0
    with Image.open(tmp_path / "bright.jpg") as picture:
        assert picture.quantization[0][0] <= 2, "the coarsest steps of luma, 8 at Pillow's own quality"


def test_a_folder_becomes_png_files_of_the_same_names_whatever_their_kind_and_size(
    tmp_path: Path, enhance: Enhance
) -> None:
    sizes = {"a.png": (51, 37), "b.jpg": (64, 48), "c.webp": (33, 48), "D.PNG": (64, 17)}
    for name, size in sizes.items():
        save(tmp_path / "in" / name, *size)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    done = enhance("in", "out")
    assert (done.returncode, done.stdout, done.stderr) == (0, "4 pictures to out\n", "")
    assert names(tmp_path / "out") == ["D.png", "a.png", "b.png", "c.png"]
    for name, (width, height) in sizes.items():
        assert size_of(tmp_path / "out" / f"{Path(name).stem}.png") == (2 * width, 2 * height)


def test_a_name_may_be_as_long_as_can_be(tmp_path: Path, enhance: Enhance) -> None:
    name = "n" * 251 + ".png"
    save(tmp_path / "in" / name)
    done = enhance("in", "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert names(tmp_path / "out") == [name]


def test_two_commands_that_make_one_picture_at_once_leave_that_of_the_last_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "same.png"
    other = f"""
from pathlib import Path
from PIL import Image
from tools.enhance import save
save(Image.new("L", (8, 8)), Path({str(target)!r}))
"""

    class Slow(Image.Image):
        def save(self, path: Path, **_: object) -> None:  # type: ignore[override]
            content = save(tmp_path / "whole.png").read_bytes()
            with path.open("wb") as file:
                file.write(content[:100])
                file.flush()
                subprocess.run([sys.executable, "-c", other], cwd=ROOT, check=True)
                file.write(content[100:])

    save_picture(Slow(), target)
    assert target.read_bytes() == (tmp_path / "whole.png").read_bytes()
    assert names(tmp_path) == ["same.png", "whole.png"]


def test_a_folder_without_pictures_is_refused_by_name(tmp_path: Path, enhance: Enhance) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    done = enhance("in", "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert "in holds no pictures (.avif, .bmp, .jpeg, .jpg, .png, .tif, .tiff, .webp)" in done.stderr
    assert names(tmp_path) == ["in"]


def test_hidden_files_and_folders_are_not_taken_for_pictures(tmp_path: Path, enhance: Enhance) -> None:
    save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "._a.png").write_bytes(b"what a Mac leaves beside a file")
    (tmp_path / "in" / "more.png").mkdir()
    done = enhance("in", "out")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 picture to out/a.png\n", "")
    assert names(tmp_path / "out") == ["a.png"]


def test_two_pictures_of_one_name_are_refused_since_one_would_be_lost(tmp_path: Path, enhance: Enhance) -> None:
    save(tmp_path / "in" / "pier.jpg")
    save(tmp_path / "in" / "pier.png")
    done = enhance("in", "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert "in/pier.jpg and in/pier.png would both become out/pier.png" in done.stderr
    assert names(tmp_path) == ["in"]


def test_a_picture_that_the_folder_only_links_to_is_not_written_over(tmp_path: Path, enhance: Enhance) -> None:
    save(tmp_path / "out" / "pier.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "pier.png").symlink_to(tmp_path / "out" / "pier.png")
    before = (tmp_path / "out" / "pier.png").read_bytes()
    done = enhance("in", "out")
    assert done.returncode == 2
    assert "out/pier.png is one of IN's pictures and would be overwritten" in done.stderr
    assert (tmp_path / "out" / "pier.png").read_bytes() == before


def test_a_video_becomes_one_of_twice_the_size_with_all_pictures_and_its_sound(
    tmp_path: Path, enhance: Enhance
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=12, size=(96, 80))
    with_sound(clip, tmp_path / "in.mp4")
    done = enhance("in.mp4", "out.mp4")
    assert (done.returncode, done.stdout, done.stderr) == (0, "12 pictures to out.mp4\n", "")
    with av.open(tmp_path / "out.mp4") as out:
        pictures = [frame.to_ndarray() for frame in out.decode(video=0)]
        assert [(y.shape[1], y.shape[0] * 2 // 3) for y in pictures] == [(192, 160)] * 12
        assert [read_number(y[:160].astype(np.uint8)) for y in pictures] == list(range(12))
    with av.open(tmp_path / "out.mp4") as out, av.open(tmp_path / "in.mp4") as before:
        sound = [bytes(packet) for packet in out.demux(audio=0)]
        assert sound == [bytes(packet) for packet in before.demux(audio=0)]
    assert names(tmp_path) == ["clip.mp4", "in.mp4", "out.mp4"]


def test_unknown_weights_are_told_in_one_line_and_nothing_is_made(tmp_path: Path, enhance: Enhance) -> None:
    save(tmp_path / "in" / "a.png")
    done = enhance("in", "out", "--weights", "feild")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("nightbridge: no weights 'feild': give one of field")
    assert done.stderr.count("\n") == 1
    assert names(tmp_path) == ["in"]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [(b"no picture", "not a picture in a known format"), (None, "image file is truncated")],
    ids=["text", "cut off"],
)
def test_a_picture_that_cannot_be_read_is_named_and_the_others_are_made(
    tmp_path: Path, enhance: Enhance, broken: bytes | None, reason: str
) -> None:
    whole = save(tmp_path / "in" / "a.png").read_bytes()
    save(tmp_path / "in" / "c.png")
    (tmp_path / "in" / "b.png").write_bytes(broken or whole[: len(whole) // 2])
    done = enhance("in", "out")
    assert (done.returncode, done.stdout) == (1, "2 pictures to out\n")
    told, ending = done.stderr.splitlines()
    assert f"ERROR   in/b.png: {reason}" in told
    assert ending == "nightbridge: 1 of 3 pictures could not be enhanced"
    assert names(tmp_path / "out") == ["a.png", "c.png"]
    assert size_of(tmp_path / "out" / "c.png") == (128, 96)


def test_one_picture_that_cannot_be_read_is_told_in_one_line(tmp_path: Path, enhance: Enhance) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    done = enhance("a.png", "b.png")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "nightbridge: a.png: not a picture in a known format\n"


def test_an_ended_command_takes_its_half_written_files_along(tmp_path: Path, cache: Path) -> None:
    """SIGTERM, as from a service manager: the process still ends by it."""
    make_clip(tmp_path / "night.mp4", size=(640, 360), pictures=500)
    command = [sys.executable, "-m", "tools", "enhance", "night.mp4", "bright.mp4"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as program:
        wait_until(lambda: any((tmp_path / ".part-bright.mp4").glob(f"*{GROWING}*")), "the first part of the work")
        program.terminate()
    assert program.returncode == -signal.SIGTERM
    assert names(tmp_path) == ["night.mp4"]


def test_a_picture_that_the_engine_cannot_take_is_named_with_what_it_takes(tmp_path: Path, enhance: Enhance) -> None:
    save(tmp_path / "tiny.png", 8, 8)
    done = enhance("tiny.png", "out.png")
    assert done.returncode == 1
    reason = "a picture of 8x8; this engine takes 16x16 to 4096x4096"
    assert done.stderr == f"nightbridge: tiny.png to out.png: {reason}\n"
    assert names(tmp_path) == ["tiny.png"]


@pytest.mark.parametrize("out", ["out.xyz", "out", "out.mp4"])
def test_a_picture_cannot_become_a_file_of_another_kind(tmp_path: Path, enhance: Enhance, out: str) -> None:
    save(tmp_path / "dark.png")
    done = enhance("dark.png", out)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{out} is not a picture file; OUT must end in one of .avif, .bmp" in done.stderr
    assert names(tmp_path) == ["dark.png"]


@pytest.mark.parametrize("out", ["out.png", "new/out.webm", "out"])
def test_a_video_cannot_become_a_file_of_another_kind(tmp_path: Path, enhance: Enhance, out: str) -> None:
    make_clip(tmp_path / "clip.mp4", pictures=3)
    done = enhance("clip.mp4", out, "--weights", "feild")  # which the engine would complain of
    assert (done.returncode, done.stdout) == (2, "")
    assert f"a video file cannot end in '{Path(out).suffix}'; try .mp4 or .mkv" in done.stderr
    assert names(tmp_path) == ["clip.mp4"]


def test_access_units_that_gave_no_picture_are_told(tmp_path: Path, enhance: Enhance) -> None:
    headless(make_clip(tmp_path / "clip.mp4", pictures=12, size=(96, 80), key_interval=5), tmp_path / "in.mp4")
    done = enhance("in.mp4", "out.mp4")
    assert (done.returncode, done.stdout) == (0, "7 pictures to out.mp4; 4 access units gave no picture\n")


@pytest.mark.parametrize(("source", "out"), [("a.png", "new/b.png"), ("a.mp4", "new/more/b.mp4")])
def test_what_cannot_be_read_leaves_no_folder(tmp_path: Path, enhance: Enhance, source: str, out: str) -> None:
    (tmp_path / source).write_bytes(b"neither")
    done = enhance(source, out)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"nightbridge: {source}: ")
    assert names(tmp_path) == [source]


def test_one_file_cannot_become_a_folder(tmp_path: Path, enhance: Enhance) -> None:
    save(tmp_path / "dark.png")
    (tmp_path / "out").mkdir()
    done = enhance("dark.png", "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert "out is a folder; if IN is a file, OUT must be one too" in done.stderr


def test_a_folder_cannot_become_one_file(tmp_path: Path, enhance: Enhance) -> None:
    save(tmp_path / "in" / "a.png")
    (tmp_path / "notes.txt").write_text("no folder")
    done = enhance("in", "notes.txt")
    assert (done.returncode, done.stdout) == (2, "")
    assert "notes.txt is not a folder; if IN is a folder, OUT must be one too" in done.stderr


@pytest.mark.parametrize("kind", ["picture.png", "video.mp4", "folder"])
def test_what_goes_in_is_never_written_over(tmp_path: Path, enhance: Enhance, kind: str) -> None:
    save(tmp_path / "picture.png")
    make_clip(tmp_path / "video.mp4", pictures=3)
    inside = save(tmp_path / "folder" / "a.png")
    (tmp_path / "link").symlink_to(kind)
    files = [tmp_path / "picture.png", tmp_path / "video.mp4", inside]
    before = [file.read_bytes() for file in files]
    for out in (kind, "link"):
        done = enhance(kind, out)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{out} is the same file as IN" in done.stderr
    assert [file.read_bytes() for file in files] == before
    assert names(tmp_path / "folder") == ["a.png"]


@pytest.mark.parametrize("source", ["in", "clip.mp4"])
def test_a_terminal_shows_progress(tmp_path: Path, cache: Path, source: str) -> None:
    save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "b.png")
    make_clip(tmp_path / "clip.mp4", pictures=3)
    terminal, its_end = os.openpty()
    command = subprocess.Popen(
        [sys.executable, "-m", "tools", "enhance", source, "out.mkv"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache), "TERM": "xterm"},
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
    assert b"enhancing" in shown
