from __future__ import annotations

import av
import numpy as np
import pytest

from engines.colour import Colour, to_planes, to_rgb

BARS = np.array(
    [[255, 255, 255], [255, 255, 0], [0, 255, 255], [0, 255, 0], [255, 0, 255], [255, 0, 0], [0, 0, 255], [0, 0, 0]],
    np.uint8,
)


def colour_bars(width: int = 128, height: int = 64) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the eight bars of full saturation."""
    return np.repeat(np.repeat(BARS[None], width // 8, axis=1), height, axis=0)


@pytest.mark.parametrize(
    ("colour", "white", "red"),
    [
        (Colour("bt601"), (235, 128, 128), (81, 90, 240)),
        (Colour("bt709"), (235, 128, 128), (63, 102, 240)),
        (Colour("bt601", full_range=True), (255, 128, 128), (76, 85, 255)),
        (Colour("bt709", full_range=True), (255, 128, 128), (54, 99, 255)),
    ],
    ids=str,
)
def test_white_and_red_have_the_code_values_of_the_standards(
    colour: Colour, white: tuple[int, ...], red: tuple[int, ...]
) -> None:
    encode = colour.coefficients()[1]
    assert tuple(np.rint(np.clip(encode @ [1, 1, 1, 1], 0, 255)).astype(int)) == white
    assert tuple(np.rint(np.clip(encode @ [1, 0, 0, 1], 0, 255)).astype(int)) == red


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_bars_survive_the_way_to_planes_and_back(matrix: str, full_range: bool) -> None:
    colour = Colour(matrix, full_range)  # type: ignore[arg-type]
    back = to_rgb(*to_planes(colour_bars(), colour), colour)
    inside = np.arange(128) % 16
    flat = (inside > 3) & (inside < 12)  # chroma is interpolated across the edges of the bars
    assert np.abs(back[:, flat].astype(int) - colour_bars()[:, flat]).max() <= 2


def test_planes_agree_with_ffmpeg() -> None:
    bars = colour_bars()
    frame = av.VideoFrame.from_ndarray(bars, format="rgb24").reformat(
        format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG"
    )
    y, uv = to_planes(bars, Colour("bt601"))
    theirs = frame.to_ndarray()
    assert np.abs(y.astype(int) - theirs[:64]).max() <= 2
    assert np.abs(uv[0][:, 2:6].astype(int) - theirs[64:80].reshape(32, 64)[:, 2:6]).max() <= 2


def test_chroma_that_is_not_interpolated_stands_for_its_whole_square() -> None:
    y, uv = np.full((3, 5), 120, np.uint8), np.array([[[100, 150, 128], [128, 90, 200]]] * 2, np.uint8)
    blocks = to_rgb(y, uv, Colour(), interpolated=False)
    assert blocks.shape == (3, 5, 3)
    assert (blocks[:2, :2] == blocks[0, 0]).all()
    assert (blocks[:2, 2:4] == blocks[0, 2]).all()
    assert (blocks[0, 0] != blocks[0, 2]).any()
    assert (to_rgb(y, uv, Colour())[0, 1] != blocks[0, 1]).any()


def test_odd_sizes_have_rounded_up_chroma() -> None:
    picture = np.full((35, 51, 3), 90, np.uint8)
    y, uv = to_planes(picture, Colour())
    assert y.shape == (35, 51)
    assert uv.shape == (2, 18, 26)
    assert to_rgb(y, uv, Colour()).shape == (35, 51, 3)
