from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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


def decoded_without(clip: Path, missing: int | None = None) -> tuple[dict[int, Frame], int]:
    """The pictures of a clip by their times where one access unit is left out, and how many others gave none."""
    with open_source(FeedSettings(url=str(clip))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        units = [unit for number, unit in enumerate(segment.packets()) if number != missing]
        frames = [frame for unit in units for frame in decoder.decode(unit)] + decoder.flush()
    return {round(float(frame.pts * frame.time_base) * 25): frame for frame in frames}, decoder.lost
