"""What FFmpeg tells in its log alone: some losses are known in no other way."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from av import logging as ffmpeg

Line = tuple[int, str, str]
"""Level, what it is about, and text."""


@contextmanager
def overheard() -> Iterator[list[Line]]:
    """The warnings and errors that FFmpeg tells inside the block, in this thread; nobody else hears of them."""
    if ffmpeg.get_level() != ffmpeg.WARNING:
        logging.getLogger("libav").setLevel(logging.CRITICAL + 1)  # for what is told in other threads
        ffmpeg.set_skip_repeated(False)
        ffmpeg.set_level(ffmpeg.WARNING)
    with ffmpeg.Capture() as lines:
        yield lines


def tells(lines: list[Line], *beginnings: str) -> bool:
    """Whether a line begins like one of these."""
    return any(text.startswith(beginnings) for _, _, text in lines)
