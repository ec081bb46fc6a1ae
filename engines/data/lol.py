"""Reads LOL v1 (Wei et al., BMVC 2018) from tar shards or the folders of the original release."""

from __future__ import annotations

import io
import tarfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from engines.data.kinds import PICTURES

Picture = NDArray[np.uint8]
"""(H, W, 3) uint8 RGB."""

HELD_OUT = range(660, 698)
"""Numbers of `our485` held out for making choices; neighbours show one scene, so a whole run is held out."""
OUTLIERS = frozenset({141, 142, 183, 237, 648})
"""Training pairs that are nearly pure noise or misaligned."""


@dataclass(frozen=True)
class Pair:
    """One scene, dark and bright, of equal size."""

    name: str
    low: Picture
    high: Picture


def read_lol(folder: Path, part: str) -> list[Pair]:
    """The pairs of `part` (`our485` or `eval15`), ordered by number.

    `folder` holds `our485/` and `eval15/` with `low/` and `high/` in each, or the tar shards `train-*.tar` and
    `eval15.tar` with the same two folders inside, or both: then a picture in a folder replaces the one of the same
    number in a shard. Raises `OSError`, which names the file, if a picture is missing or broken.
    """
    pictures: dict[tuple[str, int], Picture] = {}
    for name, data in _files(folder, part):
        path = Path(name)
        if path.suffix.lower() in PICTURES and path.parent.name in ("low", "high") and path.stem.isdecimal():
            pictures[path.parent.name, int(path.stem)] = decode_picture(data, name)
    numbers = sorted(number for side, number in pictures if side == "low")
    if not numbers:
        raise FileNotFoundError(f"{folder}: no pictures of LOL's {part} (looked for {part}/low and tar shards)")
    return [_pair(pictures, number, f"{folder}: {part}") for number in numbers]


def _pair(pictures: dict[tuple[str, int], Picture], number: int, where: str) -> Pair:
    low, high = pictures["low", number], pictures.get(("high", number))
    if high is None or low.shape != high.shape:
        raise OSError(f"{where}: low/{number} has no bright picture of its size in high/")
    return Pair(str(number), low, high)


def read_picture(path: Path) -> Picture:
    """Read a picture file, see `decode_picture`."""
    return decode_picture(path.read_bytes(), str(path))


def decode_picture(data: bytes, name: str) -> Picture:
    """Decode a picture file to (H, W, 3) uint8 RGB, upright; raises `OSError` with `name` if that fails."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:  # they name no file
            return np.asarray(_eight_bit(ImageOps.exif_transpose(image)).convert("RGB"))
    except UnidentifiedImageError:
        raise OSError(f"{name}: not a picture in a known format") from None
    except Exception as error:  # a broken file can make Pillow's readers raise anything
        raise OSError(f"{name}: {error}") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey, as infrared cameras write it, to 8 bits; Pillow itself would clip it to white."""
    if image.mode in ("I", "F"):
        raise ValueError("its samples have 32 bits; they must have 8 or 16")
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def trimmed(picture: Picture, multiple: int) -> Picture:
    """(H, W, 3) cut at the bottom and right so that both sides are multiples; only even sides can be halved exactly."""
    height, width = (side - side % multiple for side in picture.shape[:2])
    return picture[:height, :width]


def halve(picture: Picture) -> Picture:
    """Half the size by antialiased bicubic interpolation, rounded to uint8: the input of the half-size protocol."""
    height, width = picture.shape[:2]
    half = Image.fromarray(picture).resize((width // 2, height // 2), Image.Resampling.BICUBIC)
    return np.asarray(half)


def double(picture: Picture) -> Picture:
    """Twice the size by bicubic interpolation."""
    height, width = picture.shape[:2]
    return np.asarray(Image.fromarray(picture).resize((2 * width, 2 * height), Image.Resampling.BICUBIC))


def _files(folder: Path, part: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of all files of a part, those of its folder after the shards."""
    for shard in sorted(folder.glob("train-*.tar" if part == "our485" else f"{part}.tar")):
        try:
            with tarfile.open(shard) as tar:
                for member in tar:
                    if (file := tar.extractfile(member)) is not None:
                        yield f"{shard}/{member.name}", file.read()
        except (tarfile.TarError, EOFError, KeyError) as error:  # KeyError: a link to a file outside the shard
            raise OSError(f"{shard}: {' '.join(str(error).split())}") from error
    for path in sorted((folder / part).rglob("*")):
        if path.is_file():
            yield str(path), path.read_bytes()
