from __future__ import annotations

import os
import re
import resource
import signal
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.container import Flags
from av.sidedata.sidedata import Type
from av.stream import Disposition

from engines.colour import CENTRE, Colour, to_planes, to_rgb
from engines.door import Slot
from engines.errors import EngineError
from stream.codecs.plain import colour_of, is_neutral
from stream.errors import CodecError, SourceUnsupported
from stream.files import part_writer
from stream.files.convert import IN_FLIGHT, Conversion, Progress, convert, job_of, numbered_frames
from stream.files.recolour import recoloured
from stream.frame import plane_view
from stream.sources.recording import open_recording
from tests.clips import joined, klv_packet, make_clip, read_number, read_patches, turned
from tests.doubling import DoublingEngine
from tests.replaying import numbers, packets
from tests.test_fields import PICTURES, fields, transport_stream
from tests.waiting import wait_until


def with_sound(
    clip: Path, path: Path, codec: str = "aac", sounds: int = 20, options: dict[str, str] | None = None
) -> Path:
    """The clip with a second and more of silence, which begins before its pictures, and with all else it holds."""
    with av.open(clip) as source, av.open(path, "w", options=options or {}) as target:
        copies = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        audio = cast("AudioStream", target.add_stream(codec, rate=48_000))
        for number in range(sounds):
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


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("source", ["clip.mp4", "clip.mkv", "clip.ts"])
def test_a_file_lasts_as_long_as_its_recording_and_tells_the_same_rate(
    tmp_path: Path, source: str, suffix: str
) -> None:
    clip = make_clip(tmp_path / source, pictures=50)
    with DoublingEngine() as engine:
        convert(engine, clip, tmp_path / f"out{suffix}", lambda _: None)
    with av.open(tmp_path / f"out{suffix}") as out:
        assert out.streams.video[0].average_rate == 25
        last = list(out.demux(video=0))[-2]  # before the sign for the end
        assert last.duration is not None
        assert last.duration * last.time_base == Fraction(1, 25)


