"""Reads videos from disk, picture by picture."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from engines.data.lol import Picture, trimmed


def read_clip(path: Path) -> Iterator[Picture]:
    """A video's pictures as (H, W, 3) uint8 RGB, with sides cut to multiples of 4, so that their halves are even.

    Raises `OSError`, which names the file, if it has no video that can be decoded.
    """
    empty = True
    try:
        with av.open(path) as container:
            for frame in container.decode(video=0):
                empty = False
                yield trimmed(frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False), 4)
    except (av.FFmpegError, IndexError) as error:
        raise OSError(f"{path}: no video that can be decoded ({error})") from error
    if empty:
        raise OSError(f"{path}: no picture in its video")


def clip_rate(path: Path) -> Fraction:
    """Pictures a second; 25 if the file does not say."""
    try:
        with av.open(path) as container:
            return Fraction(container.streams.video[0].average_rate or 25)
    except (av.FFmpegError, IndexError) as error:
        raise OSError(f"{path}: no video that can be decoded ({error})") from error
