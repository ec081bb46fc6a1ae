import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import IO, Any, cast

import av
import msgspec
import pytest

from engines.colour import Colour
from stream import record as module
from stream.encode import Encoder
from stream.errors import StreamError
from stream.frame import plane_view
from stream.publish import Publisher
from stream.record import Recorder
from stream.settings import EncoderSettings
from stream.wire.messages import Header, Kind, Message, Numbering, encode_feeds
from tests.clips import make_clip
from tests.doubling import DoublingEngine
from tests.impostors import Impostor, hangs_up
from tests.published import TICKS, Camera, relay
from tests.test_encode import HEIGHT, WIDTH, planes
from tests.test_pipeline import recording, replayed
from tests.test_view import NO_LOGIN, repeating, status
from tests.waiting import DEADLINE, takes_less_than, wait_until
from tools.record import Silence

ROOT = Path(__file__).parents[1]
CAPTURED = 1_795_360_200_250_000_000
"""2026-11-22 15:10:00.250 UTC."""
PICTURE_NS = 40_000_000
LEAD = 3
"""Pictures by which data is earlier on the wire than those of its moment: nothing enhances it."""


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


def with_stamps(shown: Iterable[Message], stamps: Iterable[int | None]) -> list[Message]:
    """These pictures with the stamps that their source gave them, arrived at 25 a second."""
    return [
        changed(message, source_pts=stamp, received_ns=CAPTURED + number * PICTURE_NS)
        for number, (message, stamp) in enumerate(zip(shown, stamps, strict=True))
    ]


def beside_klv(shown: list[Message], offset: int = 700, lead: int = LEAD) -> list[Message]:
    """These pictures, and `lead` pictures earlier, as on the wire, the KLV that came with each one from the source: its
    number, and a stamp `offset` ticks after that of the picture."""
    klv = [
        data(number.to_bytes(2), (header.source_pts or 0) + offset, received_ns=header.received_ns)
        for number, header in enumerate(message.header for message in shown)
    ]
    places = {id(message): place for place, message in enumerate(shown)}
    places |= {id(message): place - lead - 0.5 for place, message in enumerate(klv)}
    return sorted([*shown, *klv], key=lambda message: places[id(message)])


def klv_offsets(paths: list[Path]) -> dict[int, int]:
    """By the number of each KLV packet in these files, by how many ticks it lies after the picture of that number,
    which must be in the same file."""
    offsets: dict[int, int] = {}
    first = 0
    for path in paths:
        shown = dict(enumerate((pts or 0 for pts, _ in units(path, "video")), first))
        numbered = [(int.from_bytes(unit), pts or 0) for pts, unit in units(path, "data")]
        offsets |= {number: pts - shown[number] for number, pts in numbered}
        first += len(shown)
    return offsets


def units(path: Path, kind: str) -> list[tuple[int | None, bytes]]:
    with av.open(str(path)) as container:
        return [
            (packet.pts, bytes(packet)) for packet in container.demux() if packet.size and packet.stream.type == kind
        ]


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
def test_what_is_recorded_plays_with_its_times_and_colours(codec: str, tmp_path: Path) -> None:
    recorder = record(tmp_path, pictures(35, codec, start=900_000_000))
    [path] = recorder.paths
    frames = played(path)
    assert len(frames) == 35
    times = [frame.pts for frame in frames if frame.pts is not None]
    assert {after - before for before, after in pairwise(times)} == {TICKS}
    assert {frame.time_base for frame in frames} == {Fraction(1, 90000)}
    assert {(frame.colorspace, frame.color_range, frame.width, frame.height) for frame in frames} == {
        (1, 2, WIDTH, HEIGHT)
    }
    assert recorder.written == {"video": 35}
    assert not recorder.lost


def test_access_units_are_kept_byte_for_byte(tmp_path: Path) -> None:
    messages = list(pictures(12))
    recorder = record(tmp_path, messages)
    delimiter = bytes.fromhex("00000001 09 f0")  # MPEG-TS wants one in front of each access unit
    assert [unit.removeprefix(delimiter) for _, unit in units(recorder.paths[0], "video")] == [
        message.payload for message in messages
    ]


