from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream

from engines.door import Slot
from engines.errors import EngineError
from stream.errors import CodecError, SourceUnsupported
from stream.files import part_writer
from stream.files.convert import Conversion, Progress, convert
from tests.clips import klv_packet, make_clip, read_number
from tests.doubling import DoublingEngine
from tests.waiting import wait_until


def with_sound(clip: Path, path: Path, codec: str = "aac") -> Path:
    """The clip with a second and more of silence, which begins before its pictures, and with all else it holds."""
    with av.open(clip) as source, av.open(path, "w") as target:
        copies = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        audio = cast("AudioStream", target.add_stream(codec, rate=48_000))
        for number in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.int16), format="s16", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, number * 1024, Fraction(1, 48_000)
            target.mux(audio.encode(frame))
        target.mux(audio.encode(None))
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream.index]
                target.mux(packet)
    return path


def test_a_video_comes_out_doubled_with_its_times_its_matrix_and_its_sound(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=30, matrix="bt709", full_range=True, b_frames=2)
    source = with_sound(clip, tmp_path / "sound.mp4")
    seen: list[int] = []
    with DoublingEngine() as engine:
        assert convert(engine, source, tmp_path / "out.mkv", lambda now: seen.append(now.pictures)).pictures == 30
    assert seen == list(range(1, 31))
    with av.open(tmp_path / "out.mkv") as out, av.open(source) as before:
        frames = list(out.decode(video=0))
        assert [read_number(frame.to_ndarray()[:240].astype(np.uint8)) for frame in frames] == list(range(30))
        times = [[frame.time or 0 for frame in video] for video in (frames, before.decode(video=0))]
        after, expected = ([time - video[0] for time in video] for video in times)
        assert after == pytest.approx(expected, abs=0.002)
        assert (frames[0].width, frames[0].colorspace, frames[0].color_range) == (320, 1, 2)
    with av.open(tmp_path / "out.mkv") as out, av.open(source) as before:
        sound = [bytes(packet) for packet in out.demux(audio=0) if packet.size]
        assert sound == [bytes(packet) for packet in before.demux(audio=0) if packet.size]


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


def test_sound_that_the_container_cannot_hold_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=5)
    source = with_sound(clip, tmp_path / "sound.mov", "pcm_mulaw")
    with DoublingEngine() as engine:
        assert convert(engine, source, tmp_path / "out.mp4", lambda _: None).pictures == 5
    assert caplog.messages == ["the sound is left out: 'mp4' format does not support 'pcm_mulaw' codec"]
    with av.open(tmp_path / "out.mp4") as out:
        assert not out.streams.audio
        assert len(list(out.decode(video=0))) == 5


