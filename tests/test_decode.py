from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any, Literal

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from av.video.frame import VideoFrame
from msgspec.structs import replace

from engines.colour import CENTRE, Colour
from stream.codecs.plain import PlainPictures, colour_of
from stream.decode import Decoder
from stream.errors import SourceLost
from stream.frame import AccessUnit, Frame, SourcePacket
from stream.settings import FeedSettings
from stream.source import open_source
from tests.clips import (
    PATCHES,
    UdpSender,
    combing,
    datagrams,
    free_port,
    make_clip,
    read_number,
    read_patches,
)

SECOND = 1_000_000_000
REAL_CLIPS = Path(__file__).parents[2] / "shared" / "data" / "clips"


class Decoded:
    """What became of a clip."""

    def __init__(self, url: str | Path, keep: slice | None = None) -> None:
        """Decodes the access units in `keep` of all segments."""
        self.frames: list[Frame] = []
        self.units: list[SourcePacket] = []
        self.lost = 0
        self.deinterlaced = False
        settings = FeedSettings(url=str(url), open_timeout=5.0, read_timeout=2.0)
        with open_source(settings) as source:
            for segment in self.segments_of(source.segments()):
                decoder = Decoder(segment.video)
                units = [packet for packet in segment.packets() if packet.kind == "video"][keep or slice(None)]
                for unit in units:
                    self.frames += decoder.decode(unit)
                self.frames += decoder.flush()
                self.units += units
                self.lost += decoder.lost
                self.deinterlaced |= decoder.deinterlaces

    @staticmethod
    def segments_of(segments: Iterator[Any]) -> Iterator[Any]:
        """The segments, without the complaint that a feed went silent."""
        try:
            yield from segments
        except SourceLost:
            return

    @property
    def numbers(self) -> list[int]:
        return [read_number(frame.planes()[0]) for frame in self.frames]

    @property
    def states(self) -> list[str]:
        return [frame.state for frame in self.frames]


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


# Damage


