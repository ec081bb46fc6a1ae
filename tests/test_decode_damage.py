from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from msgspec.structs import replace

from stream.codecs.plain import PlainPictures
from stream.decode import Decoder
from stream.frame import Frame, SourcePacket
from stream.settings import FeedSettings
from stream.source import open_source
from tests.clips import (
    UdpSender,
    datagrams,
    free_port,
    make_clip,
    read_number,
)
from tests.decoding import Decoded


def test_a_feed_that_is_joined_between_key_frames_begins_with_the_next_one(tmp_path: Path) -> None:
    clip, port = make_clip(tmp_path / "clip.ts", pictures=50, key_interval=20), free_port()
    with UdpSender(clip, port, start=len(datagrams(clip)) // 5):
        decoded = Decoded(f"udp://127.0.0.1:{port}")
    first = round((decoded.units[0].packet.pts or 0) / 3600)
    assert 0 < first < 20
    assert decoded.numbers == list(range(20, 50))
    assert set(decoded.states) == {"clean"}
    assert decoded.lost == 20 - first


@pytest.mark.parametrize(
    "encoding",
    [
        {},
        {"b_frames": 2},
        {"b_frames": 3, "options": {"x264-params": "open-gop=1"}},
        {"options": {"intra-refresh": "1"}},
        {"codec": "libx265"},
        {"codec": "libx265", "b_frames": 2},
        {"codec": "mpeg4"},
        {"codec": "mpeg4", "b_frames": 2},
    ],
    ids=str,
)
def test_no_damaged_picture_passes_as_clean_after_loss(tmp_path: Path, encoding: dict[str, Any]) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=100, key_interval=20, **encoding)
    whole = {number: frame.planes()[0].copy() for number, frame in by_number(Decoded(clip))}
    sent = datagrams(clip)
    for seed in range(8):
        random = np.random.default_rng(seed)
        begin, count = int(random.integers(len(sent) // 5, len(sent) * 2 // 5)), int(random.integers(1, 4))
        damaged = tmp_path / "damaged.ts"
        damaged.write_bytes(b"".join(sent[:begin] + sent[begin + count :]))
        decoded = Decoded(damaged)
        assert len(decoded.frames) + decoded.lost == len(decoded.units)
        wrong = [
            (number, frame.state)
            for number, frame in by_number(decoded)
            if np.abs(frame.planes()[0].astype(int) - whole[number]).mean() > 0.5
        ]
        assert [state for _, state in wrong if state == "clean"] == [], f"datagrams {begin} + {count}: {wrong}"
        assert decoded.states[-1] == "clean", "a key frame ends the damage"


def by_number(decoded: Decoded) -> Iterator[tuple[int, Frame]]:
    for frame in decoded.frames:
        yield round(float(frame.pts * frame.time_base) * 25), frame


def test_a_picture_with_missing_bytes_is_concealed_and_those_that_follow_from_it_are_tainted(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=30, key_interval=10, options={"slices": "4"})
    frames, lost = with_one_truncated(clip, 13)
    assert [frame.state for frame in frames] == ["clean"] * 13 + ["concealed"] + ["tainted"] * 6 + ["clean"] * 10
    assert lost == 0


def test_a_picture_of_a_webcam_with_missing_bytes_is_concealed_and_no_other_one(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mkv", codec="mjpeg", pix_fmt="yuvj420p", full_range=True, pictures=10)
    frames, lost = with_one_truncated(clip, 3)
    assert [frame.state for frame in frames] == ["clean"] * 3 + ["concealed"] + ["clean"] * 6
    assert lost == 0


def test_the_neighbours_of_a_damaged_picture_are_tainted_where_deinterlacing_mixes_them(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", interlaced=True, pictures=30, key_interval=10)
    frames, _ = with_one_truncated(clip, 13)
    assert [frame.state for frame in frames] == [
        *["clean"] * 12,
        "tainted",
        "concealed",
        *["tainted"] * 7,
        *["clean"] * 9,
    ]
    whole = Decoded(clip).frames
    differ = [
        n
        for n, (one, other) in enumerate(zip(frames, whole, strict=True))
        if (one.planes()[0] != other.planes()[0]).any()
    ]
    assert {12, 13, 20} <= set(differ)
    assert set(differ) <= set(range(12, 21))


def with_one_truncated(clip: Path, broken: int) -> tuple[list[Frame], int]:
    """The frames of a clip of which one access unit lacks its second half, and how many are lost."""
    with open_source(FeedSettings(url=str(clip))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        frames: list[Frame] = []
        for number, unit in enumerate(segment.packets()):
            frames += decoder.decode(truncated(unit) if number == broken else unit)
        frames += decoder.flush()
    return frames, decoder.lost


def truncated(unit: SourcePacket) -> SourcePacket:
    """The access unit without its second half."""
    short = av.Packet(bytes(unit.packet)[: unit.packet.size // 2])
    short.pts, short.dts, short.time_base = unit.packet.pts, unit.packet.dts, unit.packet.time_base
    return replace(unit, packet=short)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4"])
def test_an_access_unit_of_nonsense_is_counted_and_ends_nothing(tmp_path: Path, codec: str) -> None:
    clip = make_clip(tmp_path / "clip.ts", codec=codec, pictures=60, key_interval=20)
    with open_source(FeedSettings(url=str(clip))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        frames, went_in = [], 0
        for number, unit in enumerate(segment.packets()):
            nonsense = av.Packet(np.random.default_rng(1).bytes(300))
            nonsense.pts, nonsense.time_base = unit.packet.pts, unit.packet.time_base
            frames += decoder.decode(replace(unit, packet=nonsense) if number == 13 else unit)
            went_in += 1
    assert len(frames) + decoder.lost == went_in == 60, "a loss is known before the end"
    assert {frame.state for frame in frames if frame.pts >= 20 * 3600} == {"clean"}


def test_a_damaged_key_frame_does_not_begin_a_feed(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=30, key_interval=10)
    with open_source(FeedSettings(url=str(clip))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        frames = []
        for number, unit in enumerate(segment.packets()):
            unit.packet.is_corrupt = number == 0
            frames += decoder.decode(unit)
    assert [read_number(frame.planes()[0]) for frame in frames] == list(range(10, 30))
    assert decoder.lost == 10


def test_an_access_unit_whose_lengths_are_wrong_is_left_out_and_the_next_is_marked(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mkv", pictures=30, key_interval=10)
    with av.open(str(clip)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        wrong = bytes(packets[13])
    data = clip.read_bytes()
    assert data.count(wrong) == 1
    clip.write_bytes(data.replace(wrong, b"\xff\xff" + wrong[2:]))
    decoded = Decoded(clip)
    assert decoded.numbers == [*range(13), *range(14, 30)]
    assert decoded.states == ["clean"] * 13 + ["concealed"] + ["tainted"] * 5 + ["clean"] * 10


def test_a_picture_that_comes_out_twice_is_one_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlainPictures, "add", lambda _, picture: [picture, picture])
    decoded = Decoded(make_clip(tmp_path / "clip.ts", pictures=10))
    assert (decoded.numbers, decoded.lost) == (list(range(10)), 0)


def test_pictures_that_the_deinterlacer_cannot_give_at_the_end_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flush(*arguments: object) -> None:
        raise av.error.InvalidDataError(1, "on purpose")

    clip = make_clip(tmp_path / "clip.ts", pictures=10, interlaced=True)
    monkeypatch.setattr(PlainPictures, "flush", flush)
    with open_source(FeedSettings(url=str(clip))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        frames = [frame for packet in segment.packets() for frame in decoder.decode(packet)]
        frames += decoder.flush()
    assert 0 < decoder.lost == 10 - len(frames)