@pytest.mark.parametrize("name", ["out.webm", "out.gif", "out.mp3", "out.png", "out"])
def test_a_file_that_cannot_hold_the_video_is_refused_by_its_ending(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = with_sound(make_clip(tmp_path / "clip.mp4", pictures=2), tmp_path / "sound.mp4")
    with DoublingEngine() as engine, pytest.raises(CodecError, match=f"end in '{Path(name).suffix}'; try .mp4 or .mkv"):
        convert(engine, source, tmp_path / name, lambda _: None)
    assert not (tmp_path / name).exists()
    assert not caplog.messages


def test_a_recording_whose_pictures_change_their_size_is_refused(tmp_path: Path) -> None:
    parts = [make_clip(tmp_path / f"{size[0]}.ts", pictures=3, size=size) for size in ((160, 120), (176, 144))]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    with (
        DoublingEngine() as engine,
        pytest.raises(SourceUnsupported, match=r"both\.ts: .* to 176x144; a file holds one"),
    ):
        convert(engine, tmp_path / "both.ts", tmp_path / "out.mp4", lambda _: None)
    assert not (tmp_path / "out.mp4").exists()


def test_data_subtitles_chapters_and_what_is_said_of_the_recording_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=50, options={"x264-params": "sar=4/3"})
    (tmp_path / "text.srt").write_text(
        "1\n00:00:00,500 --> 00:00:01,000\nleft\n\n2\n00:00:01,200 --> 00:00:02,000\nright\n"
    )
    chapters = [
        {"id": 1, "start": 0, "end": 1000, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}},
        {"id": 2, "start": 1000, "end": 2000, "time_base": Fraction(1, 1000), "metadata": {"title": "two"}},
    ]
    source = tmp_path / "source.mkv"
    with av.open(clip) as video, av.open(tmp_path / "text.srt") as text, av.open(source, "w") as writer:
        writer.metadata.update({"creation_time": "2026-11-22T15:30:00.250000Z", "title": "pier"})
        writer.set_chapters(chapters)  # type: ignore[arg-type]
        copies = [writer.add_stream_from_template(reader.streams[0]) for reader in (video, text)]
        copies[0].codec_context.sample_aspect_ratio = Fraction(4, 3)
        copies[1].metadata["language"] = "nor"
        for reader, copy in zip((video, text), copies, strict=True):
            for packet in reader.demux():
                if packet.dts is not None:
                    packet.stream = copy
                    writer.mux(packet)
    with DoublingEngine() as engine:
        assert convert(engine, source, tmp_path / "out.mkv", lambda _: None).pictures == 50
    assert not caplog.messages
    told = []
    for path in (source, tmp_path / "out.mkv"):
        with av.open(path) as reader:
            words = [(p.pts, p.duration, bytes(p)) for p in reader.demux(subtitles=0) if p.size]
            keys = ("creation_time", "title")
            said = {key: reader.metadata[key] for key in keys}
            video_stream = reader.streams.video[0]
            language = reader.streams.subtitles[0].language
            told.append((words, said, reader.chapters(), video_stream.sample_aspect_ratio, language))
    assert told[0] == told[1]
    assert len(told[0][0]) == 2
    assert len(told[0][2]) == 2
    assert told[0][3:] == (Fraction(4, 3), "nor")


def test_data_that_the_container_cannot_hold_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=5, klv=True)
    with DoublingEngine() as engine:
        assert convert(engine, clip, tmp_path / "out.mp4", lambda _: None).pictures == 5
    assert caplog.messages == ["the data is left out: .mp4 cannot hold data klv"]


def test_a_recorders_clock_that_was_set_leaves_no_hole_and_data_stays_with_its_pictures(tmp_path: Path) -> None:
    parts = [make_clip(tmp_path / f"{number}.ts", pictures=30, klv=True) for number in range(2)]
    source = tmp_path / "both.ts"
    source.write_bytes(b"".join(part.read_bytes() for part in parts))
    with DoublingEngine() as engine:
        convert(engine, source, tmp_path / "out.ts", lambda _: None)
    with av.open(tmp_path / "out.ts") as out:
        times = [frame.time or 0 for frame in out.decode(video=0)]
    with av.open(tmp_path / "out.ts") as out:
        data = [(float(p.pts * p.time_base), bytes(p)) for p in out.demux(out.streams.data) if p.size]
    assert [time - times[0] for time in times] == pytest.approx([number / 25 for number in range(60)], abs=0.001)
    assert [klv for _, klv in data] == [klv_packet(number % 30) for number in range(60)]
    assert [time for time, _ in data] == pytest.approx(times, abs=0.001)


# Going on


def stopped_after(pictures: int, source: Path, target: Path) -> Conversion:
    """A conversion that is stopped when there are so many pictures."""
    stop = threading.Event()

    def report(now: Progress) -> None:
        if now.pictures >= pictures:
            stop.set()

    with DoublingEngine() as engine:
        return convert(engine, source, target, report, stop=stop, keep_parts=True)


OPEN_GROUPS = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0"}