def with_clicks(clip: Path, path: Path, start: float, slowing: float) -> tuple[Path, list[float]]:
    """The clip from second `start` on, ever slower, with sound that clicks with every tenth picture, and its times."""
    with av.open(clip) as source, av.open(path, "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        audio = cast("AudioStream", target.add_stream("pcm_s16le", rate=8_000, layout="mono"))
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for packet in packets:
            packet.stream = video
            for name in ("pts", "dts"):
                seconds = float(getattr(packet, name) * packet.time_base)
                setattr(packet, name, round((start + seconds + slowing * seconds**2) / packet.time_base))
        times = sorted(float(packet.pts * packet.time_base) for packet in packets)
        samples = np.zeros((1, round(8_000 * (times[-1] - start + 0.5))), np.int16)
        for time in times[::10]:
            samples[:, round(8_000 * (time - start)) :][:, :16] = 30_000
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8_000, round(8_000 * start), Fraction(1, 8_000)
        target.mux([*audio.encode(frame), *audio.encode(None), *packets])
    return path, times


def clicks(path: Path) -> list[float]:
    """When its sound clicks, in seconds."""
    with av.open(path) as reader:
        frames = [(frame.time or 0, frame.to_ndarray()[0]) for frame in reader.decode(audio=0)]
    loud = [time + at / 8_000 for time, samples in frames for at in np.flatnonzero(samples > 20_000)]
    return [time for number, time in enumerate(loud) if number == 0 or time - loud[number - 1] > 0.1]


@pytest.mark.parametrize("slowing", [0, 0.1], ids=["constant", "variable"])
@pytest.mark.parametrize("start", [0, 1000])
@pytest.mark.parametrize("name", ["out.avi", "out.wmv"])
def test_a_container_that_tells_decoding_times_alone_shows_pictures_in_order_and_with_their_sound(
    name: str, start: int, slowing: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_writer, "PART_PICTURES", 20)
    clip = make_clip(tmp_path / "clip.mp4", pictures=50, b_frames=2)
    source, expected = with_clicks(clip, tmp_path / "clicks.mkv", start, slowing)
    assert clicks(source) == pytest.approx(expected[::10], abs=0.002)
    with DoublingEngine() as engine:
        convert(engine, source, tmp_path / name, lambda _: None)
    with av.open(tmp_path / name) as out:
        video = out.streams.video[0]
        if not slowing:
            assert video.average_rate == 25
        out.flags &= ~Flags.gen_pts.value  # which makes up a time of showing, later by a picture
        assert video.time_base
        times = [float((frame.dts or 0) * video.time_base) for frame in out.decode(video)]
    with av.open(tmp_path / name) as out:
        shown = [frame.time or 0 for frame in out.decode(video=0)]
    assert shown == sorted(shown)
    assert [time - times[0] for time in times] == pytest.approx([time - start for time in expected], abs=0.002)
    assert clicks(tmp_path / name) == pytest.approx(times[::10], abs=0.04)
    assert numbers(tmp_path / name) == list(range(50))


@pytest.mark.parametrize("name", ["out.avi", "out.wmv"])
def test_pictures_that_are_nearer_than_the_ticks_of_a_file_cost_no_file(name: str, tmp_path: Path) -> None:
    clip, source = make_clip(tmp_path / "clip.ts", pictures=20, size=(160, 80)), tmp_path / "near.ts"
    with av.open(clip) as reader, av.open(source, "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for number, packet in enumerate(packet for packet in reader.demux(video=0) if packet.size):
            if number >= 10:
                packet.pts = packet.dts = packet.pts - 3599  # one tick after the picture before
            packet.stream = stream
            writer.mux(packet)
    with DoublingEngine() as engine:
        convert(engine, source, tmp_path / name, lambda _: None)
    assert numbers(tmp_path / name) == list(range(20))


def test_parts_with_reordered_pictures_are_of_no_use_for_containers_without_times_of_showing(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "clip.mp4", pictures=2)
    with DoublingEngine() as engine:
        told = {name: job_of(engine, source, Path(name)).encoder for name in ("a.avi", "a.WMV", "a.mp4", "a.mkv")}
    assert told["a.avi"] == told["a.WMV"] != told["a.mp4"] == told["a.mkv"]


def test_a_recording_whose_name_is_no_utf_8_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_writer, "PART_PICTURES", 10)
    source = make_clip(tmp_path / "clip.mp4", pictures=25).rename(tmp_path / os.fsdecode(b"night\xff.mp4"))
    target = tmp_path / os.fsdecode(b"bright\xff.mp4")
    assert not stopped_after(15, source, target).complete
    with DoublingEngine() as engine:
        assert convert(engine, source, target, lambda _: None).resumed >= 10
    assert target.is_file()


def test_a_file_that_cannot_be_written_is_told_by_name(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=3)
    (tmp_path / "out.mp4").mkdir()
    with DoublingEngine() as engine, pytest.raises(CodecError, match=r"clip\.mp4 to .*out\.mp4: Is a directory"):
        convert(engine, clip, tmp_path / "out.mp4", lambda _: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "out.mp4"]


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


def headless(clip: Path, path: Path) -> Path:
    """The video of a clip without its first picture, which those up to the next key frame need."""
    with av.open(clip) as source, av.open(path, "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in [packet for packet in source.demux(video=0) if packet.size][1:]:
            packet.stream = stream
            target.mux(packet)
    return path


def cut_off(path: Path) -> Path:
    """The file without its last third."""
    os.truncate(path, path.stat().st_size * 2 // 3)
    return path


def told_to_end_early(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if "ends early" in message]


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
    found = re.fullmatch(r"(.*) ends early: (\d+) of 50 pictures are there", told)
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


def cut_in_front(path: Path, seconds: int) -> None:
    """Make an MP4 begin later, as a phone does it: by its edit lists alone."""
    with av.open(path) as reader:
        ticks = [round(seconds / (stream.time_base or 1)) for stream in reader.streams]
    content, at = bytearray(path.read_bytes()), 0
    for skipped in ticks:
        at = content.index(b"elst", at) + len("elst") + 8  # version, flags and the number of edits
        lasts, begins = struct.unpack_from(">Ii", content, at)
        struct.pack_into(">Ii", content, at, lasts - 1000 * seconds, begins + skipped)
    path.write_bytes(content)


def test_sound_that_was_cut_off_in_front_stays_cut_off(tmp_path: Path) -> None:
    source = with_sound(make_clip(tmp_path / "clip.mp4", pictures=50, b_frames=2), tmp_path / "cut.mp4", sounds=90)
    cut_in_front(source, 1)
    with DoublingEngine() as engine:
        convert(engine, source, tmp_path / "out.mkv", lambda _: None)
    with av.open(tmp_path / "out.mkv") as out:
        pictures = list(out.decode(video=0))
    with av.open(tmp_path / "out.mkv") as out:
        sound = [frame.time for frame in out.decode(audio=0)]
    assert read_number(pictures[0].to_ndarray()[:240].astype(np.uint8)) == 25
    assert sound[0] == pytest.approx(pictures[0].time, abs=0.05)  # the packet before, where decoding begins
    assert len(sound) > 40


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


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_sound_that_does_not_say_which_channels_it_has_is_kept(name: str, channels: int, tmp_path: Path) -> None:
    """As that of AVI; FFmpeg refuses it in MP4 when all is written."""
    source = tmp_path / "in.avi"
    with av.open(make_clip(tmp_path / "clip.avi", pictures=25)) as clip, av.open(source, "w") as target:
        video = target.add_stream_from_template(clip.streams.video[0])
        audio = cast(
            "AudioStream",
            target.add_stream("pcm_s16le", rate=8_000, layout={1: "mono", 2: "stereo"}.get(channels, "4.0")),
        )
        samples = np.arange(8_000 * channels, dtype=np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=audio.layout.name)
        frame.sample_rate, frame.pts, frame.time_base = 8_000, 0, Fraction(1, 8_000)
        target.mux(audio.encode(frame))
        for packet in clip.demux(video=0):
            if packet.size:
                packet.stream = video
                target.mux(packet)
    with DoublingEngine() as engine:
        assert convert(engine, source, tmp_path / name, lambda _: None).pictures == 25
    with av.open(tmp_path / name) as out:
        sound = np.concatenate([frame.to_ndarray() for frame in out.decode(audio=0)], axis=1)
    assert (sound == samples).all()


@pytest.mark.parametrize("suffix", [".ts", ".TS", ".M2TS"])
def test_sound_that_mpeg_ts_has_no_name_for_is_left_out_with_a_warning(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = with_sound(make_clip(tmp_path / "clip.mp4", pictures=25), tmp_path / "flac.mkv", "flac")
    with DoublingEngine() as engine:
        convert(engine, source, tmp_path / f"out{suffix}", lambda _: None)
        convert(engine, source, tmp_path / "out.mkv", lambda _: None)
    with av.open(tmp_path / f"out{suffix}") as container:
        assert [stream.type for stream in container.streams] == ["video"]
    with av.open(tmp_path / "out.mkv") as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
    (told,) = caplog.messages
    assert told.startswith(f"the sound is left out: {suffix} holds audio flac")


@pytest.mark.parametrize("suffix", [".mov", ".mp4"])
def test_a_timecode_is_kept(suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip, source = make_clip(tmp_path / "clip.mp4", pictures=10), tmp_path / "camcorder.mov"
    with av.open(clip) as reader, av.open(source, "w") as writer:
        writer.metadata["timecode"] = "01:00:00:00"
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(video=0):
            if packet.size:
                packet.stream = stream
                writer.mux(packet)
    with DoublingEngine() as engine:
        convert(engine, source, tmp_path / f"out{suffix}", lambda _: None)
    with av.open(tmp_path / f"out{suffix}") as container:
        assert {stream.metadata.get("timecode") for stream in container.streams} == {"01:00:00:00"}
    assert caplog.messages == []


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_pause_that_a_file_means_stays_however_long_it_is(suffix: str, tmp_path: Path) -> None:
    clip, source = make_clip(tmp_path / "clip.mp4", pictures=20), tmp_path / f"slides{suffix}"
    with av.open(clip) as reader, av.open(source, "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for number, packet in enumerate(packet for packet in reader.demux(video=0) if packet.size):
            if number >= 10:
                packet.pts += round(90 / packet.time_base)
                packet.dts += round(90 / packet.time_base)
            packet.stream = stream
            writer.mux(packet)
    with DoublingEngine() as engine:
        convert(engine, source, tmp_path / f"out{suffix}", lambda _: None)
    times = []
    for path in (source, tmp_path / f"out{suffix}"):
        with av.open(path) as container:
            times.append([frame.time for frame in container.decode(video=0)])
    assert times[1] == pytest.approx(times[0], abs=0.002)
    assert times[1][10] - times[1][9] > 90


def with_a_gap(path: Path, seconds: int, *, sound_goes_on: bool, before: int = 50, b_frames: int = 0) -> Path:
    """A transport stream of 4 s and a gap in front of the picture `before`, in its pictures alone or in their sound and
    KLV, too."""
    clip_path = make_clip(path.with_suffix(".mp4"), pictures=100, b_frames=b_frames)
    with av.open(clip_path) as clip, av.open(path, "w") as writer:
        video = writer.add_stream_from_template(clip.streams.video[0])
        audio = cast("AudioStream", writer.add_stream("mp2", rate=16_000, layout="mono"))
        data = writer.add_data_stream("klv")
        lasts = 4 + seconds * sound_goes_on
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000 * lasts), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
        packets: list[Any] = [*audio.encode(frame), *audio.encode(None)]
        for number in range(lasts):
            klv = av.Packet(klv_packet(number))
            klv.stream, klv.pts, klv.dts, klv.time_base = data, number, number, Fraction(1)
            packets.append(klv)
        pictures = [packet for packet in clip.demux(video=0) if packet.size]
        for packet in [*pictures, *(() if sound_goes_on else packets)]:
            if packet.pts * packet.time_base >= Fraction(before, 25):
                packet.pts += round(seconds / packet.time_base)
            if packet.dts * packet.time_base >= Fraction(before, 25):
                packet.dts += round(seconds / packet.time_base)
        for packet in pictures:
            packet.stream = video
        for packet in sorted([*packets, *pictures], key=lambda packet: packet.dts * packet.time_base):
            writer.mux(packet)
    return path


def test_pictures_that_pause_while_sound_goes_on_stay_in_step_with_it_also_where_work_was_stopped_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_writer, "PART_PICTURES", 10)
    source = with_a_gap(tmp_path / "pause.ts", 90, sound_goes_on=True)
    assert not stopped_after(50, source, tmp_path / "out.ts").complete
    with DoublingEngine() as engine:
        assert convert(engine, source, tmp_path / "out.ts", lambda _: None).resumed
    for kind in ("audio", "data"):
        assert packets(tmp_path / "out.ts", kind) == packets(source, kind)
    times = [sorted(time for time, _ in packets(path, "video")) for path in (source, tmp_path / "out.ts")]
    assert times[0] == times[1]
    assert times[1][50] == 92


@pytest.mark.parametrize("before", [5, 6, 7, 33])
def test_reordered_pictures_that_pause_while_sound_goes_on_stay_in_step_with_it(before: int, tmp_path: Path) -> None:
    source = with_a_gap(tmp_path / "pause.ts", 90, sound_goes_on=True, before=before, b_frames=3)
    with DoublingEngine() as engine:
        convert(engine, source, tmp_path / "out.ts", lambda _: None)
    times = [sorted(time for time, _ in packets(path, "video")) for path in (source, tmp_path / "out.ts")]
    assert times[0] == times[1]
    assert times[1][before] - times[1][before - 1] > 90


def test_sound_that_goes_on_long_after_the_last_picture_stays_behind_a_clock_that_was_set(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=50)
    first = with_sound(clip, tmp_path / "first.ts", "mp2", sounds=94, options={"output_ts_offset": "10"})
    second = with_sound(clip, tmp_path / "second.ts", "mp2", sounds=3750, options={"max_interleave_delta": "0"})
    source = tmp_path / "both.ts"
    source.write_bytes(first.read_bytes() + second.read_bytes())
    with DoublingEngine() as engine:
        convert(engine, source, tmp_path / "out.ts", lambda _: None)
    assert max(time for time, _ in packets(tmp_path / "out.ts", "video")) < 4
    times = [float(time) for time, _ in packets(tmp_path / "out.ts", "audio")]
    assert times[-1] == pytest.approx(82, abs=0.2)
    assert max(np.diff(times)) < 0.1


def test_a_gap_in_all_that_a_transport_stream_holds_is_closed(tmp_path: Path) -> None:
    source = with_a_gap(tmp_path / "gap.ts", 90, sound_goes_on=False)
    with DoublingEngine() as engine:
        convert(engine, source, tmp_path / "out.ts", lambda _: None)
    assert sorted(time for time, _ in packets(tmp_path / "out.ts", "video"))[50] == 2
    before, after = (packets(path, "data") for path in (source, tmp_path / "out.ts"))
    assert [time for time, _ in before] == [0, 1, 92, 93]
    assert after == [(time - 90 * (time >= 92), klv) for time, klv in before]


def test_subtitles_within_a_long_pause_of_the_pictures_stay_where_they_are(tmp_path: Path) -> None:
    clip, source = make_clip(tmp_path / "clip.mp4", pictures=50), tmp_path / "pause.mkv"
    seconds = (1, 5, 30, 50, 59, 90)
    (tmp_path / "text.srt").write_text(
        "".join(f"{at}\n00:{at // 60:02}:{at % 60:02},000 --> 00:02:00,000\ntext {at}\n\n" for at in seconds)
    )
    with av.open(clip) as pictures, av.open(tmp_path / "text.srt") as text, av.open(source, "w") as writer:
        readers = pictures, text
        copies = [writer.add_stream_from_template(reader.streams[0]) for reader in readers]
        packets: list[Any] = []
        for reader, copy in zip(readers, copies, strict=True):
            for packet in (packet for packet in reader.demux(reader.streams[0]) if packet.size):
                if reader is pictures and packet.pts * packet.time_base >= 1:
                    packet.pts += round(59 / packet.time_base)
                    packet.dts += round(59 / packet.time_base)
                packet.stream = copy
                packets.append(packet)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            writer.mux(packet)
    with DoublingEngine() as engine:
        convert(engine, source, tmp_path / "out.mkv", lambda _: None)
    with av.open(tmp_path / "out.mkv") as reader:
        assert [packet.pts * packet.time_base for packet in reader.demux(subtitles=0) if packet.size] == list(seconds)


def test_data_between_pictures_that_are_far_apart_stays_where_it_is(tmp_path: Path) -> None:
    clip, source = make_clip(tmp_path / "clip.mp4", pictures=10), tmp_path / "lapse.ts"
    with av.open(clip) as reader, av.open(source, "w", options={"max_interleave_delta": "1"}) as writer:
        video, data = writer.add_stream_from_template(reader.streams.video[0]), writer.add_data_stream("klv")
        for number, packet in enumerate(packet for packet in reader.demux(video=0) if packet.size):
            packet.stream, packet.pts, packet.dts, packet.time_base = video, 50 * number, 50 * number, Fraction(1)
            klv = av.Packet(klv_packet(number))
            klv.stream, klv.pts, klv.dts, klv.time_base = data, 50 * number + 25, 50 * number + 25, Fraction(1)
            writer.mux([packet, klv])
    with DoublingEngine() as engine:
        convert(engine, source, tmp_path / "out.ts", lambda _: None)
    assert packets(tmp_path / "out.ts", "data") == [(50 * n + 25, klv_packet(n)) for n in range(10)]


@pytest.mark.parametrize("suffix", [".avi", ".flv", ".m2ts", ".m4v", ".mov", ".wmv", ".3gp"])
def test_a_file_plays_whatever_suffix_it_may_have(suffix: str, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=30, size=(160, 80))
    with DoublingEngine() as engine:
        convert(engine, clip, tmp_path / f"out{suffix}", lambda _: None)
    assert numbers(tmp_path / f"out{suffix}") == list(range(30))


@pytest.mark.parametrize("name", ["out.webm", "out.gif", "out.mp3", "out.png", "out", "out.mpg", "out.vob", "out.yuv"])
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


def rgb_of_patches(frame: av.VideoFrame) -> np.ndarray:
    """(4, 3): mean R, G and B of the patches, 0 to 255, as a player shows them."""
    y, u, v = (plane_view(plane) for plane in frame.planes)
    matrix = colour_of(frame).coefficients()[0]
    return np.clip(255 * ((read_patches(y, u, v) - CENTRE) @ matrix[:, :3].T + matrix[:, 3]), 0, 255)


def before_and_after(source: Path, target: Path) -> tuple[list[av.VideoFrame], ...]:
    """The pictures of a recording, and those of the file that becomes of it."""
    with DoublingEngine() as engine:
        convert(engine, source, target, lambda _: None)
    with av.open(source) as before, av.open(target) as out:
        return list(before.decode(video=0)), list(out.decode(video=0))


KINDS: list[dict[str, Any]] = [{"matrix": "bt601", "full_range": False}, {"matrix": "bt709", "full_range": True}]


@pytest.mark.parametrize("kinds", [KINDS, KINDS[::-1]], ids=["to full", "to limited"])
def test_a_recording_whose_colour_changes_is_shown_in_its_own_colours_throughout(
    tmp_path: Path, kinds: list[dict[str, Any]]
) -> None:
    halves = [make_clip(tmp_path / f"{number}.ts", pictures=10, **kind) for number, kind in enumerate(kinds)]
    source = joined(tmp_path / "both.ts", *halves)
    recorded, made = before_and_after(source, tmp_path / "out.mp4")
    assert len({colour_of(frame) for frame in recorded}) == 2
    assert {colour_of(frame) for frame in made} == {Colour(**kinds[0])}
    for frame, enhanced in zip(recorded, made, strict=True):
        assert rgb_of_patches(enhanced) == pytest.approx(rgb_of_patches(frame), abs=5)


def test_infrared_pictures_stay_without_colour_where_the_colour_changes(tmp_path: Path) -> None:
    halves = [make_clip(tmp_path / f"{n}.ts", pictures=5, grey=range(5), **kind) for n, kind in enumerate(KINDS)]
    recorded, made = before_and_after(joined(tmp_path / "both.ts", *halves), tmp_path / "out.mp4")
    for frame, enhanced in zip(recorded, made, strict=True):
        assert is_neutral(enhanced)
        assert rgb_of_patches(enhanced) == pytest.approx(rgb_of_patches(frame), abs=5)


COLOURS = [Colour(matrix, full_range) for matrix in ("bt601", "bt709") for full_range in (False, True)]


@pytest.mark.parametrize(("colour", "wanted"), [pair for pair in product(COLOURS, COLOURS) if pair[0] != pair[1]])
def test_recoloured_pictures_mean_the_same_and_grey_has_no_colour_at_all(colour: Colour, wanted: Colour) -> None:
    squares = np.random.default_rng(3).integers(0, 256, (6, 8, 3), np.uint8)
    y, uv = to_planes(squares.repeat(8, 0).repeat(8, 1), colour)
    before, after = (
        to_rgb(*planes).astype(int) for planes in ((y, uv, colour), (*recoloured(y, uv, colour, wanted), wanted))
    )
    assert np.abs(after - before).max() <= 3
    assert (recoloured(y, np.full_like(uv, 128), colour, wanted)[1] == 128).all()


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


OF_A_PHONE = {
    "com.apple.quicktime.creationdate": "2026-11-22T15:30:00+0100",
    "com.apple.quicktime.location.ISO6709": "+53.4610+014.2330+030/",
    "com.apple.quicktime.make": "Apple",
}


def with_metadata(clip: Path, path: Path, metadata: dict[str, str], options: dict[str, str]) -> Path:
    """The video of a clip in a file that says more of itself, written with the options."""
    with av.open(clip) as reader, av.open(path, "w", options=options) as writer:
        writer.metadata.update(metadata)
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(video=0):
            if packet.size:
                packet.stream = stream
                writer.mux(packet)
    return path


def with_messages(clip: Path, path: Path) -> Path:
    """A clip of H.264 whose pictures have a time stamp (MISB ST 0604) and closed captions (ATSC A/53) inside."""
    stamp = b"MISPmicrosectime\x1f" + b"\xff".join([b"\x00\x06", b"\x60\xd4", b"\x8a\x1d", b"\x3c\x90"])
    captions = b"\xb5\x00\x31GA94\x03\xc1\xff\xfc\x94\x20\xff"
    messages = b"".join(bytes([kind, len(told)]) + told for kind, told in ((5, stamp), (4, captions)))
    with av.open(clip) as reader, av.open(path, "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in (packet for packet in reader.demux(video=0) if packet.size):
            unit = bytes(packet)
            at = 6 if unit.startswith(b"\0\0\0\1\x09") else 0  # behind the delimiter
            told: av.Packet[Any] = av.Packet(unit[:at] + b"\0\0\0\1\x06" + messages + b"\x80" + unit[at:])
            told.pts, told.dts, told.time_base, told.is_keyframe = packet.pts, packet.dts, packet.time_base, True
            told.stream = stream
            writer.mux(told)
    return path


def test_captions_and_times_inside_the_pictures_are_left_out_with_one_warning_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = with_messages(make_clip(tmp_path / "clip.ts", pictures=5), tmp_path / "told.ts")
    with DoublingEngine() as engine:
        convert(engine, source, tmp_path / "out.ts", lambda _: None)
    assert caplog.messages == [
        "the closed captions inside the pictures are left out",
        "the time stamps of MISB ST 0604 inside the pictures are left out",
    ]


@pytest.mark.parametrize("suffix", [".mov", ".mp4", ".m4v", ".mkv"])
def test_what_a_phone_says_of_its_recording_is_kept(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=3)
    source = with_metadata(clip, tmp_path / "phone.mov", OF_A_PHONE, {"movflags": "use_metadata_tags"})
    with DoublingEngine() as engine:
        convert(engine, source, tmp_path / f"out{suffix}", lambda _: None)
    with av.open(tmp_path / f"out{suffix}") as out:
        kept = {key.lower(): value for key, value in out.metadata.items()}
    assert {key: kept.get(key.lower()) for key in OF_A_PHONE} == OF_A_PHONE
    assert not caplog.messages


def test_metadata_that_the_container_cannot_hold_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=3)
    source = with_metadata(clip, tmp_path / "named.mp4", {"artist": "pier", "location": "+53.4610+014.2330/"}, {})
    with DoublingEngine() as engine:
        convert(engine, source, tmp_path / "out.mp4", lambda _: None)
        assert not caplog.messages
        convert(engine, source, tmp_path / "out.ts", lambda _: None)
    assert caplog.messages == ["the metadata artist, location-eng, location is left out"]


@pytest.mark.parametrize("name", ["out.mp4", "out.mov"])
def test_the_usual_tags_of_an_android_phone_are_kept_and_its_own_are_left_out_with_a_warning(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=3)
    told = {"com.android.version": "14", "location": "+53.4610+014.2330/", "title": "pier"}
    source = with_metadata(clip, tmp_path / "phone.mp4", told, {"movflags": "use_metadata_tags"})
    with DoublingEngine() as engine:
        convert(engine, source, tmp_path / name, lambda _: None)
    assert caplog.messages == ["the metadata com.android.version is left out"]
    written = (tmp_path / name).read_bytes()
    assert b"\xa9nam" in written
    assert (b"loci" if name == "out.mp4" else b"\xa9xyz") in written


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


def with_klv(fields: Path, path: Path) -> Path:
    """A clip whose pictures are two packets each, with KLV of the time of each picture."""
    with av.open(fields) as source, av.open(path, "w") as target:
        video, data = target.add_stream_from_template(source.streams.video[0]), target.add_data_stream("klv")
        for number, field in enumerate(packet for packet in source.demux(video=0) if packet.size):
            if number % 2 == 0:
                klv = av.Packet(klv_packet(number // 2))
                klv.stream, klv.pts, klv.dts, klv.time_base = data, field.pts, field.dts, field.time_base
                target.mux(klv)
            field.stream = video
            target.mux(field)
    return path


def test_data_stays_with_pictures_that_are_two_packets_each_where_the_clock_was_set(tmp_path: Path) -> None:
    clip = with_klv(transport_stream(tmp_path / "fields.ts", fields(), 3600), tmp_path / "clip.ts")
    source = tmp_path / "twice.ts"
    source.write_bytes(2 * clip.read_bytes())
    with DoublingEngine() as engine:
        convert(engine, source, tmp_path / "out.ts", lambda _: None)
    with av.open(tmp_path / "out.ts") as out:
        times = [frame.time or 0 for frame in out.decode(video=0)]
    with av.open(tmp_path / "out.ts") as out:
        data = [float(packet.pts * packet.time_base) for packet in out.demux(out.streams.data) if packet.size]
    assert len(times) == 2 * PICTURES
    assert data == pytest.approx(times, abs=0.001)


PHONE = (0, 1 << 16, 0, -1 << 16, 0, 0, 120 << 16, 0, 1 << 30)
"""Of a phone that is held upright: a quarter turn clockwise, and as far to the right as the picture is high."""
FRONT_CAMERA = (0, 1 << 16, 0, 1 << 16, 0, 0, 0, 0, 1 << 30)
"""Turned and mirrored."""


def shown_as(path: Path) -> tuple[int, list[int]]:
    """By how many degrees players turn the pictures of a file to the left, and the whole display matrix."""
    with av.open(path) as reader:
        frame = next(reader.decode(video=0))
        told: Any = frame.side_data
        return frame.rotation, np.frombuffer(told[Type.DISPLAYMATRIX], np.int32).tolist()


@pytest.mark.parametrize("display_matrix", [PHONE, FRONT_CAMERA], ids=["phone", "front camera"])
@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "out.m4v", "out.mkv"])
def test_pictures_are_shown_turned_and_mirrored_as_the_recordings(
    tmp_path: Path, name: str, display_matrix: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    source = turned(make_clip(tmp_path / "clip.mp4", pictures=3), tmp_path / "phone.mp4", display_matrix)
    with DoublingEngine() as engine:
        convert(engine, source, tmp_path / name, lambda _: None)
    rotation, matrix = shown_as(tmp_path / name)
    assert (rotation, matrix[:6]) == (shown_as(source)[0], list(display_matrix[:6]))
    assert rotation == -90
    with av.open(tmp_path / name) as out:
        shown = [frame.to_ndarray()[: frame.height, : frame.width] for frame in out.decode(video=0)]
    assert [(luma.shape, read_number(luma)) for luma in shown] == [((240, 320), number) for number in range(3)]
    if name != "out.mkv":  # which does not say by how much a picture is moved
        assert matrix[6:] == [2 * display_matrix[6], 0, 1 << 30]
    assert not caplog.messages


def test_what_sound_is_for_and_which_is_played_first_is_kept(tmp_path: Path) -> None:
    first = with_sound(make_clip(tmp_path / "clip.mkv", pictures=10), tmp_path / "first.mkv")
    source = with_sound(first, tmp_path / "both.mkv")
    wanted = [Disposition.default, Disposition.comment, Disposition.default | Disposition.forced]
    with av.open(source) as reader, av.open(tmp_path / "told.mkv", "w") as writer:
        copies = [writer.add_stream_from_template(stream) for stream in reader.streams]
        for copy, disposition in zip(copies, wanted, strict=True):
            copy.disposition = disposition
        for packet in reader.demux():
            if packet.size:
                packet.stream = copies[packet.stream.index]
                writer.mux(packet)
    with DoublingEngine() as engine:
        convert(engine, tmp_path / "told.mkv", tmp_path / "out.mkv", lambda _: None)
    for path in (tmp_path / "told.mkv", tmp_path / "out.mkv"):
        with av.open(path) as reader:
            assert [stream.disposition for stream in reader.streams] == wanted


@pytest.mark.parametrize(
    ("display_matrix", "words"),
    [(PHONE, "rotation by 90 degrees clockwise"), (FRONT_CAMERA, "mirroring and rotation by 90 degrees clockwise")],
    ids=["phone", "front camera"],
)
def test_a_rotation_that_the_container_cannot_hold_is_left_out_with_a_warning(
    tmp_path: Path, display_matrix: tuple[int, ...], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = turned(make_clip(tmp_path / "clip.mp4", pictures=3), tmp_path / "phone.mp4", display_matrix)
    with DoublingEngine() as engine:
        assert convert(engine, source, tmp_path / "out.ts", lambda _: None).pictures == 3
    assert caplog.messages == [f"the {words} is left out: .ts cannot hold it"]


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


@pytest.mark.parametrize("picture", [11, 12, 59, 60])
def test_stopped_at_a_picture_that_is_decoded_after_a_key_frame_and_shown_before_it_all_others_come(
    picture: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = make_clip(tmp_path / "open.mkv", pictures=80, size=(96, 80), b_frames=2, options=OPEN_GROUPS)
    before = stopped_after(picture - IN_FLIGHT + 1, source, tmp_path / "out.mkv").pictures
    with open_recording(source, threading.Event()) as segment:
        unit = [frame.received_ns for frame in numbered_frames(segment, threading.Event())][before - 1]
        assert any(key < unit < key + 3 for key in segment.keys)
    with DoublingEngine() as engine:
        assert convert(engine, source, tmp_path / "out.mkv", lambda _: None).resumed == before
    assert numbers(tmp_path / "out.mkv") == list(range(80))
    assert not caplog.messages


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


def test_a_rotation_outlives_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_writer, "PART_PICTURES", 10)
    clip = make_clip(tmp_path / "clip.mp4", pictures=40, size=(96, 80))
    source = turned(clip, tmp_path / "phone.mp4", PHONE)
    assert stopped_after(20, source, tmp_path / "out.mp4").pictures
    with DoublingEngine() as engine:
        assert convert(engine, source, tmp_path / "out.mp4", lambda _: None, keep_parts=True).resumed
    assert shown_as(tmp_path / "out.mp4")[0] == shown_as(source)[0] == -90


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


def without_stamps(clip: Path) -> Path:
    """The transport stream with KLV that says no times, as asynchronous KLV of MISB ST 1402 does."""
    content = bytearray(clip.read_bytes())
    for found in re.finditer(b"\0\0\1\xfc", content):
        content[found.start() + 7] = 0  # neither PTS nor DTS
        content[found.start() + 9 : found.start() + 14] = b"\xff" * 5
    clip.write_bytes(content)
    return clip


def test_data_without_stamps_is_kept_beside_the_picture_that_came_before_it(tmp_path: Path) -> None:
    source = without_stamps(make_clip(tmp_path / "clip.ts", pictures=50, klv=True))
    with av.open(source) as reader:
        assert all(packet.pts is None for packet in reader.demux(reader.streams.data))
    with DoublingEngine() as engine:
        convert(engine, source, tmp_path / "out.ts", lambda _: None)
    data = packets(tmp_path / "out.ts", "data")
    assert [unit for _, unit in data] == [klv_packet(number) for number in range(50)]
    assert [float(time) for time, _ in data] == pytest.approx([number / 25 for number in range(50)], abs=0.09)


SOUND_PES = b"\0\0\1\xc0"
"""How each packet of sound begins in a transport stream."""


def with_damage(source: Path, number: int, at: int, value: int) -> Path:
    """The transport stream with one byte of its sound packet `number` changed."""
    content = bytearray(source.read_bytes())
    start = [found.start() for found in re.finditer(SOUND_PES, content)][number]
    content[start + at] = value
    source.write_bytes(content)
    return source


@pytest.mark.parametrize("number", [0, 5])
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.ts"])
def test_a_wild_stamp_of_sound_moves_nothing_and_fails_nothing(name: str, number: int, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=50)
    source = with_sound(clip, tmp_path / "sound.ts", "mp2", sounds=90)
    expected = packets(source, "audio")
    with_damage(source, number, 10, 8)  # one of the bits 29 to 22 of its time: six minutes
    with DoublingEngine() as engine:
        assert convert(engine, source, tmp_path / name, lambda _: None).pictures == 50
    sound = packets(tmp_path / name, "audio")
    assert [unit for _, unit in sound] == [unit for _, unit in expected]
    assert [float(time) for time, _ in sound] == pytest.approx([float(time) for time, _ in expected], abs=0.002)


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_damaged_sound_is_left_out_with_a_warning_and_costs_no_file(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = with_sound(make_clip(tmp_path / "clip.ts", pictures=50), tmp_path / "sound.ts", "aac", sounds=90)
    whole = len(packets(source, "audio"))
    with_damage(source, 5, 15, 0)  # the mark by which a frame of sound is known
    with DoublingEngine() as engine:
        assert convert(engine, source, tmp_path / name, lambda _: None).pictures == 50
    assert caplog.messages == [f"{source}: damaged packets of sound or data that are left out: 1"]
    assert len(packets(tmp_path / name, "audio")) == whole - 1


@pytest.mark.parametrize("length", [247, 255])
def test_a_file_may_have_a_name_as_long_as_can_be(length: int, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=3)
    target = tmp_path / f"{'n' * (length - 4)}.mp4"
    with DoublingEngine() as engine:
        assert convert(engine, clip, target, lambda _: None).pictures == 3
    assert {path.name for path in tmp_path.iterdir()} == {clip.name, target.name}
