from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from engines.colour import CENTRE, Colour, to_planes, to_rgb
from stream.codecs.plain import colour_of, is_neutral
from stream.errors import CodecError, SourceUnsupported
from stream.files import part_writer
from stream.files.convert import convert
from stream.files.recolour import recoloured
from stream.frame import plane_view
from tests.clips import joined, make_clip, read_number, read_patches
from tests.converting import stopped_after, with_sound
from tests.doubling import DoublingEngine
from tests.replaying import numbers
from tests.waiting import wait_until


def test_a_video_comes_out_doubled_with_its_times_its_matrix_and_its_sound(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=30, matrix="bt709", full_range=True, b_frames=2)
    source = with_sound(clip, tmp_path / "sound.mp4")
    seen: list[int] = []
    with DoublingEngine() as engine:
        assert convert(engine, source, tmp_path / "out.mkv", lambda now: seen.append(now.pictures)).pictures == 30
    assert seen == list(range(1, 31))
    with av.open(tmp_path / "out.mkv") as out, av.open(source) as before:
        frames = list(out.decode(video=0))
        assert [read_number(frame.to_ndarray()[:240].astype(np.uint8)) for frame in frames] == list(range(30))
        times = [[frame.time or 0 for frame in video] for video in (frames, before.decode(video=0))]
        after, expected = ([time - video[0] for time in video] for video in times)
        assert after == pytest.approx(expected, abs=0.002)
        assert (frames[0].width, frames[0].colorspace, frames[0].color_range) == (320, 1, 2)
    with av.open(tmp_path / "out.mkv") as out, av.open(source) as before:
        sound = [bytes(packet) for packet in out.demux(audio=0) if packet.size]
        assert sound == [bytes(packet) for packet in before.demux(audio=0) if packet.size]


def test_a_recording_whose_name_is_no_utf_8_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_writer, "PART_PICTURES", 10)
    source = make_clip(tmp_path / "clip.mp4", pictures=25).rename(tmp_path / os.fsdecode(b"night\xff.mp4"))
    target = tmp_path / os.fsdecode(b"bright\xff.mp4")
    assert not stopped_after(15, source, target).complete
    with DoublingEngine() as engine:
        assert convert(engine, source, target, lambda _: None).resumed >= 10
    assert target.is_file()


def test_a_file_that_cannot_be_written_is_told_by_name(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=3)
    (tmp_path / "out.mp4").mkdir()
    with DoublingEngine() as engine, pytest.raises(CodecError, match=r"clip\.mp4 to .*out\.mp4: Is a directory"):
        convert(engine, clip, tmp_path / "out.mp4", lambda _: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "out.mp4"]


@pytest.mark.parametrize("suffix", [".avi", ".flv", ".m2ts", ".m4v", ".mov", ".wmv", ".3gp"])
def test_a_file_plays_whatever_suffix_it_may_have(suffix: str, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=30, size=(160, 80))
    with DoublingEngine() as engine:
        convert(engine, clip, tmp_path / f"out{suffix}", lambda _: None)
    assert numbers(tmp_path / f"out{suffix}") == list(range(30))


