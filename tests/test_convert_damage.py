from __future__ import annotations

import os
import re
import resource
import signal
from pathlib import Path

import av
import pytest

from stream.errors import CodecError, SourceUnsupported
from stream.files import part_writer
from stream.files.convert import Progress, convert
from tests.clips import make_clip
from tests.converting import cut_in_front, headless, stopped_after
from tests.doubling import DoublingEngine
from tests.test_fields import fields, transport_stream


def test_a_failure_leaves_no_half_written_file(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=10)
    (tmp_path / "no.mp4").write_bytes(b"no video")
    with DoublingEngine() as engine:
        with pytest.raises(CodecError, match=r"'\.txt'; try \.mp4"):
            convert(engine, clip, tmp_path / "out.txt", lambda _: None)
        with pytest.raises(SourceUnsupported, match=r"no\.mp4"):
            convert(engine, tmp_path / "no.mp4", tmp_path / "out.mp4", lambda _: None)

        def interrupt(now: Progress) -> None:
            if now.pictures == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            convert(engine, clip, tmp_path / "out.mp4", interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "no.mp4"]


def test_a_disk_that_is_full_while_all_is_joined_leaves_parts_alone_and_the_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_writer, "PART_PICTURES", 10)
    source, target = make_clip(tmp_path / "clip.mp4", pictures=40), tmp_path / "out.mov"
    with DoublingEngine() as engine:
        convert(engine, source, target, lambda _: None)
        size = target.stat().st_size
        target.unlink()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size * 2 // 3, before[1]))
        try:
            with pytest.raises(CodecError, match=r"clip\.mp4 to .*out\.mov: File too large"):
                convert(engine, source, target, lambda _: None, keep_parts=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        left = sorted(path.name for path in (tmp_path / ".part-out.mov").iterdir())
        assert left == ["000000.nut", "000001.nut", "000002.nut", "000003.nut", "journal"]
        assert convert(engine, source, target, lambda _: None, keep_parts=True).resumed == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "out.mov"]


def test_a_recording_that_cannot_be_read_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "no.mp4").write_bytes(b"no video")
    with DoublingEngine() as engine, pytest.raises(SourceUnsupported, match=r"no\.mp4"):
        convert(engine, tmp_path / "no.mp4", tmp_path / "new" / "out.mp4", lambda _: None, keep_parts=True)
    assert [path.name for path in tmp_path.iterdir()] == ["no.mp4"]


def test_a_recording_without_a_picture_that_can_be_decoded_leaves_no_folder(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=10, key_interval=100)
    source = headless(clip, tmp_path / "headless.mkv")
    (tmp_path / "old").mkdir()
    for folder in (tmp_path / "new" / "newer", tmp_path / "old"):
        with DoublingEngine() as engine, pytest.raises(SourceUnsupported, match="no picture in it can be decoded"):
            convert(engine, source, folder / "out.mp4", lambda _: None, keep_parts=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.ts", "headless.mkv", "old"]


FASTSTART = {"movflags": "faststart"}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}


def copied(clip: Path, path: Path, options: dict[str, str] | None = None) -> Path:
    """The video of a clip in another container, which is told the options."""
    with av.open(clip) as source, av.open(path, "w", options=options or {}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    return path


def cut_off(path: Path) -> Path:
    """The file without its last third."""
    os.truncate(path, path.stat().st_size * 2 // 3)
    return path


def told_to_end_early(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if "is truncated" in message]


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mov"])
def test_a_recording_that_was_cut_off_is_told_also_where_work_was_stopped_in_between(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(part_writer, "PART_PICTURES", 10)
    source = cut_off(copied(make_clip(tmp_path / "clip.mp4", pictures=50, b_frames=2), tmp_path / name, FASTSTART))
    assert not stopped_after(15, source, tmp_path / "out.mkv").complete
    assert not told_to_end_early(caplog)
    with DoublingEngine() as engine:
        done = convert(engine, source, tmp_path / "out.mkv", lambda _: None)
    assert done.resumed
    [told] = told_to_end_early(caplog)
    found = re.fullmatch(r"(.*) is truncated: it holds (\d+) of the 50 pictures in its index", told)
    assert found
    there = int(found[2])
    assert found[1] == str(source)
    assert 10 < there < 50
    assert done.pictures + done.lost - there in (0, 1)  # a piece of the next one may be there


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ("a.mp4", "a.mov", "a.mkv", "a.flv", "a.ts")),
        *(("a.mp4", options) for options in (FASTSTART, FRAGMENTS)),
    ],
    ids=lambda value: value if isinstance(value, str) else "".join(value.values()),
)
def test_a_recording_that_is_whole_is_not_told_to_end_early(
    name: str, options: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=30, b_frames=2, key_interval=10)
    with DoublingEngine() as engine:
        convert(engine, copied(clip, tmp_path / name, options), tmp_path / "out.mkv", lambda _: None)
    assert not caplog.messages


@pytest.mark.parametrize("kind", ["AVI", "cut in front", "fields", "stopped"])
def test_what_headers_count_that_are_no_pictures_is_not_missed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(part_writer, "PART_PICTURES", 10)
    source = make_clip(tmp_path / ("clip.avi" if kind == "AVI" else "clip.mp4"), pictures=50, key_interval=50)
    if kind == "cut in front":
        cut_in_front(source, 1)
    if kind == "fields":
        source = copied(transport_stream(tmp_path / "fields.ts", fields(), 3600), tmp_path / "fields.mov")
    if kind == "stopped":
        assert not stopped_after(15, source, tmp_path / "out.mkv").complete
    with DoublingEngine() as engine:
        assert convert(engine, source, tmp_path / "out.mkv", lambda _: None).lost == 0
    assert not told_to_end_early(caplog)
