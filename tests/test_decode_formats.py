from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any, Literal

import av
import numpy as np
import pytest

from engines.colour import CENTRE, Colour
from stream.codecs.plain import PlainPictures, colour_of
from tests.clips import (
    PATCHES,
    combing,
    make_clip,
    read_patches,
)
from tests.decoding import Decoded

# Shape of pixels


def with_shape(path: Path, width: int, height: int) -> Path:
    """The MP4 at `path`, whose container says from now on that a pixel is so wide and high."""
    before, mark, after = path.read_bytes().partition(b"pasp")
    path.write_bytes(before + mark + width.to_bytes(4, "big") + height.to_bytes(4, "big") + after[8:])
    return path


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1"])
def test_a_shape_of_pixels_that_the_container_corrects_is_the_right_one(tmp_path: Path, codec: str) -> None:
    clip = make_clip(tmp_path / "clip.mp4", codec=codec, pictures=5, aspect=Fraction(4, 3))
    assert [frame.aspect for frame in Decoded(with_shape(clip, 2, 1)).frames] == [2] * 5


def test_a_new_shape_of_pixels_in_the_middle_is_the_right_one_whatever_the_container_says(tmp_path: Path) -> None:
    parts = [make_clip(tmp_path / f"{n}.ts", pictures=5, aspect=Fraction(4, n)) for n in (3, 4, 3)]
    joined, copy = tmp_path / "joined.ts", tmp_path / "copy.mp4"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    with av.open(str(joined)) as source, av.open(str(copy), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux() if packet.size):
            packet.stream, packet.pts, packet.dts = stream, number * 3600, number * 3600
            target.mux(packet)
    assert [frame.aspect for frame in Decoded(joined).frames] == [Fraction(4, 3)] * 5 + [1] * 5 + [Fraction(4, 3)] * 5
    assert [frame.aspect for frame in Decoded(with_shape(copy, 2, 1)).frames] == [2] * 5 + [1] * 5 + [2] * 5


# Colour


@pytest.mark.parametrize(
    ("matrix", "height", "meant"),
    [
        (None, 120, "bt601"),
        (None, 718, "bt601"),
        (None, 720, "bt709"),
        ("bt601", 720, "bt601"),
        ("bt709", 120, "bt709"),
        ("bt2020", 120, "bt709"),
    ],
)
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
def test_matrix_and_range_are_those_of_the_source_at_any_depth(
    tmp_path: Path,
    matrix: Literal["bt601", "bt709", "bt2020"] | None,
    height: int,
    meant: Literal["bt601", "bt709"],
    full_range: bool,
    pix_fmt: str,
) -> None:
    clip = make_clip(
        tmp_path / "clip.mp4",
        size=(160, height),
        matrix=matrix,
        full_range=full_range,
        pix_fmt=pix_fmt,
        pictures=2,
        bit_rate=2_000_000,
    )
    frame = Decoded(clip).frames[0]
    assert frame.colour == Colour(meant, full_range)
    assert read_patches(*frame.planes()) == pytest.approx(np.array(PATCHES), abs=3)


@pytest.mark.parametrize(("height", "matrix"), [(120, "bt601"), (720, "bt709")])
def test_rgb_becomes_what_its_colour_says(height: int, matrix: Literal["bt601", "bt709"]) -> None:
    rgb = np.full((height, 160, 3), (200, 40, 90), np.uint8)
    [plain] = PlainPictures().add(av.VideoFrame.from_ndarray(rgb, "rgb24"))
    colour = colour_of(plain)
    codes = np.array([np.frombuffer(memoryview(plane), np.uint8)[0] for plane in plain.planes])
    assert colour == Colour(matrix)
    assert colour.coefficients()[0] @ [*(codes - CENTRE), 1] * 255 == pytest.approx(np.array([200, 40, 90]), abs=2)