@pytest.mark.parametrize(
    ("name", "options"),
    {
        "open.ts": {"b_frames": 2, "options": OPEN_GROUPS},
        "open.mkv": {"b_frames": 2, "options": OPEN_GROUPS},
        "timeless.h264": {"b_frames": 2},
        "mpeg4.avi": {"codec": "mpeg4", "b_frames": 2},
        "hevc.mp4": {"codec": "libx265"},
        "interlaced.ts": {"interlaced": True},
        "pictures.mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_stopped_twice_it_becomes_the_same_video_as_at_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(part_writer, "PART_PICTURES", 20)
    source = make_clip(tmp_path / name, pictures=80, size=(96, 80), key_interval=10, **options)
    whole, resumed = tmp_path / "whole.mkv", tmp_path / "resumed.mkv"
    with DoublingEngine() as engine:
        convert(engine, source, whole, lambda _: None)
    before = [stopped_after(pictures, source, resumed).pictures for pictures in (27, 50)]
    with DoublingEngine() as engine:
        conversion = convert(engine, source, resumed, lambda _: None, keep_parts=True)
        assert len(engine.batches) == 80 - before[1]
    assert conversion == Conversion(pictures=80, lost=0, resumed=before[1], complete=True)
    assert 27 <= before[0] < 50 <= before[1] < 80
    shown = []
    for path in (whole, resumed):
        with av.open(path) as out:
            shown.append([(f.pts, read_number(f.to_ndarray()[:160].astype(np.uint8))) for f in out.decode(video=0)])
    assert shown[0] == shown[1]
    assert [number for _, number in shown[0]] == list(range(80))
    assert not (tmp_path / ".part-resumed.mkv").exists()


def test_parts_of_another_recording_are_told_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(part_writer, "PART_PICTURES", 10)
    source = make_clip(tmp_path / "a.mp4", pictures=40, size=(96, 80))
    stopped_after(20, source, tmp_path / "out.mp4")
    make_clip(source, pictures=30, size=(96, 80))
    with DoublingEngine() as engine:
        assert convert(engine, source, tmp_path / "out.mp4", lambda _: None, keep_parts=True).pictures == 30
    assert "begun anew" in caplog.text


def test_from_start_forgets_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_writer, "PART_PICTURES", 10)
    source = make_clip(tmp_path / "a.mp4", pictures=40, size=(96, 80))
    stopped_after(20, source, tmp_path / "out.mp4")
    with DoublingEngine() as engine:
        conversion = convert(engine, source, tmp_path / "out.mp4", lambda _: None, from_start=True)
        assert (len(engine.batches), conversion.resumed) == (40, 0)


def test_an_engine_that_fails_leaves_what_was_done_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_writer, "PART_PICTURES", 10)
    source = make_clip(tmp_path / "a.mp4", pictures=40, size=(96, 80))

    class Failing(DoublingEngine):
        def _finish(self, slot: Slot) -> None:
            if sum(self.batches) > 25:
                raise EngineError("a failure on purpose")
            super()._finish(slot)

    with Failing() as engine, pytest.raises(EngineError, match="on purpose"):
        convert(engine, source, tmp_path / "out.mp4", lambda _: None, keep_parts=True)
    with DoublingEngine() as engine:
        conversion = convert(engine, source, tmp_path / "out.mp4", lambda _: None, keep_parts=True)
    assert conversion == Conversion(pictures=40, lost=0, resumed=20, complete=True)


def test_the_engine_works_on_pictures_while_others_are_encoded_and_decoded(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", pictures=10, size=(96, 80))
    pace = threading.Semaphore(0)
    with DoublingEngine(pace) as engine, ThreadPoolExecutor() as pool:
        done = pool.submit(convert, engine, source, tmp_path / "out.mp4", lambda _: None)
        wait_until(lambda: len(engine.batches) == 3, "three pictures in flight")
        pace.release(10)
        assert done.result().pictures == 10
