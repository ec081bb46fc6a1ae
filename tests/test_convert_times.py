from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.container import Flags

from stream.files import part_writer
from stream.files.convert import convert, job_of
from tests.clips import klv_packet, make_clip
from tests.converting import stopped_after, with_sound
from tests.doubling import DoublingEngine
from tests.replaying import numbers, packets
from tests.test_fields import PICTURES, fields, transport_stream


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


# Going on


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
