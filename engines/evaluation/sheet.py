"""A contact sheet: pictures without a reference, side by side to be judged by eye."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import filterfalse
from unicodedata import combining, normalize

from PIL import Image, ImageDraw

from engines.data.lol import Picture, double
from engines.door import Door
from engines.evaluation.evaluate import by_name, enhance_whole

THUMBNAIL = 360
"""Width of a column in pixels."""
CAPTION = 18
"""Height of a caption in pixels."""
GAP = 6
COLUMNS = ("input", "bicubic double", "output")


@dataclass(frozen=True)
class SheetRow:
    """Thumbnails and captions of a picture in the three `COLUMNS`."""

    name: str
    captions: tuple[str, ...]
    thumbnails: tuple[Image.Image, ...]
    mean_in: float
    """Code value, of 255."""
    mean_out: float


def sheet_row(engine: Door, name: str, picture: Picture) -> SheetRow:
    """The row of a picture: as it is, doubled by bicubic interpolation, and enhanced."""
    with by_name(name):
        pictures = (picture, double(picture), enhance_whole(engine, picture))
    notes = (name, *COLUMNS[1:])
    captions = tuple(
        f"{note}  {each.shape[1]}x{each.shape[0]}  mean {each.mean():.0f}"
        for note, each in zip(notes, pictures, strict=True)
    )
    return SheetRow(name, captions, tuple(map(_thumbnail, pictures)), float(picture.mean()), float(pictures[-1].mean()))


def contact_sheet(title: str, rows: Sequence[SheetRow]) -> Image.Image:
    """Draw a sheet: a title, the columns' names, and the rows, with captions above the thumbnails."""
    width = len(COLUMNS) * (THUMBNAIL + GAP) + GAP
    heights = [CAPTION + row.thumbnails[0].height + GAP for row in rows]
    sheet = Image.new("RGB", (width, 2 * CAPTION + sum(heights) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 2), _drawable(title), fill="black")
    for column, name in enumerate(COLUMNS):
        draw.text((_left(column), CAPTION + 2), name, fill="black")
    top = 2 * CAPTION
    for row, height in zip(rows, heights, strict=True):
        for column, (caption, thumbnail) in enumerate(zip(row.captions, row.thumbnails, strict=True)):
            draw.text((_left(column), top + 2), _fitted(draw, _drawable(caption)), fill="black")
            sheet.paste(thumbnail, (_left(column), top + CAPTION))
        top += height
    return sheet


def _left(column: int) -> int:
    return GAP + column * (THUMBNAIL + GAP)


def _drawable(text: str) -> str:
    """The text in ASCII, the only letters of Pillow's own font."""
    letters = filterfalse(combining, normalize("NFKD", text))
    return "".join(letters).encode("ascii", "replace").decode("ascii")


def _fitted(draw: ImageDraw.ImageDraw, caption: str) -> str:
    """The caption, cut at its beginning if it is wider than a column."""
    while draw.textlength(caption) > THUMBNAIL:
        caption = caption[1:]
    return caption


def _thumbnail(picture: Picture) -> Image.Image:
    height, width = picture.shape[:2]
    size = (THUMBNAIL, max(1, round(height * THUMBNAIL / width)))
    return Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
