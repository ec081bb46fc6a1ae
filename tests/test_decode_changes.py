"""What changes in the middle of a stream: the decoder goes on with the next key frame, and nothing is lost."""

from __future__ import annotations

from itertools import chain, groupby
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from engines.colour import Colour
from tests.clips import PATCHES, joined, make_clip, read_patches
from tests.decoding import Decoded

COUNT = 12
"""Pictures of each part."""
BASE: dict[str, Any] = {"pictures": COUNT, "key_interval": 50, "bit_rate": 2_000_000}
FULL: dict[str, Any] = {"pix_fmt": "yuvj420p", "full_range": True}

CHANGES: dict[str, dict[str, Any]] = {
    "size": {"size": (320, 240)},
    "odd size": {"size": (194, 146)},
    "rate": {"rate": 50},
    "slower": {"rate": 5},
    "full range": FULL,
    "matrix": {"matrix": "bt709"},
    "full range and matrix": FULL | {"matrix": "bt709"},
    "4:2:2": {"pix_fmt": "yuv422p"},
    "4:4:4": {"pix_fmt": "yuv444p"},
    "10 bit": {"pix_fmt": "yuv420p10le"},
    "10 bit 4:2:2": {"pix_fmt": "yuv422p10le"},
    "everything": {"size": (320, 240), "rate": 50, "pix_fmt": "yuv422p10le", "matrix": "bt709"},
}
H264: dict[str, dict[str, Any]] = {
    "interlaced": {"interlaced": True},
    "interlaced, matrix": {"interlaced": True, "matrix": "bt709"},
    "interlaced, full range": FULL | {"interlaced": True},
    "profile": {"options": {"profile": "baseline"}},
}
MPEG4 = {name: CHANGES[name] for name in ("size", "odd size", "rate", "slower")} | {"interlaced": {"interlaced": True}}
MJPEG: dict[str, dict[str, Any]] = {
    "size": {"size": (320, 240)},
    "odd size": {"size": (194, 146)},
    "4:2:0": {"pix_fmt": "yuvj420p"},
    "4:4:4": {"pix_fmt": "yuvj444p"},
}
CASES = [
    *(("libx264", "ts", name, change) for name, change in (CHANGES | H264).items()),
    *(("libx265", "ts", name, change) for name, change in CHANGES.items()),
    *(("mpeg4", "ts", name, change) for name, change in MPEG4.items()),
    *(("mjpeg", "mjpeg", name, change) for name, change in MJPEG.items()),
]
cases = pytest.mark.parametrize(
    ("codec", "suffix", "change"),
    [(codec, suffix, change) for codec, suffix, _, change in CASES],
    ids=[f"{codec} {name}" for codec, _, name, _ in CASES],
)


def parts(folder: Path, codec: str, suffix: str, change: dict[str, Any]) -> list[Path]:
    """A clip, one that is changed, and one as the first."""
    base = BASE | {"codec": codec}
    if codec == "mjpeg":
        base |= {"pix_fmt": "yuvj422p", "full_range": True, "bit_rate": 4_000_000}
    return [
        make_clip(folder / f"part{number}.{suffix}", **(base | changed))
        for number, changed in enumerate(({}, change, {}))
    ]


def in_one(path: Path, clips: list[Path]) -> Path:
    if path.suffix == ".ts":
        return joined(path, *clips)
    path.write_bytes(b"".join(clip.read_bytes() for clip in clips))
    return path