def test_a_feed_without_key_frames_is_written_as_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_GROUP", 20)
    with Recorder(tmp_path, segment_seconds=1.0) as recorder:
        for message in pictures(110, keys_every=1000, key_interval=1000.0):
            recorder.write(message)
        assert recorder.written["video"] == 100
    assert (recorder.written["video"], len(recorder.paths)) == (110, 1)
    assert len(played(recorder.paths[0])) == 110


def test_a_segment_is_called_by_its_feed_and_the_capture_time_of_its_first_picture(tmp_path: Path) -> None:
    for _ in range(2):
        record(tmp_path, pictures(3))
    record(tmp_path, pictures(3, "av1"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "pier-20261122T151000.250Z-2.ts",
        "pier-20261122T151000.250Z.mp4",
        "pier-20261122T151000.250Z.ts",
    ]


def test_a_folder_may_have_a_colon_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [path] = record(Path("night 21:30"), list(pictures(3))).paths
    assert len(played(path)) == 3


def test_numbers_that_no_file_can_hold_end_the_recording_with_a_reason(tmp_path: Path) -> None:
    first, second, *_ = list(pictures(3))
    wild = changed(second, pts=2**62, time_base=Fraction(2**30, 1))
    with pytest.raises(StreamError, match="cannot record into"):
        record(tmp_path, [first, wild])


def test_mp4_says_when_it_began(tmp_path: Path) -> None:
    [path] = record(tmp_path, pictures(3, "av1")).paths
    with av.open(str(path)) as container:
        assert container.metadata["creation_time"].startswith("2026-11-22T15:10:00")


def test_segments_end_at_a_key_frame_once_they_are_long_enough(tmp_path: Path) -> None:
    recorder = record(tmp_path, pictures(100), segment_seconds=1.0)
    assert [len(played(path)) for path in recorder.paths] == [30, 30, 30, 10]
    assert all(played(path)[0].key_frame for path in recorder.paths)


@pytest.mark.parametrize(
    "change", [{"relay": "run-2"}, {"width": WIDTH // 2}, {"codec": "hevc"}, {"time_base": Fraction(1, 45000)}]
)
def test_a_change_of_the_stream_begins_a_new_segment(change: dict[str, object], tmp_path: Path) -> None:
    messages = [changed(message, **change) if index >= 10 else message for index, message in enumerate(pictures(20))]
    recorder = record(tmp_path, messages)
    assert len(recorder.paths) == 2
    assert recorder.written == {"video": 20}


def test_times_that_jump_back_begin_a_new_segment(tmp_path: Path) -> None:
    recorder = record(tmp_path, [*pictures(10, start=90_000), *pictures(10)])
    assert [len(played(path)) for path in recorder.paths] == [10, 10]


def test_a_picture_whose_time_does_not_grow_is_counted_and_left_out(tmp_path: Path) -> None:
    messages = list(pictures(10))
    recorder = record(tmp_path, [*messages[:5], messages[4], *messages[5:]])
    assert len(played(recorder.paths[0])) == 10
    assert recorder.lost == {"time jumps back": 1}


def test_nothing_is_recorded_before_the_first_key_frame(tmp_path: Path) -> None:
    recorder = record(tmp_path, [data(b"early", 0), *list(pictures(20))[4:]])
    assert len(played(recorder.paths[0])) == 10
    assert recorder.lost == {"no key frame": 7}


def test_a_feed_without_a_picture_leaves_no_file(tmp_path: Path) -> None:
    record(tmp_path / "new", [data(b"alone", 0)])
    assert list((tmp_path / "new").iterdir()) == []


def test_klv_is_kept_byte_for_byte_at_its_time(tmp_path: Path) -> None:
    messages = list(pictures(30))
    for index in (25, 15, 5):
        messages.insert(index, data(bytes([index]) * 300, index * TICKS - 1800))
    [path] = record(tmp_path, messages).paths
    shift = units(path, "video")[0][0] or 0
    assert [((pts or 0) - shift, unit) for pts, unit in units(path, "data")] == [
        (index * TICKS - 1800, bytes([index]) * 300) for index in (5, 15, 25)
    ]
    assert len(played(path)) == 30


def test_klv_with_a_stamp_that_is_set_back_loses_nothing(tmp_path: Path) -> None:
    messages: list[Message] = []
    for index, message in enumerate(pictures(30)):
        messages += [message, data(bytes([index]), index * TICKS - 45_000 * (index == 15))]
    recorder = record(tmp_path, messages)
    assert (recorder.written, recorder.lost) == ({"video": 30, "data": 30}, {})
    [path] = recorder.paths
    times, held = zip(*units(path, "data"), strict=True)
    assert held == tuple(bytes([index]) for index in range(30))
    assert sorted(times) == list(times)


def test_klv_without_times_is_kept_beside_the_picture_before_it(tmp_path: Path) -> None:
    messages = list(pictures(10))
    messages.insert(5, data(b"no time", None))
    [path] = record(tmp_path, messages).paths
    assert [unit for _, unit in units(path, "data")] == [b"no time"]


STAMPS_AFTER = {"at 0": 0, "far ahead": 450_000_000, "a little back": 30 * TICKS}


@pytest.mark.parametrize("stamp", STAMPS_AFTER.values(), ids=STAMPS_AFTER)
@pytest.mark.parametrize("at", [45, 50, 80], ids=["in a group of pictures", "at a key frame", "at a segment"])
def test_klv_stays_with_its_pictures_where_the_cameras_stamps_begin_anew(at: int, stamp: int, tmp_path: Path) -> None:
    stamps = [index * TICKS if index < at else stamp + (index - at) * TICKS for index in range(100)]
    shown = with_stamps(pictures(100), stamps)
    recorder = record(tmp_path, beside_klv(shown), segment_seconds=1.5)
    assert [len(units(path, "video")) for path in recorder.paths] == [40, 40, 20]
    assert recorder.lost == {"no key frame": LEAD + 1}
    assert klv_offsets(recorder.paths) == dict.fromkeys(range(LEAD + 1, 100), 700)


@pytest.mark.parametrize("stamp", STAMPS_AFTER.values(), ids=STAMPS_AFTER)
def test_klv_right_before_a_key_frame_with_which_stamps_begin_anew_lies_before_it(stamp: int, tmp_path: Path) -> None:
    stamps = [index * TICKS if index < 50 else stamp + (index - 50) * TICKS for index in range(100)]
    messages = beside_klv(with_stamps(pictures(100), stamps), offset=-700)
    assert klv_offsets(record(tmp_path, messages).paths) == dict.fromkeys(range(LEAD + 1, 100), -700)


def test_klv_stays_with_its_pictures_after_the_relay_has_begun_anew(tmp_path: Path) -> None:
    shown = [*pictures(25), *pictures(25, relay="run-2", start=450_000_000)]
    stamps = [450_000_000 + index * TICKS for index in range(50)]
    recorder = record(tmp_path, beside_klv(with_stamps(shown, stamps)))
    assert len(recorder.paths) == 2
    assert klv_offsets(recorder.paths) == dict.fromkeys(range(LEAD + 1, 50), 700)


def test_klv_that_comes_long_before_its_pictures_is_kept_in_their_segment(tmp_path: Path) -> None:
    shown = with_stamps(pictures(50), [450_000_000 + index * TICKS for index in range(50)])
    recorder = record(tmp_path, beside_klv(shown, lead=22), segment_seconds=0.3)
    assert len(recorder.paths) == 5
    assert klv_offsets(recorder.paths) == dict.fromkeys(range(23, 50), 700)


def test_klv_that_no_picture_comes_with_is_placed_by_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_GROUP", 5)
    shown = with_stamps(pictures(4), [450_000_000 + index * TICKS for index in range(4)])
    klv = [data((3).to_bytes(2), 450_000_000 + 3 * TICKS + number) for number in range(13)]
    [path] = record(tmp_path, [shown[0], klv[0], *shown[1:], *klv]).paths
    assert len(units(path, "data")) == 14
    assert klv_offsets([path]) == {3: 12}


def test_klv_lies_beside_the_picture_that_is_shown_at_its_moment(tmp_path: Path) -> None:
    order = [0, 3, 1, 2]
    messages = [
        changed(message, pts=(1 + place) * TICKS, dts=index * TICKS, source_pts=450_000_000 + place * TICKS)
        for index, (place, message) in enumerate(zip(order, pictures(4), strict=True))
    ]
    messages.insert(1, data(b"klv", 450_000_000 + 3 * TICKS))
    [path] = record(tmp_path, messages).paths
    assert units(path, "data")[0][0] == units(path, "video")[1][0]


def test_stamps_of_klv_may_have_another_unit_than_those_of_pictures(tmp_path: Path) -> None:
    shown = with_stamps(
        pictures(10), [*(450_000_000 + index * TICKS for index in range(5)), *range(0, 5 * TICKS, TICKS)]
    )
    klv = [
        changed(data(number.to_bytes(2), stamp + 7), time_base=Fraction(1, 1000), dts=0, received_ns=CAPTURED)
        for number, stamp in ((3, 5_000_000 + 3 * 40), (8, 3 * 40))
    ]
    assert klv_offsets(record(tmp_path, [*shown, *klv]).paths) == {3: 7 * 90, 8: 7 * 90}


@pytest.mark.parametrize("wild", [None, 1 << 62])
def test_a_picture_with_a_stamp_that_is_missing_or_wild_moves_no_klv(wild: int | None, tmp_path: Path) -> None:
    stamps = [450_000_000 + index * TICKS for index in range(30)]
    shown = with_stamps(pictures(30), stamps)
    messages = [changed(message, source_pts=wild) if message is shown[20] else message for message in beside_klv(shown)]
    assert klv_offsets(record(tmp_path, messages).paths) == dict.fromkeys(range(LEAD + 1, 30), 700)


@pytest.mark.parametrize("apart", [-3600, 3600])
def test_klv_on_a_clock_of_its_own_is_neither_kept_in_memory_nor_put_far_from_its_pictures(
    apart: int, tmp_path: Path
) -> None:
    shown = with_stamps(pictures(100, start=4000 * 90_000), [index * TICKS for index in range(100)])
    with Recorder(tmp_path) as recorder:
        for message in beside_klv(shown, offset=apart * 90_000):
            recorder.write(message)
            assert len(recorder._group) < 50
    assert recorder.written == {"video": 100, "data": 100 - LEAD - 1}
    assert len(recorder.paths) == 1
    assert all(abs(offset) < 10 * TICKS for offset in klv_offsets(recorder.paths).values())


def test_klv_with_one_wild_stamp_does_not_move_what_comes_after_it(tmp_path: Path) -> None:
    shown = list(pictures(30))
    klv = [data(bytes([index]), index * TICKS + (index == 12) * 2**32) for index in range(30)]
    recorder = record(tmp_path, [message for pair in zip(shown, klv, strict=True) for message in pair])
    stamps = [(pts or 0) // TICKS for pts, _ in units(recorder.paths[0], "data")]
    assert stamps == list(range(30))


def test_klv_without_times_is_kept_beside_the_picture_before_it_whatever_its_neighbours_tell(tmp_path: Path) -> None:
    messages: list[Message] = with_stamps(pictures(10), [450_000_000 + index * TICKS for index in range(10)])
    messages.insert(6, data((5).to_bytes(2), None))
    assert klv_offsets(record(tmp_path, messages).paths) == {5: 0}


def test_klv_without_times_lies_beside_the_picture_that_came_with_it_from_its_source(tmp_path: Path) -> None:
    shown = with_stamps(pictures(50), [450_000_000 + index * TICKS for index in range(50)])
    messages = [changed(each, pts=None) if each.kind == "data" else each for each in beside_klv(shown, lead=7)]
    recorder = record(tmp_path, messages, segment_seconds=0.3)
    assert len(recorder.paths) == 5
    assert klv_offsets(recorder.paths) == dict.fromkeys(range(8, 50), 0)


@pytest.mark.parametrize("kind", ["video", "source"])
def test_klv_keeps_its_stamps_where_pictures_do_not_tell_their_sources(kind: Kind, tmp_path: Path) -> None:
    shown = [replace(message, kind=kind) for message in [*pictures(50, start=450_000_000), *pictures(50)]]
    klv = [data(number.to_bytes(2), (message.header.pts or 0) + 700) for number, message in enumerate(shown)]
    recorder = record(tmp_path, [message for pair in zip(shown, klv, strict=True) for message in pair], kind=kind)
    assert len(recorder.paths) == 2
    assert klv_offsets(recorder.paths) == dict.fromkeys(range(100), 700)


@pytest.mark.parametrize("b_frames", [0, 2])
def test_klv_of_one_recording_after_another_lies_beside_its_pictures(b_frames: int, tmp_path: Path) -> None:
    for name in ("a.ts", "b.ts"):
        make_clip(tmp_path / name, pictures=75, klv=True, b_frames=b_frames)
    _, messages = replayed(DoublingEngine(), recording(tmp_path))
    [path] = record(tmp_path / "recorded", messages).paths
    recorded = [pts for pts, _ in units(path, "data")]
    shown = [pts for pts, _ in units(path, "video")]
    assert len(shown) == 150
    assert recorded == shown[len(shown) - len(recorded) :]
    assert len(recorded) > 100


def test_klv_that_begins_later_loses_nothing_but_begins_a_segment(tmp_path: Path) -> None:
    messages = list(pictures(40))
    messages.insert(25, data(b"late", 25 * TICKS))
    recorder = record(tmp_path, messages)
    assert [len(played(path)) for path in recorder.paths] == [20, 20]
    assert [unit for _, unit in units(recorder.paths[1], "data")] == [b"late"]
    assert recorder.written == {"video": 40, "data": 1}


def test_pictures_do_not_wait_in_memory_for_data_that_does_not_come(tmp_path: Path) -> None:
    messages = list(pictures(101))
    messages.insert(5, data(b"once", 5 * TICKS))
    with Recorder(tmp_path) as recorder:
        for message in messages:
            recorder.write(message)
        assert len(units(recorder.paths[0], "video")) >= 99


@pytest.mark.parametrize(("video", "data_codec"), [("av1", "klv"), ("h264", "tide tables")])
def test_data_that_the_file_cannot_hold_is_counted(video: str, data_codec: str, tmp_path: Path) -> None:
    messages = list(pictures(10, video))
    messages.insert(5, data(b"x", 5 * TICKS, data_codec))
    recorder = record(tmp_path, messages)
    assert len(played(recorder.paths[0])) == 10
    assert recorder.lost == {"not recordable": 1}


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
    assert recorder.lost == {"no time": 1}


def test_the_cameras_own_pictures_are_recorded_where_they_are_asked_for(tmp_path: Path) -> None:
    kinds: list[Kind] = ["video", "source"]
    messages = [replace(message, kind=kind) for kind in kinds for message in pictures(5)]
    recorder = record(tmp_path, messages, kind="source")
    assert recorder.written == {"source": 5}


def test_a_folder_that_may_not_be_written_to_is_told_before_anything_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with (
        pytest.raises(StreamError, match=f"cannot record into {re.escape(str(tmp_path))}: Permission denied"),
        Recorder(tmp_path, 5.0, "video"),
    ):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StreamError, match=f"cannot record into {re.escape(str(tmp_path))}/file"):
        record(tmp_path / "file", pictures(1))


@pytest.mark.parametrize("codec", ["smoke_signals", "vp8"])
def test_a_codec_that_no_file_can_hold_is_named_and_leaves_no_file(codec: str, tmp_path: Path) -> None:
    with pytest.raises(StreamError, match=codec):
        record(tmp_path, [changed(message, codec=codec) for message in pictures(2)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("room", "files"), [(4096, 1), (0, 0)])
def test_a_full_disk_ends_the_recording_with_its_reason_and_leaves_no_empty_file(
    room: int, files: int, tmp_path: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(StreamError, match=r"cannot record into .*File too large"):
            record(tmp_path, pictures(60))
        assert len(list(tmp_path.iterdir())) == files
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


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


@pytest.mark.parametrize(("codec", "groups_lost"), [("h264", 1), ("hevc", 1), ("av1", 2)])
def test_after_kill_9_all_but_the_last_groups_play(codec: str, groups_lost: int, tmp_path: Path) -> None:
    with (
        relay() as publisher,
        closing(Camera(publisher, codec=codec)) as camera,
        recording_program(publisher, "pier", tmp_path) as program,
    ):
        camera.wait_for_viewer()
        camera.show(53)  # five whole groups of ten and three pictures more
        whole = (6 - groups_lost) * 10

        def arrived() -> bool:
            return any(count_packets(path) >= whole for path in tmp_path.iterdir())

        wait_until(arrived, "writing the groups that have ended")
        os.kill(program.pid, signal.SIGKILL)
        assert program.wait(DEADLINE) == -signal.SIGKILL
    [path] = tmp_path.iterdir()
    frames = played(path)
    assert len(frames) >= whole
    for number, frame in enumerate(frames):
        assert plane_view(frame.planes[0]).mean() == pytest.approx(Camera.luma(number), abs=3)


def count_packets(path: Path) -> int:
    """Of a file that may have just begun."""
    try:
        return len(units(path, "video"))
    except (av.FFmpegError, IndexError):
        return 0


def test_the_command_finishes_its_file_when_it_is_asked_to_stop(tmp_path: Path) -> None:
    with relay() as publisher, recording_program(publisher, "pier", tmp_path) as program:
        camera = Camera(publisher)
        camera.wait_for_viewer()
        camera.show(31)  # the last one begins the fourth group, and so ends the third
        wait_until(lambda: any(count_packets(path) >= 30 for path in tmp_path.iterdir()), "writing three groups")
        program.terminate()
        output, _ = program.communicate(timeout=DEADLINE)
    assert program.returncode == 0
    assert len(played(next(tmp_path.iterdir()))) == 31
    assert "pier-" in output
    assert "31 pictures" in output


def test_the_command_names_also_the_file_that_begins_as_it_ends(tmp_path: Path) -> None:
    with relay() as publisher, recording_program(publisher, "pier", tmp_path, "--segment", "1ms") as program:
        camera = Camera(publisher)
        camera.wait_for_viewer()
        camera.show(15)  # the last five belong into a file of their own, which does not begin before their group ends
        wait_until(lambda: any(count_packets(path) >= 10 for path in tmp_path.iterdir()), "writing the first group")
        program.terminate()
        output, _ = program.communicate(timeout=DEADLINE)
    assert output.splitlines()[1:-1] == sorted(str(path) for path in tmp_path.iterdir())
    assert "15 pictures and 0 data packets in 2 files" in output


def test_a_log_on_a_full_disk_ends_no_recording(tmp_path: Path) -> None:
    with (
        relay() as publisher,
        closing(Camera(publisher)) as camera,
        Path("/dev/full").open("w") as log,
        recording_program(publisher, "pier", tmp_path, stdout=log, stderr=subprocess.DEVNULL) as program,
    ):
        camera.wait_for_viewer()
        camera.show(31)
        wait_until(lambda: any(count_packets(path) >= 30 for path in tmp_path.iterdir()), "a file")
        program.terminate()
        program.wait(DEADLINE)
    assert len(played(next(tmp_path.iterdir()))) == 31


def test_the_command_tells_that_nothing_comes(tmp_path: Path) -> None:
    with (
        relay() as publisher,
        recording_program(publisher, "peer", tmp_path, stderr=subprocess.PIPE) as program,
    ):
        camera = Camera(publisher)
        assert program.stderr is not None
        line = program.stderr.readline()
        wanted = f"no picture of feed peer at {publisher.endpoint}"
        assert line == f"{wanted} yet: is the relay running there, and does it have that feed?\n"
        camera.show()
        program.terminate()
        output, _ = program.communicate(timeout=DEADLINE)
    assert program.returncode == 0
    assert "0 pictures" in output


def test_the_command_tells_of_every_silence_what_the_relay_says(tmp_path: Path) -> None:
    feeds = {"pier": status("connecting", NO_LOGIN), "gate": status("live")}
    with (
        relay() as publisher,
        repeating(lambda: publisher.publish("*", "feeds", Header(), encode_feeds(feeds))),
        recording_program(publisher, "pier", tmp_path, stderr=subprocess.PIPE) as program,
    ):
        camera = Camera(publisher)
        assert program.stderr is not None
        wanted = f"no picture of feed pier at {publisher.endpoint}"
        assert program.stderr.readline() == f"{wanted} yet; the relay says: connecting: {NO_LOGIN}\n"
        camera.show(3)
        assert program.stderr.readline() == f"{wanted} for 5 s; the relay says: connecting: {NO_LOGIN}\n"
        del feeds["pier"]
        camera.show(3)
        assert program.stderr.readline() == f"{wanted} for 5 s; the relay has no feed pier; it has gate\n"
        program.terminate()
        assert program.wait(DEADLINE) == 0


def test_where_no_connection_begins_the_command_says_what_may_be_there(tmp_path: Path) -> None:
    with Impostor(hangs_up) as impostor:
        relay = cast("Publisher", SimpleNamespace(endpoint=f"tcp://127.0.0.1:{impostor.port}"))
        with recording_program(relay, "pier", tmp_path, stderr=subprocess.PIPE) as program:
            assert program.stderr is not None
            warned, told = program.stderr.readline(), program.stderr.readline()
    trouble = (
        f"what answers at {relay.endpoint} ends every connection before it begins: it is no relay, or an encrypted"
    )
    assert trouble in warned
    assert told.startswith(f"no picture of feed pier at {relay.endpoint} yet; {trouble}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "live"),
        (["--source"], "live, and may not publish the camera's own pictures (publish_source)"),
    ],
)
def test_the_command_tells_that_no_picture_comes_although_data_does(
    words: list[str], says: str, tmp_path: Path
) -> None:
    klv = Header(codec="klv", pts=0, time_base=Fraction(1, 90000))
    feeds = encode_feeds({"pier": status("live")})
    with (
        relay() as publisher,
        repeating(lambda: publisher.publish("*", "feeds", Header(), feeds)),
        repeating(lambda: publisher.publish("pier", "data", klv, b"x")),
        recording_program(publisher, "pier", tmp_path, *words, stderr=subprocess.PIPE) as program,
    ):
        assert program.stderr is not None
        late = Timer(DEADLINE, program.kill)
        late.start()
        line = program.stderr.readline()
        late.cancel()
    assert line == f"no picture of feed pier at {publisher.endpoint} yet; the relay says: {says}\n"


def test_a_feed_of_few_pictures_is_silent_only_after_more_than_its_usual_time() -> None:
    silence = Silence(100.0)
    assert (silence.due, silence.tell(is_well=True), silence.due) == (105.0, "yet", math.inf)
    for came in (106.0, 112.0, 118.0):
        silence.end(came)
        assert (silence.due, silence.tell(is_well=True)) == (came + 5, None)
    assert (silence.due, silence.tell(is_well=True), silence.due) == (136.0, "for 18 s", math.inf)


def test_a_feed_that_is_not_well_is_silent_at_once_however_few_pictures_it_has() -> None:
    silence = Silence(100.0)
    for came in (106.0, 166.0):
        silence.end(came)
    assert (silence.tell(is_well=False), silence.due) == ("for 5 s", math.inf)


def test_a_feed_of_many_pictures_is_silent_at_once_after_any_pause_before() -> None:
    silence = Silence(100.0)
    for came in (101.0, 701.0, 701.04):
        silence.end(came)
    assert (silence.tell(is_well=True), silence.due) == ("for 5 s", math.inf)


SOON = """
import tools.record
tools.record.SILENCE_SECONDS = 1.0
from tools.app import main
main()
"""
"""The command that looks into a silence after a second."""

WITHOUT_DESCRIPTORS = """
from resource import RLIMIT_NOFILE, getrlimit, setrlimit
import tools.record
ask = tools.record.listed_feeds
def listed_feeds(*words):
    limits = getrlimit(RLIMIT_NOFILE)
    setrlimit(RLIMIT_NOFILE, (3, limits[1]))
    try:
        return ask(*words)
    finally:
        setrlimit(RLIMIT_NOFILE, limits)
tools.record.listed_feeds = listed_feeds
"""
WITHOUT_THREADS = """
import tools.record
def listed_feeds(*_):
    raise RuntimeError("can't start new thread")
tools.record.listed_feeds = listed_feeds
"""
"""Put before it: the machine has none left for asking the relay."""


def test_the_command_waits_for_the_next_picture_of_a_feed_that_is_well(tmp_path: Path) -> None:
    feeds = {"pier": status("live")}
    with (
        relay() as publisher,
        repeating(lambda: publisher.publish("*", "feeds", Header(), encode_feeds(feeds))),
        recording_program(publisher, "pier", tmp_path, command=("-c", SOON), stderr=subprocess.PIPE) as program,
    ):
        camera = Camera(publisher)
        assert program.stderr is not None
        wanted = f"no picture of feed pier at {publisher.endpoint}"
        assert program.stderr.readline() == f"{wanted} yet; the relay says: live\n"
        camera.show()
        assert program.stderr.readline() == f"{wanted} for 3 s; the relay says: live\n"


@pytest.mark.parametrize("lack", [WITHOUT_DESCRIPTORS, WITHOUT_THREADS], ids=["descriptors", "threads"])
def test_a_relay_that_cannot_be_asked_ends_no_recording(lack: str, tmp_path: Path) -> None:
    command = ("-c", lack + SOON)
    with (
        relay() as publisher,
        recording_program(publisher, "pier", tmp_path, command=command, stderr=subprocess.PIPE) as program,
    ):
        camera = Camera(publisher)
        assert program.stderr is not None
        assert program.stderr.readline().endswith(" yet: is the relay running there, and does it have that feed?\n")
        camera.show(3)
        assert program.stderr.readline().endswith(" for 1 s: is the relay running there, and does it have that feed?\n")
        program.terminate()
        output, _ = program.communicate(timeout=DEADLINE)
    assert program.returncode == 0
    assert "3 pictures" in output


def test_a_command_that_asks_why_nothing_comes_ends_soon_when_it_is_asked_to_stop(tmp_path: Path) -> None:
    def seconds_to_end() -> float:
        with (
            relay() as publisher,
            recording_program(publisher, "pier", tmp_path, command=("-c", SOON), stderr=subprocess.PIPE) as program,
        ):
            wait_until(lambda: publisher.wait_for_viewer("*", 1.0), "the question")
            began = time.monotonic()
            program.terminate()
            _, told = program.communicate(timeout=DEADLINE)
            assert (program.returncode, told) == (0, "")
            return time.monotonic() - began

    assert takes_less_than(1.0, seconds_to_end)


ON_A_SMALL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from tools.app import main
main()
"""
"""The command where files have room for 4096 bytes."""


def test_a_full_disk_leaves_no_file_that_the_command_has_not_named_and_summed_up(tmp_path: Path) -> None:
    small = ("-B", "-c", ON_A_SMALL_DISK)
    with (
        relay() as publisher,
        closing(Camera(publisher)) as camera,
        recording_program(publisher, "pier", tmp_path, command=small, stderr=subprocess.PIPE) as program,
    ):
        camera.wait_for_viewer()
        camera.show(60)
        output, errors = program.communicate(timeout=DEADLINE)
    _, *named, summed_up = output.splitlines()
    assert named == [str(path) for path in tmp_path.iterdir()]
    assert len(named) == 1
    assert re.fullmatch(r"\d+ pictures and 0 data packets in 1 files", summed_up)
    assert (program.returncode, errors) == (1, f"nightbridge: cannot record into {tmp_path}: File too large\n")


def test_a_recorder_that_stood_still_records_what_was_kept_for_it_however_old(tmp_path: Path) -> None:
    with (
        relay() as publisher,
        closing(Camera(publisher)) as camera,
        recording_program(publisher, "pier", tmp_path) as program,
    ):
        camera.wait_for_viewer()
        camera.show(25)
        wait_until(lambda: any(count_packets(path) >= 10 for path in tmp_path.iterdir()), "a file")
        program.send_signal(signal.SIGSTOP)
        camera.show(50)
        time.sleep(1.5)
        program.send_signal(signal.SIGCONT)
        camera.show(6)  # the last one begins the ninth group, and so ends the eighth
        wait_until(lambda: any(count_packets(path) >= 80 for path in tmp_path.iterdir()), "the rest")
        program.terminate()
        output, _ = program.communicate(timeout=DEADLINE)
    assert "81 pictures" in output
    assert "dropped" not in output
    assert len(played(next(tmp_path.iterdir()))) == 81