def test_a_feed_that_is_joined_between_key_frames_begins_with_the_next_one(tmp_path: Path) -> None:
    clip, port = make_clip(tmp_path / "clip.ts", pictures=50, key_interval=20), free_port()
    with UdpSender(clip, port, start=len(datagrams(clip)) // 5):
        decoded = Decoded(f"udp://127.0.0.1:{port}")
    first = round((decoded.units[0].packet.pts or 0) / 3600)
    assert 0 < first < 20
    assert decoded.numbers == list(range(20, 50))
    assert set(decoded.states) == {"clean"}
    assert decoded.lost == 20 - first


@pytest.mark.parametrize(
    "encoding",
    [
        {},
        {"b_frames": 2},
        {"b_frames": 3, "options": {"x264-params": "open-gop=1"}},
        {"options": {"intra-refresh": "1"}},
        {"codec": "libx265"},
        {"codec": "libx265", "b_frames": 2},
        {"codec": "mpeg4"},
        {"codec": "mpeg4", "b_frames": 2},
    ],
    ids=str,
)
def test_no_damaged_picture_passes_as_clean_after_loss(tmp_path: Path, encoding: dict[str, Any]) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=100, key_interval=20, **encoding)
    whole = {number: frame.planes()[0].copy() for number, frame in by_number(Decoded(clip))}
    sent = datagrams(clip)
    for seed in range(8):
        random = np.random.default_rng(seed)
        begin, count = int(random.integers(len(sent) // 5, len(sent) * 2 // 5)), int(random.integers(1, 4))
        damaged = tmp_path / "damaged.ts"
        damaged.write_bytes(b"".join(sent[:begin] + sent[begin + count :]))
        decoded = Decoded(damaged)
        assert len(decoded.frames) + decoded.lost == len(decoded.units)
        wrong = [
            (number, frame.state)
            for number, frame in by_number(decoded)
            if np.abs(frame.planes()[0].astype(int) - whole[number]).mean() > 0.5
        ]
        assert [state for _, state in wrong if state == "clean"] == [], f"datagrams {begin} + {count}: {wrong}"
        assert decoded.states[-1] == "clean", "a key frame ends the damage"


def by_number(decoded: Decoded) -> Iterator[tuple[int, Frame]]:
    for frame in decoded.frames:
        yield round(float(frame.pts * frame.time_base) * 25), frame


def test_a_picture_with_missing_bytes_is_concealed_and_those_that_follow_from_it_are_tainted(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=30, key_interval=10, options={"slices": "4"})
    frames, lost = with_one_truncated(clip, 13)
    assert [frame.state for frame in frames] == ["clean"] * 13 + ["concealed"] + ["tainted"] * 6 + ["clean"] * 10
    assert lost == 0


def test_a_picture_of_a_webcam_with_missing_bytes_is_concealed_and_no_other_one(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mkv", codec="mjpeg", pix_fmt="yuvj420p", full_range=True, pictures=10)
    frames, lost = with_one_truncated(clip, 3)
    assert [frame.state for frame in frames] == ["clean"] * 3 + ["concealed"] + ["clean"] * 6
    assert lost == 0


def test_the_neighbours_of_a_damaged_picture_are_tainted_where_deinterlacing_mixes_them(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", interlaced=True, pictures=30, key_interval=10)
    frames, _ = with_one_truncated(clip, 13)
    assert [frame.state for frame in frames] == [
        *["clean"] * 12,
        "tainted",
        "concealed",
        *["tainted"] * 7,
        *["clean"] * 9,
    ]
    whole = Decoded(clip).frames
    differ = [
        n
        for n, (one, other) in enumerate(zip(frames, whole, strict=True))
        if (one.planes()[0] != other.planes()[0]).any()
    ]
    assert {12, 13, 20} <= set(differ)
    assert set(differ) <= set(range(12, 21))


def with_one_truncated(clip: Path, broken: int) -> tuple[list[Frame], int]:
    """The frames of a clip of which one access unit lacks its second half, and how many are lost."""
    with open_source(FeedSettings(url=str(clip))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        frames: list[Frame] = []
        for number, unit in enumerate(segment.packets()):
            frames += decoder.decode(truncated(unit) if number == broken else unit)
        frames += decoder.flush()
    return frames, decoder.lost


def truncated(unit: SourcePacket) -> SourcePacket:
    """The access unit without its second half."""
    short = av.Packet(bytes(unit.packet)[: unit.packet.size // 2])
    short.pts, short.dts, short.time_base = unit.packet.pts, unit.packet.dts, unit.packet.time_base
    return replace(unit, packet=short)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4"])
def test_an_access_unit_of_nonsense_is_counted_and_ends_nothing(tmp_path: Path, codec: str) -> None:
    clip = make_clip(tmp_path / "clip.ts", codec=codec, pictures=60, key_interval=20)
    with open_source(FeedSettings(url=str(clip))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        frames, went_in = [], 0
        for number, unit in enumerate(segment.packets()):
            nonsense = av.Packet(np.random.default_rng(1).bytes(300))
            nonsense.pts, nonsense.time_base = unit.packet.pts, unit.packet.time_base
            frames += decoder.decode(replace(unit, packet=nonsense) if number == 13 else unit)
            went_in += 1
    assert len(frames) + decoder.lost == went_in == 60, "a loss is known before the end"
    assert {frame.state for frame in frames if frame.pts >= 20 * 3600} == {"clean"}


def test_a_damaged_key_frame_does_not_begin_a_feed(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=30, key_interval=10)
    with open_source(FeedSettings(url=str(clip))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        frames = []
        for number, unit in enumerate(segment.packets()):
            unit.packet.is_corrupt = number == 0
            frames += decoder.decode(unit)
    assert [read_number(frame.planes()[0]) for frame in frames] == list(range(10, 30))
    assert decoder.lost == 10


def test_an_access_unit_whose_lengths_are_wrong_is_left_out_and_the_next_is_marked(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mkv", pictures=30, key_interval=10)
    with av.open(str(clip)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        wrong = bytes(packets[13])
    data = clip.read_bytes()
    assert data.count(wrong) == 1
    clip.write_bytes(data.replace(wrong, b"\xff\xff" + wrong[2:]))
    decoded = Decoded(clip)
    assert decoded.numbers == [*range(13), *range(14, 30)]
    assert decoded.states == ["clean"] * 13 + ["concealed"] + ["tainted"] * 5 + ["clean"] * 10


def test_a_picture_that_comes_out_twice_is_one_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlainPictures, "add", lambda _, picture: [picture, picture])
    decoded = Decoded(make_clip(tmp_path / "clip.ts", pictures=10))
    assert (decoded.numbers, decoded.lost) == (list(range(10)), 0)


def test_pictures_that_the_deinterlacer_cannot_give_at_the_end_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flush(*arguments: object) -> None:
        raise av.error.InvalidDataError(1, "on purpose")

    clip = make_clip(tmp_path / "clip.ts", pictures=10, interlaced=True)
    monkeypatch.setattr(PlainPictures, "flush", flush)
    with open_source(FeedSettings(url=str(clip))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        frames = [frame for packet in segment.packets() for frame in decoder.decode(packet)]
        frames += decoder.flush()
    assert 0 < decoder.lost == 10 - len(frames)


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
