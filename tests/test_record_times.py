from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import pytest

from stream import record as module
from stream.wire.messages import Message
from tests.clips import make_clip
from tests.doubling import DoublingEngine
from tests.published import TICKS
from tests.recorded import changed, pictures, played, record, units
from tests.relaying import recording, replayed


def test_pictures_in_another_order_than_they_are_decoded_in_keep_both_times(tmp_path: Path) -> None:
    shown = [0, 3, 1, 2]
    messages = [
        changed(message, pts=(1 + place) * TICKS, dts=index * TICKS)
        for index, (place, message) in enumerate(zip(shown, pictures(4), strict=True))
    ]
    [path] = record(tmp_path, messages).paths
    with av.open(str(path)) as container:
        times = [(packet.dts, packet.pts) for packet in container.demux(video=0) if packet.size]
    first = times[0][0] or 0
    assert [((dts or 0) - first, (pts or 0) - first) for dts, pts in times] == [
        (index * TICKS, (1 + place) * TICKS) for index, place in enumerate(shown)
    ]


ORDERS = {"b-frames": [0, 3, 1, 2], "pyramid": [0, 4, 2, 1, 3], "open group": [3, 1, 2, 6, 4, 5]}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("unknown", [2, 30], ids=["as in Matroska", "as over RTP"])
def test_a_cameras_pictures_in_another_order_are_all_kept_where_nobody_says_when_to_decode_them(
    order: list[int], unknown: int, tmp_path: Path
) -> None:
    """FFmpeg does not know it of the first ones in Matroska, and takes the time to show for it over RTP."""
    camera = [replace(message, kind="source") for message in pictures(30, keys_every=len(order))]
    places = [len(order) * (number // len(order)) + order[number % len(order)] for number in range(30)]
    messages = [
        changed(message, pts=place * TICKS, dts=None if number < unknown else sorted(places)[number - 2] * TICKS)
        for number, (message, place) in enumerate(zip(camera, places, strict=True))
    ]
    recorder = record(tmp_path, messages, kind="source")
    assert (recorder.written, recorder.lost) == ({"source": 30}, {})
    [path] = recorder.paths
    shown = [pts or 0 for pts, _ in units(path, "video")]
    assert [round((pts - shown[0]) / TICKS) + order[0] for pts in shown] == places


def test_a_cameras_clock_that_was_set_back_leaves_the_times_of_the_pictures_before_it(tmp_path: Path) -> None:
    camera = [replace(message, kind="source") for message in pictures(20, keys_every=20, start=90_000_000)]
    messages = [changed(m, pts=n * TICKS) if n >= 15 else m for n, m in enumerate(camera)]
    recorder = record(tmp_path, messages, kind="source")
    assert (recorder.written, recorder.lost) == ({"source": 15}, {"time jumps back": 5})
    times = [pts or 0 for pts, _ in units(recorder.paths[0], "video")]
    assert {after - before for before, after in pairwise(times)} == {TICKS}


AN_HOUR = 3600 * 90_000


def from_a_camera(amount: int, keys_every: int, ahead: Iterable[int]) -> list[Message]:
    """Pictures as a camera sent them, some of which have stamps an hour ahead."""
    camera = [replace(message, kind="source") for message in pictures(amount, keys_every=keys_every)]
    return [changed(m, pts=n * TICKS + AN_HOUR) if n in ahead else m for n, m in enumerate(camera)]


def steps(path: Path) -> list[int]:
    """Ticks between pictures."""
    return [(after or 0) - (before or 0) for (before, _), (after, _) in pairwise(units(path, "video"))]


@pytest.mark.parametrize(
    "wild",
    [range(1), range(14, 15), range(12, 17), range(10, 11), range(19, 20)],
    ids=["the first", "one in a group", "some in a group", "a key frame", "the last of a group"],
)
def test_stamps_far_ahead_for_a_moment_cost_no_picture_and_move_none_after_them(wild: range, tmp_path: Path) -> None:
    recorder = record(tmp_path, from_a_camera(30, 10, wild), kind="source")
    assert (recorder.written, recorder.lost) == ({"source": 30}, {})
    assert [steps(path) for path in recorder.paths] == [[TICKS] * 29]


def test_a_stamp_far_ahead_costs_no_picture_where_what_comes_after_it_is_not_there_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_GROUP", 20)
    recorder = record(tmp_path, from_a_camera(50, 1000, range(19, 20)), kind="source")
    assert (recorder.written, recorder.lost) == ({"source": 50}, {})
    assert [steps(path) for path in recorder.paths] == [[TICKS] * 49]


def test_pictures_that_are_many_seconds_apart_keep_their_times(tmp_path: Path) -> None:
    camera = [changed(m, pts=n * 10 * 90_000) for n, m in enumerate(from_a_camera(6, 1000, ()))]
    [path] = record(tmp_path, camera, kind="source").paths
    assert steps(path) == [10 * 90_000] * 5


@pytest.mark.parametrize("longest_group", [1000, 16])
def test_a_cameras_clock_that_was_set_ahead_is_followed(
    longest_group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_GROUP", longest_group)
    recorder = record(tmp_path, from_a_camera(30, 1000, range(15, 30)), kind="source")
    assert (recorder.written, recorder.lost) == ({"source": 30}, {})
    [path] = recorder.paths
    assert sum(steps(path)) == 29 * TICKS + AN_HOUR
    assert sorted(steps(path))[:-1] == [TICKS] * 28


@pytest.mark.parametrize("codec", ["av1", "mjpeg"])
def test_the_last_picture_of_a_file_lasts_as_long_as_the_others(codec: str, tmp_path: Path) -> None:
    if codec == "mjpeg":
        clip = make_clip(tmp_path / "clip.avi", codec="mjpeg", pix_fmt="yuvj420p", pictures=11)
        _, messages = replayed(DoublingEngine(), recording(clip))
        recorder = record(tmp_path / "recorded", messages, kind="source")
    else:
        recorder = record(tmp_path / "recorded", pictures(11, codec))  # the last one is a key frame, and alone
    with av.open(str(recorder.paths[0])) as container:
        lasts = [float(packet.duration * packet.time_base) for packet in container.demux(video=0) if packet.size]
    assert lasts == [pytest.approx(1 / 25)] * 11


def test_a_picture_that_is_to_be_shown_before_it_is_decoded_is_shown_then_and_ends_nothing(tmp_path: Path) -> None:
    shown = list(pictures(10))
    shown[4] = changed(shown[4], pts=(shown[4].header.pts or 0) - TICKS, dts=shown[4].header.pts)
    recorder = record(tmp_path, shown)
    assert (recorder.written, recorder.lost) == ({"video": 10}, {})
    times = [frame.pts or 0 for frame in played(recorder.paths[0])]
    assert {after - before for before, after in pairwise(times)} == {TICKS}


def test_a_picture_without_a_time_is_counted_and_left_out(tmp_path: Path) -> None:
    messages = list(pictures(10))
    messages[5] = changed(messages[5], pts=None)
    recorder = record(tmp_path, messages)
    assert recorder.written == {"video": 9}
    assert recorder.lost == {"no time stamp": 1}
