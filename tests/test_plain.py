from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream
from numpy.typing import NDArray

from engines.colour import CENTRE, Colour
from stream.codecs.plain import PlainPictures, colour_of, is_hdr
from stream.frame import Frame, plane_view
from tests.clips import PATCHES, joined, make_clip, read_patches
from tests.command import ROOT
from tests.test_orientation import decoded

Values = NDArray[np.float64]

SIDE = 32
"""Of a patch, in pixels."""
HLG, PQ = ColorTrc.ARIB_STD_B67, ColorTrc.SMPTE2084
GREYS = [(level, level, level) for level in (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.55)]
COLOURS = {
    HLG: [(0.41, 0.20, 0.17), (0.29, 0.45, 0.20), (0.49, 0.24, 0.20), (0.35, 0.53, 0.23)],
    PQ: [(0.35, 0.24, 0.22), (0.31, 0.38, 0.25), (0.42, 0.30, 0.27), (0.37, 0.45, 0.31)],
}
"""As saturated as BT.709 can just show."""
LAMPS = [(0.9, 0.9, 0.9), (1.0, 1.0, 1.0)]
SIGNALS = {transfer: np.array([*GREYS, *colours, *LAMPS]) for transfer, colours in COLOURS.items()}
"""R, G and B of the signal (N, 3), 0 to 1."""
WIDTH = SIDE * len(SIGNALS[HLG])

BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593])
BT2020_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
"""ITU-R BT.2407-0 section 2."""
WHITE = 203.0
"""cd/m2 (ITU-R BT.2408)."""


def light_of_hlg(signal: Values) -> Values:
    """Of a display of 1000 cd/m2, in cd/m2: (N, 3) in BT.2020, by ITU-R BT.2100-2 table 5."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return 1000 * scene * (scene @ BT2020_LUMA)[:, None] ** 0.2


def light_of_pq(signal: Values) -> Values:
    """The same, by ITU-R BT.2100-2 table 4."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = signal ** (1 / m2)
    return 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def shown_by_bt709(light: Values) -> Values:
    """R, G and B of the signal (N, 3), 0 to 1, with which a display by ITU-R BT.1886 shows the same light."""
    return cast("Values", np.clip(light @ BT2020_TO_BT709.T / WHITE, 0, 1) ** (1 / 2.4))


def code_range(full_range: bool) -> ColorRange:
    return ColorRange.JPEG if full_range else ColorRange.MPEG


def hdr_picture(pix_fmt: str = "yuv420p10le", transfer: ColorTrc = HLG, full_range: bool = False) -> av.VideoFrame:
    """The patches of `SIGNALS`, side by side, as code values of BT.2020."""
    red, luma, blue = SIGNALS[transfer][:, 0], SIGNALS[transfer] @ BT2020_LUMA, SIGNALS[transfer][:, 2]
    chroma = (blue - luma) / 1.8814, (red - luma) / 1.4746
    values = np.stack((luma, *chroma), axis=1)
    scale, offset = ([65535] * 3, [0, 32768, 32768]) if full_range else ([56064, 57344, 57344], [4096, 32768, 32768])
    codes = np.rint(values * scale + offset).astype(np.uint16)
    planes = np.repeat(codes, SIDE, 0)[None].repeat(SIDE, 0)
    made = av.VideoFrame.from_ndarray(planes, "yuv444p16le")
    made.color_range, made.colorspace = code_range(full_range), Colorspace.BT2020
    made = made.reformat(format=pix_fmt)
    made.color_primaries, made.color_trc = ColorPrimaries.BT2020, transfer
    return made


def hdr_clip(
    path: Path, transfer: ColorTrc, full_range: bool = False, codec: str = "libx265", pix_fmt: str = "yuv420p10le"
) -> Path:
    """Two of these pictures as a phone writes them, but for the loss."""
    lossless = {"libx265": {"x265-params": "lossless=1:log-level=none:pools=1:frame-threads=1"}, "libx264": {"qp": "0"}}
    with av.open(str(path), "w") as container:
        stream = cast("VideoStream", container.add_stream(codec, rate=25, options=lossless[codec]))
        stream.width, stream.height, stream.pix_fmt = WIDTH, SIDE, pix_fmt
        context = stream.codec_context
        context.max_b_frames = 0
        context.colorspace, context.color_range = Colorspace.BT2020, code_range(full_range)
        context.color_primaries, context.color_trc = ColorPrimaries.BT2020, transfer
        for number in range(2):
            made = hdr_picture(pix_fmt, transfer, full_range)
            made.pts, made.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(made))
        container.mux(stream.encode(None))
    return path


