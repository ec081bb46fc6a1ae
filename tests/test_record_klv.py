from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from stream import record as module
from stream.record import Recorder
from stream.wire.messages import Kind, Message
from tests.clips import make_clip
from tests.doubling import DoublingEngine
from tests.published import TICKS
from tests.recorded import CAPTURED, PICTURE_NS, changed, data, pictures, played, record, units
from tests.relaying import recording, replayed

LEAD = 3
"""Pictures by which data is earlier on the wire than those of its moment: nothing enhances it."""


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
    assert recorder.lost == {"codec not supported by the file": 1}
