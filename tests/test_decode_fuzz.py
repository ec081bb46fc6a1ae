"""Damaged and hostile streams: whatever comes, a decoder counts every access unit and needs no more memory."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import av
import numpy as np
import pytest
from av.video.stream import VideoStream
from msgspec.structs import replace
from numpy.typing import NDArray

from stream.codecs.h264 import Bits, nal_units
from stream.decode import Decoder, PictureTooLarge
from stream.errors import StreamError
from stream.frame import SourcePacket
from stream.settings import FeedSettings
from stream.source import open_source
from tests.clips import make_clip, read_number

CLIPS: dict[str, dict[str, Any]] = {
    "h264.ts": {},
    "h264-b.ts": {"b_frames": 3},
    "h264-interlaced.ts": {"interlaced": True},
    "h264-422.ts": {"pix_fmt": "yuv422p10le"},
    "hevc.ts": {"codec": "libx265", "b_frames": 2},
    "mpeg4.ts": {"codec": "mpeg4", "b_frames": 1},
    "mjpeg.mkv": {"codec": "mjpeg", "pix_fmt": "yuvj422p", "full_range": True},
    "av1.mkv": {"codec": "libsvtav1"},
}
PICTURES = 30
LARGEST = 320 * 240
TS_BYTES, VIDEO_PID = 188, 0x100


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, clip in CLIPS.items():
        make_clip(folder / name, pictures=PICTURES, key_interval=10, **clip)
    return folder


def flip(unit: bytes, random: np.random.Generator) -> bytes:
    """The bytes with some that are others."""
    damaged = np.frombuffer(unit, np.uint8).copy()
    where = random.integers(0, len(unit), int(random.integers(1, 6)))
    if random.random() < 0.5:
        where %= 48  # where headers and parameter sets are
    where %= len(unit)
    damaged[where] = random.integers(0, 256, len(where))
    return damaged.tobytes()


def cut(unit: bytes, random: np.random.Generator) -> bytes:
    return unit[: int(random.integers(1, len(unit) + 1))]


def lose_middle(unit: bytes, random: np.random.Generator) -> bytes:
    begin, end = sorted(random.integers(0, len(unit), 2))
    return unit[:begin] + unit[end:] or b"\x00"


def nonsense(unit: bytes, random: np.random.Generator) -> bytes:
    return random.bytes(len(unit))


def double(unit: bytes, random: np.random.Generator) -> bytes:
    return unit + unit


FAULTS: list[Callable[[bytes, np.random.Generator], bytes]] = [flip, flip, cut, lose_middle, nonsense, double]


def with_bytes(unit: SourcePacket, data: bytes) -> SourcePacket:
    """The packet with other bytes."""
    packet = av.Packet(data)
    packet.pts, packet.dts, packet.time_base = unit.packet.pts, unit.packet.dts, unit.packet.time_base
    packet.duration, packet.is_keyframe = unit.packet.duration, unit.packet.is_keyframe
    return replace(unit, packet=packet)


def damaged(units: Iterator[SourcePacket], random: np.random.Generator) -> Iterator[SourcePacket]:
    """The access units, of which a third is damaged, repeated or left out."""
    for unit in units:
        chance = random.random()
        if chance < 0.25:
            fault = FAULTS[random.integers(len(FAULTS))]
            yield with_bytes(unit, fault(bytes(unit.packet), random))
        elif chance < 0.30:
            yield unit
            yield with_bytes(unit, bytes(unit.packet))
        elif chance > 0.05 + 0.30:
            yield unit


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", CLIPS)
def test_whatever_is_wrong_with_access_units_each_is_a_frame_or_counted(clips: Path, name: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    with open_source(FeedSettings(url=str(clips / name))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video, largest=LARGEST)
        frames = went_in = 0
        for unit in damaged(segment.packets(), random):
            went_in += 1
            with suppress(PictureTooLarge):
                for frame in decoder.decode(unit):
                    frames += 1
                    assert frame.width * frame.height <= LARGEST
                    assert all(plane.size for plane in frame.planes())
        frames += len(decoder.flush())
        assert frames + decoder.lost == went_in


def video_packets(packets: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Of transport packets (N, 188): which belong to the video."""
    pids = (packets[:, 1] & 0x1F).astype(np.int64) << 8 | packets[:, 2]
    video: NDArray[np.bool_] = pids == VIDEO_PID
    return video


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", [name for name in CLIPS if name.endswith(".ts")])
def test_a_transport_stream_with_damage_anywhere_raises_nothing_else(
    clips: Path, tmp_path: Path, name: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    data = np.frombuffer((clips / name).read_bytes(), np.uint8).copy().reshape(-1, TS_BYTES)
    rows = random.choice(np.flatnonzero(video_packets(data)), 40)
    data[rows, random.integers(4, TS_BYTES, 40)] = random.integers(0, 256, 40)
    path = tmp_path / "damaged.ts"
    path.write_bytes(data.tobytes())
    went_in = frames = lost = 0
    try:
        with open_source(FeedSettings(url=str(path))) as source:
            segment = next(source.segments())
            decoder = Decoder(segment.video, largest=LARGEST)
            for unit in segment.packets():
                went_in += unit.kind == "video"
                if unit.kind == "video":
                    frames += len(decoder.decode(unit))
            frames += len(decoder.flush())
            lost = decoder.lost
    except StreamError:
        return
    assert frames + lost == went_in


# Sizes


def test_what_was_still_in_the_decoder_is_counted_where_the_picture_that_follows_is_too_large(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_source(FeedSettings(url=str(clips / "h264.ts"))) as source:
        segment = next(source.segments())
        first, *others = segment.packets()
        decoder = Decoder(segment.video)
        inside = [frame for unit in (first, *others[:5]) for frame in decoder.decode(unit)]
        monkeypatch.setattr(decoder, "_spoilt", True)
        monkeypatch.setattr(decoder, "_begins_alone", lambda _: True)
        monkeypatch.setattr(decoder, "_begin_anew", lambda: inside[:2])
        monkeypatch.setattr(decoder, "_decode", mock.Mock(side_effect=PictureTooLarge("too large")))
        with pytest.raises(PictureTooLarge):
            decoder.decode(others[5])
        assert decoder.lost == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [("h264.ts", True), ("hevc.ts", True), ("mpeg4.ts", False), ("mjpeg.mkv", False), ("av1.mkv", False)],
)
def test_pictures_that_become_too_large_are_refused_and_smaller_ones_decoded_again(
    clips: Path, tmp_path: Path, name: str, said: bool
) -> None:
    large = make_clip(tmp_path / name, pictures=3, size=(640, 480), **CLIPS[name])
    with open_source(FeedSettings(url=str(clips / name))) as source, open_source(FeedSettings(url=str(large))) as other:
        segment = next(source.segments())
        units = list(segment.packets())
        decoder = Decoder(segment.video, largest=160 * 120)
        frames = [frame for unit in units[:10] for frame in decoder.decode(unit)]
        told = (
            '640x480; the feed must have memory = "70MB" or more'
            if said
            else "too large: the memory of its feed allows"
        )
        key, *rest = [with_bytes(unit, bytes(unit.packet)) for unit in next(other.segments()).packets()]
        with pytest.raises(PictureTooLarge, match=f"^its pictures are {told}"):
            decoder.decode(key)
        for unit in rest:
            with suppress(PictureTooLarge):
                assert decoder.decode(unit) == []
        frames += [frame for unit in units[10:] for frame in decoder.decode(with_bytes(unit, bytes(unit.packet)))]
        frames += decoder.flush()
    assert {frame.width for frame in frames} == {160}
    assert [read_number(frame.planes()[0]) for frame in frames][-10:] == list(range(20, 30))
    assert len(frames) + decoder.lost == 30 + 3


@pytest.mark.parametrize("name", [name for name in CLIPS if not name.startswith("h264-")])
def test_a_source_that_says_too_large_a_size_is_refused_before_anything_is_decoded(clips: Path, name: str) -> None:
    with open_source(FeedSettings(url=str(clips / name))) as source:
        segment = next(source.segments())
        with pytest.raises(PictureTooLarge, match="its pictures are 160x120; the feed must have memory"):
            Decoder(segment.video, largest=160 * 120 - 1)


PARAMETER_SETS = {"h264.ts": {7, 8}, "hevc.ts": {32, 33, 34}}
"""Types of NAL units."""


def of_unknown_size(codec: str) -> VideoStream:
    """A video of which only the codec is known, as of a feed that is joined before its parameter sets come."""
    return cast("VideoStream", SimpleNamespace(codec_context=av.CodecContext.create(codec, "r")))


def without_sets(unit: bytes, name: str) -> bytes:
    """The access unit without its parameter sets."""
    units = [part.rstrip(b"\x00") for part in unit.split(b"\x00\x00\x01")[1:]]
    kinds = [part[0] & 31 if name == "h264.ts" else part[0] >> 1 & 63 for part in units]
    kept = [part for part, kind in zip(units, kinds, strict=True) if kind not in PARAMETER_SETS[name]]
    return b"".join(b"\x00\x00\x01" + part for part in kept)


@pytest.mark.parametrize("name", PARAMETER_SETS)
def test_a_first_key_frame_without_its_parameter_sets_is_lost_and_the_next_one_begins_the_feed(
    clips: Path, name: str
) -> None:
    with open_source(FeedSettings(url=str(clips / name))) as source:
        units = list(next(source.segments()).packets())
        decoder = Decoder(of_unknown_size(name.removesuffix(".ts")), largest=LARGEST)
        units[0] = with_bytes(units[0], without_sets(bytes(units[0].packet), name))
        frames = [frame for unit in units for frame in decoder.decode(unit)] + decoder.flush()
    assert [read_number(frame.planes()[0]) for frame in frames] == list(range(10, PICTURES))
    assert decoder.lost == 10, "the key frame, and what refers to it"


@pytest.mark.parametrize("name", ["h264.ts", "hevc.ts", "mpeg4.ts", "mjpeg.mkv", "av1.mkv"])
def test_pictures_that_are_too_large_are_refused_although_their_size_was_not_known_before(
    tmp_path: Path, name: str
) -> None:
    large = make_clip(tmp_path / name, pictures=2, size=(1280, 960), **CLIPS[name])
    with open_source(FeedSettings(url=str(large))) as source:
        segment = next(source.segments())
        key = next(iter(segment.packets()))
        decoder = Decoder(of_unknown_size(segment.video.codec_context.codec.name), largest=LARGEST)
        with pytest.raises(PictureTooLarge):
            decoder.decode(key)


def test_a_picture_just_as_large_as_allowed_is_decoded(tmp_path: Path) -> None:
    for size in ((160, 120), (162, 122), (1280, 18)):
        clip = make_clip(tmp_path / "clip.ts", size=size, pictures=3)
        with open_source(FeedSettings(url=str(clip))) as source:
            segment = next(source.segments())
            decoder = Decoder(segment.video, largest=size[0] * size[1])
            assert sum(len(decoder.decode(unit)) for unit in segment.packets()) == 3


HOSTILE = """
import re, sys
from pathlib import Path
from stream.decode import Decoder, PictureTooLarge
from stream.settings import FeedSettings
from stream.source import open_source
from tests.test_decode_fuzz import with_bytes, with_size

def peak():  # in kB; what getrusage tells begins with the memory of whoever started the process
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

largest = int(sys.argv[2]) or None
with open_source(FeedSettings(url=sys.argv[1])) as source:
    segment = next(source.segments())
    decoder = Decoder(segment.video, largest=largest)
    before = peak()
    for unit in segment.packets():
        try:
            decoder.decode(with_bytes(unit, with_size(bytes(unit.packet), 12_288, 12_288)))
        except PictureTooLarge as error:
            print(error)
print((peak() - before) // 1024)
"""


def with_size(unit: bytes, width: int, height: int) -> bytes:
    """An access unit of x264 whose sequence parameter set says another size."""
    for kind, _, body in nal_units(unit):
        if kind == 7:
            plain = body.rstrip(b"\x00").replace(b"\x00\x00\x03", b"\x00\x00")
            bits, text = Bits(body.rstrip(b"\x00")), "".join(f"{byte:08b}" for byte in plain)
            bits.take(24)
            for _ in range(4):  # number, chroma format, depths
                bits.count()
            bits.take(2)
            bits.count()
            if bits.count() == 0:
                bits.count()
            bits.count()
            bits.take(1)
            begin = len(text) - bits._left
            bits.count(), bits.count()
            text = text[:begin] + code(width // 16 - 1) + code(height // 16 - 1) + text[len(text) - bits._left :]
            text = text.rstrip("0")
            text += "0" * (-len(text) % 8)
            changed = int(text, 2).to_bytes(len(text) // 8, "big")
            return unit.replace(body, re.sub(rb"\x00\x00(?=[\x00-\x03])", b"\x00\x00\x03", changed))
    return unit


def code(number: int) -> str:
    """Exp-Golomb code of a number."""
    bits = f"{number + 1:b}"
    return "0" * (len(bits) - 1) + bits


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc, which is Linux")
def test_a_tiny_stream_that_says_a_huge_size_takes_no_memory(clips: Path) -> None:
    def megabytes(largest: int) -> tuple[list[str], int]:
        command = [sys.executable, "-c", HOSTILE, str(clips / "h264.ts"), str(largest)]
        done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
        *errors, grown = done.stdout.splitlines()
        return errors, int(grown)

    errors, grown = megabytes(1920 * 1080)
    assert errors[0].startswith("its pictures are 12288x122")
    assert grown < 80
    assert megabytes(0)[1] > 250, "without a limit it does take memory"
