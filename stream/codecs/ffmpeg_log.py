"""Reads FFmpeg's log: some losses are reported nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from av import logging as ffmpeg

Line = tuple[int, str, str]
"""Level, component, and text."""


@contextmanager
def captured_log() -> Iterator[list[Line]]:
    """The warnings and errors that FFmpeg logs inside the block, in this thread; they appear nowhere else."""
    if ffmpeg.get_level() != ffmpeg.WARNING:
        logging.getLogger("libav").setLevel(logging.CRITICAL + 1)  # for lines from other threads
        ffmpeg.set_skip_repeated(False)
        ffmpeg.set_level(ffmpeg.WARNING)
    with ffmpeg.Capture() as lines:
        yield lines


def has_line_starting_with(lines: list[Line], *beginnings: str) -> bool:
    """Whether any line begins with one of these."""
    return any(text.startswith(beginnings) for _, _, text in lines)
