"""LOL v1 (Wei et al., BMVC 2018) from disk: tar shards or the folders of the original release."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]
"""(H, W, 3) uint8 RGB."""

SUFFIXES = {".png", ".webp", ".avif", ".jpg"}
HELD_OUT = range(660, 700)
"""Numbers of `our485` kept for choosing; neighbours are one scene, so whole runs of numbers are held out."""
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

    `folder` holds either `our485/` and `eval15/` with `low/` and `high/` in each, or the tar shards
    `train-*.tar` and `eval15.tar` with the same two folders inside.
    """
    pictures: dict[tuple[str, int], Picture] = {}
    for name, data in _files(folder, part):
        path = Path(name)
        if path.suffix in SUFFIXES and path.parent.name in ("low", "high"):
            pictures[path.parent.name, int(path.stem)] = read_picture(io.BytesIO(data))
    numbers = sorted(number for side, number in pictures if side == "low")
    if not numbers:
        raise FileNotFoundError(f"{folder}: no pictures of LOL's {part} (looked for {part}/low and tar shards)")
    return [Pair(str(n), pictures["low", n], pictures["high", n]) for n in numbers]


def read_picture(file: Path | io.BytesIO) -> Picture:
    """One picture file as (H, W, 3) uint8 RGB."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def halve(picture: Picture) -> Picture:
    """Half the size by antialiased bicubic, rounded to uint8: the input of the half-size protocol."""
    height, width = picture.shape[:2]
    half = Image.fromarray(picture).resize((width // 2, height // 2), Image.Resampling.BICUBIC)
    return np.asarray(half)


def _files(folder: Path, part: str) -> Iterator[tuple[str, bytes]]:
    if (folder / part).is_dir():
        for path in sorted((folder / part).rglob("*")):
            if path.is_file():
                yield str(path), path.read_bytes()
        return
    for shard in sorted(folder.glob("train-*.tar" if part == "our485" else f"{part}.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if (file := tar.extractfile(member)) is not None:
                    yield member.name, file.read()
