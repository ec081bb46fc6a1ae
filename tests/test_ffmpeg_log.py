from __future__ import annotations

import threading

import pytest
from av import logging as ffmpeg

from stream.codecs.ffmpeg_log import captured_log, has_line_starting_with


def test_what_ffmpeg_tells_in_a_thread_is_heard_there_and_nowhere_else(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with captured_log() as lines:
        ffmpeg.log(ffmpeg.WARNING, "camera", "lost 1\n")
        ffmpeg.log(ffmpeg.WARNING, "camera", "lost 1\n")
        ffmpeg.log(ffmpeg.INFO, "camera", "all is well\n")
        other = threading.Thread(target=ffmpeg.log, args=(ffmpeg.ERROR, "camera", "lost 2\n"))
        other.start()
        other.join()
    ffmpeg.log(ffmpeg.FATAL, "camera", "lost 3\n")
    assert lines == [(24, "camera", "lost 1\n")] * 2
    assert has_line_starting_with(lines, "lost")
    assert not has_line_starting_with(lines, "all")
    assert (caplog.text, *capfd.readouterr()) == ("", "", "")