@pytest.mark.parametrize(
    ("name", "clip", "grey"),
    [
        ("clip.mkv", {"codec": "ffv1", "pix_fmt": "gray"}, "gray"),
        ("clip.mkv", {"codec": "ffv1", "pix_fmt": "gray10le"}, "gray"),
        ("clip.mkv", {"codec": "libx265", "pix_fmt": "gray"}, "gray"),
        ("clip.ts", {"codec": "libx264", "pix_fmt": "gray"}, "yuv420p"),
    ],
)
def test_a_picture_without_colour_is_grey(tmp_path: Path, name: str, clip: dict[str, Any], grey: str) -> None:
    decoded = Decoded(make_clip(tmp_path / name, pictures=10, **clip))
    assert decoded.numbers == list(range(10))
    assert {frame.colour.grey for frame in decoded.frames} == {True}
    assert {frame.picture.format.name for frame in decoded.frames} == {grey}
    luma = read_patches(*(decoded.frames[0].planes()[0],) * 3)[:, 0]
    assert luma == pytest.approx(np.array(PATCHES)[:, 0], abs=3)


def test_an_infrared_camera_is_grey_until_colour_comes_and_again_from_a_key_frame_on(tmp_path: Path) -> None:
    dark = {*range(13), *range(26, 40)}
    clip = make_clip(tmp_path / "clip.ts", pictures=40, key_interval=10, grey=dark)
    assert [frame.colour.grey for frame in Decoded(clip).frames] == [True] * 13 + [False] * 17 + [True] * 10


def test_pictures_that_are_plain_already_are_not_copied(tmp_path: Path) -> None:
    with av.open(str(make_clip(tmp_path / "clip.mp4", pictures=2))) as container:
        for picture in container.decode(video=0):
            assert PlainPictures().add(picture) == [picture]


# Interlacing


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le"])
def test_interlaced_pictures_are_deinterlaced_one_for_one(tmp_path: Path, pix_fmt: str) -> None:
    clip = make_clip(tmp_path / "clip.ts", interlaced=True, pix_fmt=pix_fmt, pictures=20, bit_rate=2_000_000)
    with av.open(str(clip)) as container:
        pictures = [picture.to_ndarray(format="gray") for picture in container.decode(video=0)]
    woven = [combing(np.asarray(picture, np.uint8)) for picture in pictures]
    decoded = Decoded(clip)
    assert decoded.deinterlaced
    assert {frame.aspect for frame in decoded.frames} == {1}
    assert decoded.numbers == list(range(20))
    assert [frame.pts for frame in decoded.frames] == [number * 3600 for number in range(20)]
    assert decoded.lost == 0
    assert median(woven) > 5
    assert max(combing(frame.planes()[0]) for frame in decoded.frames) < 1.5
    assert read_patches(*decoded.frames[5].planes()) == pytest.approx(np.array(PATCHES), abs=3)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
def test_fields_of_hevc_which_come_one_by_one_are_not_deinterlaced_and_have_the_shape_of_their_frame(
    tmp_path: Path, pix_fmt: str
) -> None:
    options = {"x265-params": "log-level=none:pools=1:frame-threads=1:interlace=tff"}
    size = (160, 72)
    clip = make_clip(
        tmp_path / "clip.ts", codec="libx265", pix_fmt=pix_fmt, size=size, rate=50, pictures=10, options=options
    )
    with av.open(str(clip)) as container:
        fields = list(container.decode(video=0))
    assert all(field.interlaced_frame for field in fields)
    decoded = Decoded(clip)
    assert not decoded.deinterlaced
    assert {frame.width * frame.aspect / frame.height for frame in decoded.frames} == {Fraction(160, 2 * 72)}
    for frame, field in zip(decoded.frames, fields, strict=True):
        assert (frame.planes()[0] == field.reformat(format="yuv420p").to_ndarray()[:72]).all()


def test_an_interlaced_feed_that_changes_its_size_loses_nothing(tmp_path: Path) -> None:
    small = make_clip(tmp_path / "small.ts", pictures=10, interlaced=True).read_bytes()
    large = make_clip(tmp_path / "large.ts", pictures=10, interlaced=True, size=(320, 240)).read_bytes()
    both = tmp_path / "both.ts"
    both.write_bytes(small + large)
    decoded = Decoded(both)
    assert [frame.width for frame in decoded.frames] == [160] * 10 + [320] * 10
    assert decoded.numbers == [*range(10), *range(10)]


def test_progressive_pictures_are_not_delayed_by_the_deinterlacer(tmp_path: Path) -> None:
    assert not Decoded(make_clip(tmp_path / "clip.ts", pictures=5)).deinterlaced
