"""The clip that ships with the project, made from two photographs that packages on PyPI carry.

    pip download --no-deps --only-binary :all: --python-version 3.11 --dest wheels scikit-learn==1.9.1 scipy==1.11.4
    python tools/clip/make_clip.py wheels tools/clip/day.mp4

README.md beside this file names the photographs, their authors and their licences.
"""

from __future__ import annotations

import argparse
import bz2
import io
import itertools
import math
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray
from PIL import Image, ImageDraw

WIDTH, HEIGHT, RATE = 640, 480, 25
LAKE_PICTURES, RACCOON_PICTURES = 155, 95
FINE = 8
"""Moving shapes are drawn this many times larger, then reduced, so that they move by less than a pixel."""

Picture = NDArray[np.uint8]
Paint = tuple[int, int, int, int]
Shape = tuple[Paint, list[tuple[float, float]]]
"""Red, green, blue and opacity of a polygon, and its corners in pixels of the photograph."""

WHITE, RED, NAVY, GLASS = (238, 236, 230, 255), (178, 62, 40, 255), (40, 62, 92, 255), (52, 62, 70, 255)
FOAM, SHADE, BIRD = (255, 255, 255, 80), (70, 90, 95, 90), (58, 60, 66, 255)

BOAT: list[Shape] = [
    (FOAM, [(-0.45, 0.02), (2.2, -0.10), (2.2, -0.06), (0.5, 0.06)]),
    (FOAM, [(-0.45, 0.02), (2.0, 0.22), (2.0, 0.28), (0.3, 0.10)]),
    (SHADE, [(-0.42, 0.03), (0.48, 0.03), (0.40, 0.22), (-0.34, 0.22)]),
    (NAVY, [(-0.52, -0.13), (0.50, -0.10), (0.46, 0.05), (-0.40, 0.05)]),
    (WHITE, [(-0.52, -0.13), (0.50, -0.10), (0.50, -0.07), (-0.50, -0.09)]),
    (WHITE, [(-0.22, -0.30), (0.40, -0.30), (0.42, -0.10), (-0.28, -0.11)]),
    *((GLASS, [(u, -0.26), (u + 0.1, -0.26), (u + 0.1, -0.17), (u, -0.17)]) for u in (-0.17, -0.025, 0.12, 0.265)),
    (RED, [(-0.28, -0.34), (0.46, -0.34), (0.43, -0.29), (-0.25, -0.29)]),
    (GLASS, [(0.10, -0.52), (0.12, -0.52), (0.12, -0.34), (0.10, -0.34)]),
]
"""A tour boat of length 1 around the water line, bow to the left, with its wake."""


@dataclass(frozen=True)
class View:
    """A part of a photograph in the clip's shape, in pixels of the photograph."""

    left: float
    top: float
    width: float

    def towards(self, other: View, share: float) -> View:
        """The view after `share` (0 to 1) of a move that starts and ends softly."""
        soft = (1 - math.cos(math.pi * share)) / 2
        width = self.width * (other.width / self.width) ** soft
        way = (self.width - width) / (self.width - other.width)
        return View(self.left + way * (other.left - self.left), self.top + way * (other.top - self.top), width)

    def of(self, photo: Image.Image) -> Picture:
        """(HEIGHT, WIDTH, 3) uint8 RGB."""
        box = (self.left, self.top, self.left + self.width, self.top + self.width * HEIGHT / WIDTH)
        return np.asarray(photo.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS, box=box))


def lake(photo: Image.Image) -> Iterator[Picture]:
    """A slow move towards a lake, with a boat that passes behind the trees, and two birds."""
    start, end = View(71, 0, 569), View(112, 22, 484)
    water = water_mask(photo)
    for index in range(LAKE_PICTURES):
        share = index / (LAKE_PICTURES - 1)
        picture = Image.composite(drawn_on(photo, boat(share)), photo, water)
        for delay in (0.0, 0.19):
            picture = drawn_on(picture, bird(share, index / RATE - delay, 40 * delay))
        yield start.towards(end, share).of(picture)


def raccoon(photo: Image.Image) -> Iterator[Picture]:
    """A slow move towards the face of a raccoon."""
    start, end = View(40, 0, 940), View(262, 116, 660)
    for index in range(RACCOON_PICTURES):
        yield start.towards(end, index / (RACCOON_PICTURES - 1)).of(photo)


