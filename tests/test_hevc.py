from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stream.decode import Decoder
from stream.frame import Frame
from stream.settings import FeedSettings
from stream.source import open_source
from tests.clips import make_clip


def x265(more: str, **encoding: Any) -> dict[str, Any]:
    """An encoding whose B-frames are where they are told to be."""
    params = f"log-level=none:pools=1:frame-threads=1:b-adapt=0:rc-lookahead=20:{more}"
    return {"options": {"x265-params": params}} | encoding


@pytest.mark.parametrize(
    "encoding",
    {
        "plain": {},
        "b-frames": x265("b-pyramid=0:open-gop=0", b_frames=2),
        "b-pyramid": x265("b-pyramid=1:ref=5:open-gop=0", b_frames=7),
        "open gop": x265("open-gop=1", b_frames=3),
        "leading pictures": x265("open-gop=0:radl=2:keyint=20:min-keyint=20", b_frames=4),
        "temporal layers": x265("temporal-layers=3", b_frames=7),
        "slices": x265("slices=3"),
        "references": x265("ref=6", b_frames=3),
        "short groups": {"key_interval": 3},
    }.items(),
    ids=lambda value: value[0],
)
def test_no_picture_that_refers_to_a_missing_one_is_shown(tmp_path: Path, encoding: tuple[str, dict[str, Any]]) -> None:
    """HEVC lists all references of a picture (clause 8.3.2), and FFmpeg decodes none that lacks one."""
    made: dict[str, Any] = {"codec": "libx265", "pictures": 60, "key_interval": 20} | encoding[1]
    clip = make_clip(tmp_path / "clip.ts", **made)
    whole, _ = decoded_without(clip)
    assert len(whole) == 60
    fewest = 59
    for missing in range(19, 42):
        holed, lost = decoded_without(clip, missing)
        fewest = min(fewest, len(holed))
        assert len(holed) + lost == 59
        for number, frame in holed.items():
            assert (frame.planes()[0] == whole[number].planes()[0]).all(), (missing, number, frame.state)
    assert fewest < 59


def test_a_recording_whose_parameter_sets_are_stored_apart_and_change_is_decoded_with_the_new_ones(
    tmp_path: Path,
) -> None:
    """FFmpeg puts the first ones in front of all key frames."""
    header_bytes = 13
    sizes = ((160, 120), (320, 240), (160, 120))
    clips = [
        make_clip(tmp_path / f"{number}.flv", codec="libx265", pictures=20, key_interval=10, size=size)
        for number, size in enumerate(sizes)
    ]
    whole = tmp_path / "whole.flv"
    whole.write_bytes(clips[0].read_bytes() + b"".join(clip.read_bytes()[header_bytes:] for clip in clips[1:]))
    pictures = luma(whole)
    assert [(plane.shape[1], state) for plane, state in pictures] == [(w, "clean") for w, _ in sizes for _ in range(20)]
    expected = [plane for clip in clips for plane, _ in luma(clip)]
    assert all((plane == other).all() for (plane, _), other in zip(pictures, expected, strict=True))


def luma(clip: Path) -> list[tuple[NDArray[np.uint8], str]]:
    """Luma and state of each picture of a clip."""
    with open_source(FeedSettings(url=str(clip))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        frames = [frame for unit in segment.packets() for frame in decoder.decode(unit)] + decoder.flush()
    return [(np.array(frame.planes()[0]), frame.state) for frame in frames]


def decoded_without(clip: Path, missing: int | None = None) -> tuple[dict[int, Frame], int]:
    """The pictures of a clip by their times where one access unit is left out, and how many others gave none."""
    with open_source(FeedSettings(url=str(clip))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        units = [unit for number, unit in enumerate(segment.packets()) if number != missing]
        frames = [frame for unit in units for frame in decoder.decode(unit)] + decoder.flush()
    return {round(float(frame.pts * frame.time_base) * 25): frame for frame in frames}, decoder.lost