@cases
def test_no_access_unit_is_lost_and_every_picture_shows_what_it_should(
    tmp_path: Path, codec: str, suffix: str, change: dict[str, Any]
) -> None:
    decoded = Decoded(in_one(tmp_path / f"clip.{suffix}", parts(tmp_path, codec, suffix, change)))
    assert decoded.numbers == [*range(COUNT)] * 3
    assert (decoded.lost, set(decoded.states)) == (0, {"clean"})
    width, height = change.get("size", (160, 120))
    sizes = [(frame.width, frame.height) for frame in decoded.frames]
    assert sizes == [(160, 120)] * COUNT + [(width, height)] * COUNT + [(160, 120)] * COUNT
    for frame in decoded.frames:
        assert read_patches(*frame.planes()) == pytest.approx(np.array(PATCHES), abs=4)
    full = codec == "mjpeg"
    before = Colour("bt601", full)
    colour = Colour(change.get("matrix", "bt601"), change.get("full_range", full))
    colours = [colour for colour, _ in groupby(frame.colour for frame in decoded.frames)]
    assert colours == ([before] if colour == before else [before, colour, before])


@pytest.mark.parametrize("rate", [5, 50])
@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4"])
def test_times_tell_when_the_rate_of_pictures_changes(tmp_path: Path, codec: str, rate: int) -> None:
    decoded = Decoded(in_one(tmp_path / "clip.ts", parts(tmp_path, codec, "ts", {"rate": rate})))
    times = np.array([float(frame.pts * frame.time_base) for frame in decoded.frames])
    rates = [25] * COUNT + [rate] * COUNT + [25] * (COUNT - 1)
    assert np.diff(times) == pytest.approx(1 / np.array(rates), abs=0.001)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_grey_comes_and_goes(tmp_path: Path, codec: str) -> None:
    decoded = Decoded(in_one(tmp_path / "clip.ts", parts(tmp_path, codec, "ts", {"pix_fmt": "gray"})))
    assert decoded.numbers == [*range(COUNT)] * 3
    assert [frame.colour.grey for frame in decoded.frames] == [False] * COUNT + [True] * COUNT + [False] * COUNT
    assert decoded.lost == 0


@pytest.mark.parametrize(("codec", "last"), [("libx264", COUNT), ("libx265", COUNT), ("mpeg4", COUNT - 1)])
def test_b_frames_come_and_go(tmp_path: Path, codec: str, last: int) -> None:
    """FFmpeg gives up the last picture of MPEG-4 with B-frames when they end; it is in front of the new key frame."""
    decoded = Decoded(in_one(tmp_path / "clip.ts", parts(tmp_path, codec, "ts", {"b_frames": 2})))
    assert decoded.numbers == [*chain(range(COUNT), range(last), range(COUNT))]
    assert len(decoded.frames) + decoded.lost == 3 * COUNT


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4"])
def test_a_camera_that_begins_its_transport_stream_anew_loses_no_picture(tmp_path: Path, codec: str) -> None:
    clips = parts(tmp_path, codec, "ts", {"size": (320, 240)})
    whole = tmp_path / "clip.ts"
    whole.write_bytes(b"".join(clip.read_bytes() for clip in clips))
    decoded = Decoded(whole)
    assert decoded.numbers == [*range(COUNT)] * 3
    assert decoded.lost == 0
    starts = [decoded.states[COUNT * part] for part in range(3)]
    assert starts == ["clean"] * 3, "key frames are whole"


def test_a_change_without_a_key_frame_of_its_own_is_waited_out(tmp_path: Path) -> None:
    small = make_clip(tmp_path / "small.ts", **BASE)
    large = make_clip(tmp_path / "large.ts", **(BASE | {"size": (320, 240), "key_interval": 6}))
    decoded = Decoded(joined(tmp_path / "clip.ts", small, without_first(large), small))
    assert len(decoded.frames) + decoded.lost == 3 * COUNT - 1
    right = [number for number, frame in zip(decoded.numbers, decoded.frames, strict=True) if frame.state == "clean"]
    assert right == [*range(COUNT), *range(6, COUNT), *range(COUNT)]


def without_first(clip: Path) -> Path:
    """The clip without its first access unit."""
    path = clip.with_stem("rest")
    with av.open(str(clip)) as source, av.open(str(path), "w") as container:
        video = source.streams.video[0]
        into = container.add_stream_from_template(video)
        for packet in [packet for packet in source.demux(video) if packet.size][1:]:
            packet.stream = into
            container.mux(packet)
    return path