@pytest.mark.parametrize("name", ["out.webm", "out.gif", "out.mp3", "out.png", "out", "out.mpg", "out.vob", "out.yuv"])
def test_a_file_that_cannot_hold_the_video_is_refused_by_its_ending(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = with_sound(make_clip(tmp_path / "clip.mp4", pictures=2), tmp_path / "sound.mp4")
    with DoublingEngine() as engine, pytest.raises(CodecError, match=f"end in '{Path(name).suffix}'; try .mp4 or .mkv"):
        convert(engine, source, tmp_path / name, lambda _: None)
    assert not (tmp_path / name).exists()
    assert not caplog.messages


def test_a_recording_whose_pictures_change_their_size_is_refused(tmp_path: Path) -> None:
    parts = [make_clip(tmp_path / f"{size[0]}.ts", pictures=3, size=size) for size in ((160, 120), (176, 144))]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    with (
        DoublingEngine() as engine,
        pytest.raises(SourceUnsupported, match=r"both\.ts: .* to 176x144; a file can hold only one size"),
    ):
        convert(engine, tmp_path / "both.ts", tmp_path / "out.mp4", lambda _: None)
    assert not (tmp_path / "out.mp4").exists()


def rgb_of_patches(frame: av.VideoFrame) -> np.ndarray:
    """(4, 3): mean R, G and B of the patches, 0 to 255, as a player shows them."""
    y, u, v = (plane_view(plane) for plane in frame.planes)
    matrix = colour_of(frame).coefficients()[0]
    return np.clip(255 * ((read_patches(y, u, v) - CENTRE) @ matrix[:, :3].T + matrix[:, 3]), 0, 255)


def before_and_after(source: Path, target: Path) -> tuple[list[av.VideoFrame], ...]:
    """The pictures of a recording, and those of the file that becomes of it."""
    with DoublingEngine() as engine:
        convert(engine, source, target, lambda _: None)
    with av.open(source) as before, av.open(target) as out:
        return list(before.decode(video=0)), list(out.decode(video=0))


KINDS: list[dict[str, Any]] = [{"matrix": "bt601", "full_range": False}, {"matrix": "bt709", "full_range": True}]


@pytest.mark.parametrize("kinds", [KINDS, KINDS[::-1]], ids=["to full", "to limited"])
def test_a_recording_whose_colour_changes_is_shown_in_its_own_colours_throughout(
    tmp_path: Path, kinds: list[dict[str, Any]]
) -> None:
    halves = [make_clip(tmp_path / f"{number}.ts", pictures=10, **kind) for number, kind in enumerate(kinds)]
    source = joined(tmp_path / "both.ts", *halves)
    recorded, made = before_and_after(source, tmp_path / "out.mp4")
    assert len({colour_of(frame) for frame in recorded}) == 2
    assert {colour_of(frame) for frame in made} == {Colour(**kinds[0])}
    for frame, enhanced in zip(recorded, made, strict=True):
        assert rgb_of_patches(enhanced) == pytest.approx(rgb_of_patches(frame), abs=5)


def test_infrared_pictures_stay_without_colour_where_the_colour_changes(tmp_path: Path) -> None:
    halves = [make_clip(tmp_path / f"{n}.ts", pictures=5, grey=range(5), **kind) for n, kind in enumerate(KINDS)]
    recorded, made = before_and_after(joined(tmp_path / "both.ts", *halves), tmp_path / "out.mp4")
    for frame, enhanced in zip(recorded, made, strict=True):
        assert is_neutral(enhanced)
        assert rgb_of_patches(enhanced) == pytest.approx(rgb_of_patches(frame), abs=5)


COLOURS = [Colour(matrix, full_range) for matrix in ("bt601", "bt709") for full_range in (False, True)]


@pytest.mark.parametrize(("colour", "wanted"), [pair for pair in product(COLOURS, COLOURS) if pair[0] != pair[1]])
def test_recoloured_pictures_mean_the_same_and_grey_has_no_colour_at_all(colour: Colour, wanted: Colour) -> None:
    squares = np.random.default_rng(3).integers(0, 256, (6, 8, 3), np.uint8)
    y, uv = to_planes(squares.repeat(8, 0).repeat(8, 1), colour)
    before, after = (
        to_rgb(*planes).astype(int) for planes in ((y, uv, colour), (*recoloured(y, uv, colour, wanted), wanted))
    )
    assert np.abs(after - before).max() <= 3
    assert (recoloured(y, np.full_like(uv, 128), colour, wanted)[1] == 128).all()


# Going on


def test_the_engine_works_on_pictures_while_others_are_encoded_and_decoded(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", pictures=10, size=(96, 80))
    pace = threading.Semaphore(0)
    with DoublingEngine(pace) as engine, ThreadPoolExecutor() as pool:
        done = pool.submit(convert, engine, source, tmp_path / "out.mp4", lambda _: None)
        wait_until(lambda: len(engine.batches) == 3, "three pictures in flight")
        pace.release(10)
        assert done.result().pictures == 10


@pytest.mark.parametrize("length", [247, 255])
def test_a_file_may_have_a_name_as_long_as_can_be(length: int, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=3)
    target = tmp_path / f"{'n' * (length - 4)}.mp4"
    with DoublingEngine() as engine:
        assert convert(engine, clip, target, lambda _: None).pictures == 3
    assert {path.name for path in tmp_path.iterdir()} == {clip.name, target.name}
