"""Recordings for the tests of `nightbridge convert`, and a conversion that is stopped on its way."""

from __future__ import annotations

import struct
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.sidedata.sidedata import Type

from stream.files.convert import Conversion, Progress, convert
from tests.doubling import DoublingEngine


def with_sound(
    clip: Path, path: Path, codec: str = "aac", sounds: int = 20, options: dict[str, str] | None = None
) -> Path:
    """The clip with a second and more of silence, which begins before its pictures, and with all else it holds."""
    with av.open(clip) as source, av.open(path, "w", options=options or {}) as target:
        copies = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        audio = cast("AudioStream", target.add_stream(codec, rate=48_000))
        for number in range(sounds):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.int16), format="s16", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, number * 1024, Fraction(1, 48_000)
            target.mux(audio.encode(frame))
        target.mux(audio.encode(None))
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                target.mux(packet)
    return path


def headless(clip: Path, path: Path) -> Path:
    """The video of a clip without its first picture, which those up to the next key frame need."""
    with av.open(clip) as source, av.open(path, "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in [packet for packet in source.demux(video=0) if packet.size][1:]:
            packet.stream = stream
            target.mux(packet)
    return path


def cut_in_front(path: Path, seconds: int) -> None:
    """Make an MP4 begin later, as a phone does it: by its edit lists alone."""
    with av.open(path) as reader:
        ticks = [round(seconds / (stream.time_base or 1)) for stream in reader.streams]
    content, at = bytearray(path.read_bytes()), 0
    for skipped in ticks:
        at = content.index(b"elst", at) + len("elst") + 8  # version, flags and the number of edits
        lasts, begins = struct.unpack_from(">Ii", content, at)
        struct.pack_into(">Ii", content, at, lasts - 1000 * seconds, begins + skipped)
    path.write_bytes(content)


PHONE = (0, 1 << 16, 0, -1 << 16, 0, 0, 120 << 16, 0, 1 << 30)
"""Of a phone that is held upright: a quarter turn clockwise, and as far to the right as the picture is high."""


def shown_as(path: Path) -> tuple[int, list[int]]:
    """By how many degrees players turn the pictures of a file to the left, and the whole display matrix."""
    with av.open(path) as reader:
        frame = next(reader.decode(video=0))
        told: Any = frame.side_data
        return frame.rotation, np.frombuffer(told[Type.DISPLAYMATRIX], np.int32).tolist()


def stopped_after(pictures: int, source: Path, target: Path) -> Conversion:
    """A conversion that is stopped when there are so many pictures."""
    stop = threading.Event()

    def report(now: Progress) -> None:
        if now.pictures >= pictures:
            stop.set()

    with DoublingEngine() as engine:
        return convert(engine, source, target, report, stop=stop, keep_parts=True)
