from __future__ import annotations

import gc
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from av.video.frame import VideoFrame
from msgspec.structs import replace

from engines.colour import Colour
from stream.codecs.plain import PlainPictures
from stream.decode import Decoder
from stream.frame import AccessUnit
from stream.settings import FeedSettings
from stream.source import open_source
from tests.clips import (
    PATCHES,
    REAL_CLIPS,
    make_clip,
    read_patches,
)
from tests.decoding import Decoded

SECOND = 1_000_000_000


# What comes in comes out


@pytest.mark.parametrize(
    ("name", "clip"),
    {
        "h264.ts": {},
        "h264.mp4": {"b_frames": 2},
        "h264.mkv": {"pix_fmt": "yuv420p10le"},
        "h264-422.ts": {"pix_fmt": "yuv422p10le"},
        "h264-444.mp4": {"pix_fmt": "yuv444p"},
        "h264.h264": {},
        "hevc.ts": {"codec": "libx265", "b_frames": 2},
        "hevc.mp4": {"codec": "libx265", "pix_fmt": "yuv420p10le"},
        "mpeg4.ts": {"codec": "mpeg4"},
        "mpeg4.avi": {"codec": "mpeg4", "b_frames": 1},
        "mjpeg.mkv": {"codec": "mjpeg", "pix_fmt": "yuvj422p", "full_range": True, "bit_rate": 3_000_000},
        "av1.mkv": {"codec": "libsvtav1"},
        "av1.mp4": {"codec": "libsvtav1", "pix_fmt": "yuv420p10le"},
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_access_unit_becomes_its_own_picture(tmp_path: Path, name: str, clip: dict[str, Any]) -> None:
    decoded = Decoded(make_clip(tmp_path / name, pictures=30, **clip))
    assert decoded.numbers == list(range(30))
    assert set(decoded.states) == {"clean"}
    assert decoded.lost == 0
    times = [float(frame.pts * frame.time_base) for frame in decoded.frames]
    assert np.diff(times) == pytest.approx(1 / 25, abs=0.001)
    assert sorted(frame.source_sha256 for frame in decoded.frames) == sorted(
        sha256(unit.packet).digest() for unit in decoded.units
    )
    for frame in decoded.frames:
        assert [plane.shape for plane in frame.planes()] == [(120, 160), (60, 80), (60, 80)]
        assert read_patches(*frame.planes()) == pytest.approx(np.array(PATCHES), abs=3)


@pytest.mark.parametrize("matrix", [0, 2, 8, 10, 12, 14, 15])
@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv422p", "yuv444p"])
def test_a_picture_whose_matrix_ffmpeg_cannot_convert_from_becomes_plain_all_the_same(
    pix_fmt: str, matrix: int
) -> None:
    picture = av.VideoFrame(64, 48, pix_fmt)
    for plane in picture.planes:
        plane.update(bytes(plane.buffer_size))
    picture.colorspace = matrix
    [plain] = PlainPictures().add(picture)
    assert (plain.format.name, plain.width, plain.height) == ("yuv420p", 64, 48)


def test_what_is_known_of_a_packet_stays_with_its_picture_although_pictures_are_reordered(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", b_frames=3, pictures=20)
    with open_source(FeedSettings(url=str(clip))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        frames = []
        for order, unit in enumerate(segment.packets()):
            frames += decoder.decode(
                replace(unit, received_ns=order, capture_ns=unit.packet.pts or 0, capture_clock="klv")
            )
        frames += decoder.flush()
    assert [frame.capture_ns for frame in frames] == [frame.pts for frame in frames]
    assert [frame.received_ns for frame in frames] != sorted(frame.received_ns for frame in frames)
    assert sorted(frame.received_ns for frame in frames) == list(range(20))
    assert {frame.capture_clock for frame in frames} == {"klv"}


def test_a_missing_stamp_is_reckoned_from_the_picture_before_and_the_frame_says_so(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=10)
    with open_source(FeedSettings(url=str(clip))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        frames = []
        for number, unit in enumerate(segment.packets()):
            if number in (0, 4, 5):
                unit.packet.pts = None
            frames += decoder.decode(unit)
    assert [frame.source_pts for frame in frames] == [None if n in (0, 4, 5) else n * 3600 for n in range(10)]
    assert [frame.stamped for frame in frames] == [n not in (0, 4, 5) for n in range(10)]
    assert [frame.pts for frame in frames] == [number * 3600 for number in range(10)]


def test_a_picture_comes_out_with_its_own_access_unit_where_nothing_is_reordered(tmp_path: Path) -> None:
    for codec in ("libx264", "libx265", "mpeg4"):
        with open_source(FeedSettings(url=str(make_clip(tmp_path / "clip.ts", codec=codec, pictures=10)))) as source:
            segment = next(source.segments())
            decoder = Decoder(segment.video)
            assert [len(decoder.decode(unit)) for unit in segment.packets()] == [1] * 10


@pytest.mark.parametrize("size", [(161, 121), (162, 122), (163, 120), (160, 123)])
@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuvj444p"])
def test_odd_sizes_keep_every_pixel(tmp_path: Path, size: tuple[int, int], pix_fmt: str) -> None:
    codec = "mjpeg" if pix_fmt == "yuvj444p" else "libx264"
    clip = make_clip(
        tmp_path / "clip.mkv", codec=codec, pix_fmt=pix_fmt, size=size, pictures=3, full_range=codec == "mjpeg"
    )
    decoded = Decoded(clip)
    width, height = size
    chroma = ((height + 1) // 2, (width + 1) // 2)
    assert decoded.numbers == [0, 1, 2]
    assert [plane.shape for plane in decoded.frames[0].planes()] == [(height, width), chroma, chroma]
    assert read_patches(*decoded.frames[0].planes()) == pytest.approx(np.array(PATCHES), abs=4)


@pytest.mark.parametrize("left", [2, 34])
@pytest.mark.parametrize(
    ("codec", "editor", "pix_fmt", "interlaced"),
    [
        ("libx264", "h264_metadata", "yuv420p", False),
        ("libx264", "h264_metadata", "yuv422p10le", True),
        ("libx265", "hevc_metadata", "yuv420p", False),
        ("libx265", "hevc_metadata", "yuv444p", False),
    ],
)
def test_what_is_cropped_on_the_left_is_not_shown(
    tmp_path: Path, codec: str, editor: str, pix_fmt: str, interlaced: bool, left: int
) -> None:
    clip = make_clip(
        tmp_path / "clip.ts", codec=codec, pix_fmt=pix_fmt, size=(160, 128), pictures=3, interlaced=interlaced
    )
    cropped = tmp_path / "cropped.ts"
    with av.open(str(clip)) as source, av.open(str(cropped), "w") as target:
        video = source.streams.video[0]
        crop, copy = BitStreamFilterContext(f"{editor}=crop_left={left}", video), target.add_stream_from_template(video)
        for packet in source.demux(video):
            for narrower in crop.filter(packet) if packet.size else []:
                narrower.stream = copy
                target.mux(narrower)
    whole, shown = Decoded(clip).frames[1].planes()[0], Decoded(cropped).frames[1].planes()[0]
    assert shown.shape == (128, 160 - left)
    middle = slice(8, None) if interlaced else slice(None)  # the deinterlacer sees less in front of its first pixels
    assert (shown[:, middle] == whole[:, left:][:, middle]).all()


def test_a_new_size_in_the_middle_of_a_feed_is_decoded_on(tmp_path: Path) -> None:
    small = make_clip(tmp_path / "small.ts", pictures=10).read_bytes()
    large = make_clip(tmp_path / "large.ts", pictures=10, size=(320, 240)).read_bytes()
    both = tmp_path / "both.ts"
    both.write_bytes(small + large)
    assert [frame.width for frame in Decoded(both).frames] == [160] * 10 + [320] * 10


# How long pictures are held back


def held_back(clip: Path, came: Callable[[int], float], read: Callable[[int], float]) -> list[tuple[float, float]]:
    """Of each picture, in seconds, how long it could not be had as it says itself, and after how long it was decoded.

    Access unit N came at `came(N)` and was read at `read(N)`.
    """
    seconds = []
    with open_source(FeedSettings(url=str(clip))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        for number, unit in enumerate(segment.packets()):
            came_ns, read_ns = round(came(number) * SECOND), round(read(number) * SECOND)
            unit = replace(unit, capture_ns=came_ns, received_ns=read_ns, capture_clock="arrival")
            frames = decoder.decode(unit)
            seconds += [(frame.held_ns / SECOND, (read_ns - frame.arrived_ns) / SECOND) for frame in frames]
    assert len(seconds) >= 15
    return seconds


@pytest.mark.parametrize(
    ("demuxer", "b_frames", "interlaced", "delays"),
    [
        (0, 0, False, {0}),
        (2, 0, False, {2}),
        (2, 0, True, {3}),
        (0, 2, False, {1, 2, 3, 4}),
        (2, 2, False, {3, 4, 5, 6}),
    ],
)
def test_a_picture_is_held_back_by_those_that_must_come_before_it_can_be_had(
    tmp_path: Path, demuxer: int, b_frames: int, interlaced: bool, delays: set[float]
) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=20, b_frames=b_frames, interlaced=interlaced)
    seconds = held_back(clip, lambda number: number, lambda number: number + demuxer)[1:]
    assert [held for held, _ in seconds] == [delay for _, delay in seconds]
    assert {delay for _, delay in seconds} <= delays


def test_a_picture_is_not_held_back_by_a_machine_that_is_behind(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=20)
    seconds = held_back(clip, lambda number: number / 25, lambda number: number / 25 + number)
    assert max(held for held, _ in seconds) <= 0.12
    assert max(delay for _, delay in seconds) == 19


def test_a_picture_is_not_held_back_by_a_link_that_stalled(tmp_path: Path) -> None:
    def came(number: int) -> float:
        return number / 25 + (60 if number > 9 else 0)

    clip = make_clip(tmp_path / "clip.ts", pictures=20, b_frames=2)
    seconds = held_back(clip, came, came)
    assert max(held for held, _ in seconds) <= 0.3
    assert max(delay for _, delay in seconds) > 60


# Memory


def test_a_picture_that_is_let_go_is_freed_at_once_without_a_search_for_cycles(tmp_path: Path) -> None:
    def kept() -> list[AccessUnit | VideoFrame]:
        return [each for each in gc.get_objects() if type(each) in (AccessUnit, VideoFrame)]

    gc.collect()
    others = kept()  # of earlier tests
    gc.disable()
    try:
        for pix_fmt, interlaced in (("yuv420p", False), ("yuv420p10le", False), ("yuv420p", True)):
            Decoded(make_clip(tmp_path / "clip.ts", pictures=30, pix_fmt=pix_fmt, interlaced=interlaced))
            assert not [each for each in kept() if not any(each is other for other in others)]
    finally:
        gc.enable()


# Real clips


@pytest.mark.skipif(not REAL_CLIPS.is_dir(), reason=f"{REAL_CLIPS.name} is not here")
@pytest.mark.parametrize(
    ("name", "colour"),
    [
        ("codec-av1.mkv", Colour("bt709")),
        ("codec-h264-10bit.mp4", Colour("bt601")),
        ("codec-hevc.mp4", Colour("bt601")),
        ("codec-bt709-full-range.mp4", Colour("bt709", full_range=True)),
        ("klv-day.ts", Colour("bt601")),
        ("night-city-426x240.mp4", Colour("bt601")),
    ],
)
def test_a_real_recording_is_decoded_whole(name: str, colour: Colour) -> None:
    decoded = Decoded(REAL_CLIPS / name, keep=slice(60))
    assert len(decoded.frames) == len(decoded.units)
    assert set(decoded.states) == {"clean"}
    assert {frame.colour for frame in decoded.frames} == {colour}