def water_mask(photo: Image.Image) -> Image.Image:
    """Where the lake is in sight: it is brighter than the leaves and the roofs in front of it."""
    brightness = np.asarray(photo.convert("L"), np.float32)
    mask = np.clip((brightness - 130) / 40, 0, 1)
    mask[:, :340] = 0
    return Image.fromarray(np.rint(255 * mask).astype(np.uint8))


def boat(share: float) -> list[Shape]:
    """The boat after `share` of its way across the lake, which leads towards the camera."""
    x, y, length = 548 - 212 * share, 264 + 30 * share, 17 + 9 * share
    return [(paint, [(x + length * u, y + length * v) for u, v in corners]) for paint, corners in BOAT]


def bird(share: float, seconds: float, behind: float) -> list[Shape]:
    """A bird after `share` of its way across the sky, `behind` pixels late, wings beating with the time."""
    x, y = 345 - 3 * behind + 260 * share, 118 + 1.5 * behind - 26 * share + 3 * math.sin(2 * seconds)
    beat = 0.45 * math.sin(2 * math.pi * 2.3 * seconds) - 0.15
    wing = [(0.0, 0.1), (0.45, 0.75 * beat + 0.02), (1.0, beat), (0.42, 0.75 * beat - 0.1), (0.0, -0.1)]
    body = [(-0.35, 0.0), (0.0, -0.1), (0.45, -0.06), (0.5, 0.02), (0.0, 0.12)]
    return [(BIRD, [(x + 8 * u, y + 8 * v) for u, v in part]) for part in (wing, [(-u, v) for u, v in wing], body)]


def drawn_on(photo: Image.Image, shapes: list[Shape]) -> Image.Image:
    """A copy of the photograph with the shapes drawn on it, with soft edges."""
    corners = np.array([corner for _, points in shapes for corner in points])
    left, top = (math.floor(low) for low in corners.min(axis=0))
    width, height = (math.ceil(high) - low for high, low in zip(corners.max(axis=0), (left, top), strict=True))
    fine = Image.new("RGBA", (FINE * width, FINE * height))
    pen = ImageDraw.Draw(fine)
    for paint, points in shapes:
        pen.polygon([(FINE * (x - left), FINE * (y - top)) for x, y in points], paint)
    drawing = fine.convert("RGBa").reduce(FINE).convert("RGBA")
    result = photo.copy()
    result.paste(drawing, (left, top), drawing)
    return result


def read_photos(wheels: Path) -> tuple[Image.Image, Image.Image]:
    """The lake from scikit-learn's wheel and the raccoon from SciPy's."""
    china = io.BytesIO(read_member(wheels, "scikit_learn-*.whl", "sklearn/datasets/images/china.jpg"))
    face = bz2.decompress(read_member(wheels, "scipy-*.whl", "scipy/misc/face.dat"))
    return Image.open(china).convert("RGB"), Image.frombytes("RGB", (1024, 768), face)


def read_member(wheels: Path, pattern: str, member: str) -> bytes:
    """One file from the wheel that matches `pattern`."""
    found = sorted(wheels.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{wheels}: no {pattern} in it")
    with zipfile.ZipFile(found[0]) as wheel:
        return wheel.read(member)


def write_clip(pictures: Iterable[Picture], path: Path) -> None:
    """Write an MP4 file of H.264 pictures, BT.601, limited range."""
    with av.open(path, "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream("libx264", rate=RATE, options={"crf": "19.5", "preset": "slow"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = Colorspace.ITU601, ColorRange.MPEG
        for picture in pictures:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())


def main() -> None:
    """Write the clip."""
    parser = argparse.ArgumentParser(description="Makes the clip that ships with the project.")
    parser.add_argument("wheels", type=Path, help="folder with the wheels of scikit-learn and SciPy 1.11")
    parser.add_argument("clip", type=Path, help="file to write, such as day.mp4")
    arguments = parser.parse_args()
    photo_of_lake, photo_of_raccoon = read_photos(arguments.wheels)
    write_clip(itertools.chain(lake(photo_of_lake), raccoon(photo_of_raccoon)), arguments.clip)


if __name__ == "__main__":
    main()
