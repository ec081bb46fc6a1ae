from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from stream.codecs.h264 import recovery_count
from stream.decode import Decoder
from stream.frame import Frame, plane_view
from stream.settings import FeedSettings
from stream.source import open_source
from stream.sources.fields import rewritten
from tests.access_units import coded, is_referred, nal, units_of
from tests.clips import make_clip


@pytest.mark.parametrize("encoding", [{}, {"b_frames": 2}, {"options": {"slices": "4"}}], ids=str)
def test_pictures_that_follow_from_a_missing_one_are_tainted_until_the_next_key_frame(
    tmp_path: Path, encoding: dict[str, Any]
) -> None:
    made = make_clip(tmp_path / "clip.ts", pictures=60, key_interval=20, **encoding)
    with open_source(FeedSettings(url=str(made))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        frames = []
        for number, unit in enumerate(segment.packets()):
            if number != 25 or not is_referred(bytes(unit.packet)):
                frames += decoder.decode(unit)
        frames += decoder.flush()
    states = {round(float(frame.pts * frame.time_base) * 25): frame.state for frame in frames}
    assert decoder.lost == 0
    if len(states) < 60:
        [missing] = set(range(60)) - set(states)
        assert {state for number, state in states.items() if missing < number < 40} <= {"tainted", "concealed"}
    assert {state for number, state in states.items() if number < 20 or number >= 40} == {"clean"}


@pytest.mark.parametrize(
    ("size", "missing"),
    [
        ((160, 120), {19}),
        ((160, 120), {32}),
        ((160, 120), {39}),
        ((160, 120), {32, 66}),
        ((160, 120), {32, 69}),
        ((640, 64), {19, 39}),
        ((640, 64), {39, 59}),
    ],
    ids=[
        "in front of a renewal",
        "with no picture until one",
        "later",
        "again in the next one",
        "again at its end",
        "in front of two that take as long as it is to the next",
        "in front of two later ones",
    ],
)
def test_no_picture_that_is_only_being_renewed_passes_as_clean_after_a_missing_one(
    tmp_path: Path, size: tuple[int, int], missing: set[int]
) -> None:
    """With intra refresh, where what counts as a key frame only begins to renew the picture."""
    made = make_clip(tmp_path / "clip.ts", size=size, pictures=90, key_interval=20, options={"intra-refresh": "1"})
    whole, holed = decoded_without(made), decoded_without(made, missing)
    wrong = {
        number: frame.state
        for number, frame in holed.items()
        if np.abs(frame.planes()[0].astype(int) - whole[number].planes()[0]).mean() > 0.5
    }
    assert wrong
    assert "clean" not in wrong.values()
    assert holed[89].state == "clean"


@pytest.mark.parametrize("missing", [31, 33, 47])
def test_of_renewals_that_overlap_one_that_began_after_the_missing_picture_must_be_complete(
    tmp_path: Path, missing: int
) -> None:
    """Each picture of the second half of a renewal says that with it another one begins, to the end of the next."""
    made = make_clip(tmp_path / "a.ts", size=(640, 64), pictures=120, key_interval=20, options={"intra-refresh": "1"})
    units = units_of(made)
    for number, unit in enumerate(units):
        if number % 20 >= 10:
            at = first_slice(unit)
            units[number] = unit[:at] + recovery_point(39 - number % 20) + unit[at:]
    overlapping = tmp_path / "overlapping.h264"
    overlapping.write_bytes(b"".join(units))
    whole = {frame.source_sha256: frame for frame in decoded_without(overlapping).values()}
    holed = decoded_without(overlapping, {missing}).values()
    wrong = [frame for frame in holed if (frame.planes()[0] != whole[frame.source_sha256].planes()[0]).any()]
    assert {frame.state for frame in wrong} == {"tainted"}
    assert [frame.state for frame in holed][-40:] == ["clean"] * 40


def first_slice(unit: bytes) -> int:
    """Where it begins."""
    return next(match.start() for match in re.finditer(rb"\x00\x00\x01", unit) if unit[match.end()] & 31 in (1, 5))


def recovery_point(count: int) -> bytes:
    """A message that so many pictures later all is whole."""
    body = coded(count) + "1000" + "1"
    body += "0" * (-len(body) % 8)
    return nal(0x06, f"{6:08b}{len(body) // 8:08b}{body}")


@pytest.mark.parametrize(("b_frames", "clean_again"), [(0, 59), (2, 85)])
def test_pictures_are_clean_again_as_soon_as_the_stream_says_that_they_are_renewed(
    tmp_path: Path, b_frames: int, clean_again: int
) -> None:
    """Not at the next key frame alone, the one at 100; of pictures that others do not refer to nothing is counted."""
    options = {"x264-params": "intra-refresh=1:b-adapt=0:b-pyramid=none"}
    made = make_clip(tmp_path / "clip.ts", pictures=120, key_interval=50, b_frames=b_frames, options=options)
    whole, holed = decoded_without(made), decoded_without(made, {22})
    wrong = {number for number, frame in holed.items() if (frame.planes()[0] != whole[number].planes()[0]).any()}
    assert 50 < max(wrong) < clean_again
    assert next(number for number, frame in holed.items() if number > 22 and frame.state == "clean") == clean_again
    assert {frame.state for number, frame in holed.items() if number >= clean_again} == {"clean"}


@pytest.mark.parametrize(
    ("bodies", "count"),
    [
        ([b"\x06\x02\x15\x10\x80"], 9),
        ([b"\x05\xff\x01" + bytes(range(1, 256)) + b"\x07", b"\x01\x01\x06\x06\x01\xc0\x80"], 0),
        ([b"\x01\x01\x06\x80"], None),
        ([b"\x06\x02\x00"], None),
        ([b"\xff" * 5000], None),
        ([], None),
    ],
    ids=["alone", "after others", "of another type", "cut off", "without an end", "none"],
)
def test_a_recovery_point_says_how_many_pictures_it_takes(bodies: list[bytes], count: int | None) -> None:
    assert recovery_count(bodies) == count


def decoded_without(clip: Path, missing: Collection[int] = ()) -> dict[int, Frame]:
    """The pictures of a clip by their numbers, where some access units are left out."""
    with open_source(FeedSettings(url=str(clip))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        units = [unit for number, unit in enumerate(segment.packets()) if number not in missing]
        frames = [frame for unit in units for frame in decoder.decode(unit)] + decoder.flush()
    return {round(float(frame.pts * frame.time_base) * 25): frame for frame in frames}


@pytest.mark.parametrize("b_frames", [1, 2, 3])
def test_pictures_that_are_shown_before_a_damaged_one_and_refer_to_it_do_not_pass_as_clean(
    tmp_path: Path, b_frames: int
) -> None:
    params = {"x264-params": "b-adapt=0:b-pyramid=none"}
    made = make_clip(tmp_path / "clip.ts", pictures=60, key_interval=20, b_frames=b_frames, options=params)
    units = units_of(made)
    [number, *_] = [number for number in range(25, 40) if is_referred(units[number])]
    assert not is_referred(units[number + 1])
    whole, damaged = decoded(made), decoded(made, {number: units[number][: len(units[number]) // 3]})
    wrong = {shown: state for shown, (state, luma) in damaged.items() if (luma != whole[shown][1]).any()}
    assert len(wrong) > b_frames
    assert "clean" not in wrong.values(), wrong
    assert {state for shown, (state, _) in damaged.items() if shown < 20 or shown >= 40} == {"clean"}


def test_nothing_of_a_damaged_picture_is_left_in_the_key_frame_after_it(tmp_path: Path) -> None:
    """With CAVLC, where FFmpeg keeps coefficients of a block that it gives up, and adds them to another picture's."""
    made = make_clip(tmp_path / "clip.ts", pictures=40, key_interval=20, options={"x264-params": "cabac=0"})
    whole, units = decoded(made), units_of(made)
    spoilt_by_ffmpeg = 0
    for cut in range(300, len(units[19]) - 100, 40):
        hole = units[19][:cut] + units[19][cut + 100 :]
        damaged = decoded(made, {19: hole})
        assert len(damaged) == 40
        assert {shown for shown, (_, luma) in damaged.items() if (luma != whole[shown][1]).any()} <= {19}, cut
        alone = ffmpeg_alone([*units[:19], hole, *units[20:]])
        spoilt_by_ffmpeg += (alone[20] != whole[20][1]).any()
    assert spoilt_by_ffmpeg


@pytest.mark.parametrize(
    ("option", "b_frames", "number"), [("open-gop=1:b-adapt=0", 3, 16), ("intra-refresh=1", 0, 19)]
)
def test_a_key_frame_that_a_damaged_picture_is_left_in_does_not_pass_as_clean(
    tmp_path: Path, option: str, b_frames: int, number: int
) -> None:
    """Where no decoder can begin anew with the key frame, since pictures after it may refer to those before it."""
    params = {"x264-params": f"{option}:cabac=0:keyint=20:min-keyint=20:scenecut=0"}
    made = make_clip(
        tmp_path / "clip.ts", pictures=90, key_interval=20, b_frames=b_frames, bit_rate=800_000, options=params
    )
    whole, units = decoded(made), units_of(made)
    spoilt = 0
    for cut in range(200, len(units[number]) - 100, 100):
        damaged = decoded(made, {number: units[number][:cut]})
        wrong = {shown: state for shown, (state, luma) in damaged.items() if (luma != whole[shown][1]).any()}
        assert "clean" not in wrong.values(), (cut, wrong)
        assert damaged[89][0] == "clean"
        spoilt += 20 in wrong
    assert spoilt


def decoded(clip: Path, changed: dict[int, bytes] | None = None) -> dict[int, tuple[str, NDArray[np.uint8]]]:
    """State and luma of the pictures of a clip by their numbers, where some access units are not what they were."""
    with open_source(FeedSettings(url=str(clip))) as source:
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        frames: list[Frame] = []
        for number, unit in enumerate(segment.packets()):
            data = (changed or {}).get(number, bytes(unit.packet))
            frames += decoder.decode(replace(unit, packet=rewritten(unit.packet, data)))
        frames += decoder.flush()
    first = frames[0].pts
    return {(frame.pts - first) // 3600: (frame.state, frame.planes()[0].copy()) for frame in frames}


def ffmpeg_alone(units: list[bytes]) -> list[NDArray[np.uint8]]:
    """Luma of the pictures, by FFmpeg's decoder as it is."""
    context = av.CodecContext.create("h264", "r")
    assert isinstance(context, av.VideoCodecContext)
    context.thread_count = 1
    pictures = [picture for unit in units for picture in context.decode(av.Packet(unit))] + context.decode(None)
    return [plane_view(picture.planes[0]) for picture in pictures]
