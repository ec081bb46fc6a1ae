"""Messages of a feed, what is recorded of them, and `nightbridge record` in a process of its own, for tests."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
import msgspec

from engines.colour import Colour
from stream.encode import Encoder
from stream.publish import Publisher
from stream.record import Recorder
from stream.settings import EncoderSettings
from stream.wire.messages import Header, Message, Numbering
from tests.command import ROOT
from tests.published import TICKS
from tests.test_encode import HEIGHT, WIDTH, planes

CAPTURED = 1_795_360_200_250_000_000
"""2026-11-22 15:10:00.250 UTC."""
PICTURE_NS = 40_000_000


def pictures(
    amount: int,
    codec: str = "h264",
    keys_every: int = 10,
    relay: str = "run-1",
    start: int = 0,
    key_interval: float = 2.0,
) -> Iterator[Message]:
    """Messages of a feed with 25 pictures a second, numbered by their chroma."""
    numbers = Numbering("video")
    settings = EncoderSettings.model_validate({"codec": codec, "key_interval": key_interval})
    with Encoder(settings, WIDTH, HEIGHT, Colour("bt709", True), Fraction(1, 90000)) as encoder:
        for index in range(amount):
            for picture in encoder.encode(*planes(index % 60), pts=start + index * TICKS, key=index % keys_every == 0):
                header = Header(
                    key=picture.key,
                    codec=codec,
                    width=WIDTH,
                    height=HEIGHT,
                    pts=picture.pts,
                    time_base=picture.time_base,
                    capture_ns=CAPTURED + index * PICTURE_NS,
                )
                yield Message("video", numbers.stamp(header, relay, "pier", CAPTURED), picture.payload)


def data(payload: bytes, pts: int | None, codec: str = "klv", **header: Any) -> Message:
    header = Header(codec=codec, pts=pts, time_base=Fraction(1, 90000), **header)
    return Message("data", Numbering("data").stamp(header, "run-1", "pier", CAPTURED), payload)


def changed(message: Message, **values: Any) -> Message:
    return replace(message, header=msgspec.structs.replace(message.header, **values))


def record(folder: Path, messages: Iterator[Message] | list[Message], **options: Any) -> Recorder:
    with Recorder(folder, **options) as recorder:
        for message in messages:
            recorder.write(message)
    return recorder


def played(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def units(path: Path, kind: str) -> list[tuple[int | None, bytes]]:
    with av.open(str(path)) as container:
        return [
            (packet.pts, bytes(packet)) for packet in container.demux() if packet.size and packet.stream.type == kind
        ]


@contextmanager
def recording_program(
    publisher: Publisher,
    feed: str,
    folder: Path,
    *words: str,
    command: Sequence[str] = ("-m", "tools"),
    stdout: int | IO[str] = subprocess.PIPE,
    stderr: int | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """`nightbridge record` in a process of its own, which is killed at the end if it has not ended by then."""
    program = subprocess.Popen(
        [sys.executable, *command, "record", publisher.endpoint, feed, str(folder), *words],
        cwd=ROOT,
        stdout=stdout,
        stderr=stderr,
        text=True,
    )
    try:
        yield program
    finally:
        program.kill()
        program.communicate()