def signals(frame: Frame) -> Values:
    """R, G and B of the signal (N, 3), 0 to 1, in the middle of each patch."""
    y, u, v = frame.planes()
    middle = slice(SIDE // 2, None, SIDE), slice(SIDE // 4, None, SIDE // 2)
    codes = np.stack((y[SIDE // 2, middle[0]], u[SIDE // 4, middle[1]], v[SIDE // 4, middle[1]]), axis=1)
    matrix = frame.colour.coefficients()[0]
    return cast("Values", (codes - CENTRE) @ matrix[:, :3].T + matrix[:, 3])


@pytest.mark.parametrize(
    ("pix_fmt", "full_range"),
    [
        *(("yuv420p", False), ("yuvj420p", True)),
        *(("gray", False), ("gray10le", False), ("gray12le", False), ("gray16le", True), ("gray16be", True)),
    ],
)
def test_a_picture_that_says_no_range_has_that_of_its_format(pix_fmt: str, full_range: bool) -> None:
    assert colour_of(av.VideoFrame(16, 16, pix_fmt)) == Colour(full_range=full_range, grey=pix_fmt.startswith("gray"))


def test_grey_of_16_bits_keeps_its_blacks_and_one_that_says_limited_range_is_taken_at_its_word(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(32, 0)
    shown = []
    for told in (ColorRange.UNSPECIFIED, ColorRange.MPEG):
        with av.open(str(tmp_path / "thermal.mkv"), "w") as container:
            stream = cast("VideoStream", container.add_stream("ffv1", rate=25))
            stream.width, stream.height, stream.pix_fmt = 256, 32, "gray16le"
            stream.codec_context.color_range = told
            made = av.VideoFrame.from_ndarray(levels, "gray16le")
            made.color_range, made.pts, made.time_base = told, 0, Fraction(1, 25)
            container.mux([*stream.encode(made), *stream.encode(None)])
        [frame] = decoded(tmp_path / "thermal.mkv")
        assert (frame.colour.grey, frame.picture.format.name) == (True, "gray")
        [y] = frame.planes()
        matrix = frame.colour.coefficients()[0]
        shown.append(np.clip((y[0] - CENTRE[0]) * matrix[1, 0] + matrix[1, 3], 0, 1))
    assert shown[0] == pytest.approx(np.linspace(0, 1, 256), abs=0.006)
    assert (shown[1][:16] == 0).all()


@pytest.mark.parametrize(
    ("transfer", "light", "full_range"), [(HLG, light_of_hlg, False), (PQ, light_of_pq, True)], ids=["HLG", "PQ"]
)
def test_the_light_of_hdr_becomes_that_of_usual_video(
    transfer: ColorTrc, light: Callable[[Values], Values], full_range: bool, tmp_path: Path
) -> None:
    first, second = decoded(hdr_clip(tmp_path / "phone.mp4", transfer, full_range))
    assert (first.picture.format.name, first.colour) == ("yuv420p", Colour("bt709", full_range))
    wanted = shown_by_bt709(light(SIGNALS[transfer]))
    assert signals(first) == pytest.approx(wanted, abs=0.015)
    assert wanted[-len(LAMPS) :].min() == 1
    assert np.array_equal(signals(first), signals(second))


@pytest.mark.parametrize(
    ("changes", "pix_fmt"),
    [
        ({"color_trc": ColorTrc.BT2020_10}, "yuv420p10le"),
        ({"color_trc": ColorTrc.UNSPECIFIED}, "yuv420p10le"),
        ({"color_primaries": ColorPrimaries.UNSPECIFIED}, "yuv420p10le"),
        ({"color_primaries": 0}, "yuv420p10le"),
        ({"colorspace": Colorspace.ITU709}, "yuv420p10le"),
        ({"color_trc": ColorTrc.BT2020_10}, "yuv422p"),
        ({}, "gray10le"),
    ],
)
def test_what_does_not_say_that_it_is_hdr_stays_as_it_was_bit_for_bit(changes: dict[str, int], pix_fmt: str) -> None:
    picture = hdr_picture(pix_fmt)
    for key, value in changes.items():
        setattr(picture, key, value)
    assert not is_hdr(picture)
    [plain] = PlainPictures().add(picture)
    as_before = picture.reformat(
        format=plain.format.name,
        src_colorspace=Colorspace.ITU709,
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.MPEG,
        dst_color_range=ColorRange.MPEG,
    )
    for plane, before in zip(plain.planes, as_before.planes, strict=True):
        assert np.array_equal(plane_view(plane), plane_view(before))


def test_usual_video_that_follows_hdr_and_tells_nothing_of_its_colours_is_not_mapped(tmp_path: Path) -> None:
    hdr = hdr_clip(tmp_path / "hdr.ts", HLG, codec="libx264", pix_fmt="yuv420p")
    usual = make_clip(tmp_path / "usual.ts", size=(WIDTH, SIDE), pictures=3, bit_rate=4_000_000)
    frames = decoded(joined(tmp_path / "joined.ts", hdr, usual))
    assert [frame.colour.matrix for frame in frames] == ["bt709"] * 2 + ["bt601"] * 3
    assert signals(frames[0]) == pytest.approx(shown_by_bt709(light_of_hlg(SIGNALS[HLG])), abs=0.03)
    assert read_patches(*frames[-1].planes()) == pytest.approx(np.array(PATCHES), abs=4)


ABORTING = """
import av
from stream.codecs.plain import PlainPictures
for interlaced in (False, True):
    pictures, picture = PlainPictures(), av.VideoFrame(64, 48, "{}")
    pictures.interlaced = interlaced
    try:
        pictures.add(picture)
    except av.FFmpegError as error:
        print(error.strerror)
"""


@pytest.mark.parametrize("pix_fmt", ["yaf32le", "yaf32be"])
def test_a_picture_that_libswscale_would_end_the_process_at_is_an_error(pix_fmt: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ABORTING.format(pix_fmt)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == 2 * f"pictures of format {pix_fmt} cannot be converted\n"
