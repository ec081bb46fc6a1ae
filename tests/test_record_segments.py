import re
import resource
import signal
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import pytest

from stream import record as module
from stream.errors import StreamError
from stream.record import Recorder
from stream.wire.messages import Kind
from tests.published import TICKS
from tests.recorded import changed, data, pictures, played, record, units
from tests.test_encode import HEIGHT, WIDTH


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
