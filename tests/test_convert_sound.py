from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.stream import Disposition

from stream.files.convert import convert
from tests.clips import make_clip, read_number
from tests.converting import cut_in_front, with_sound
from tests.doubling import DoublingEngine
from tests.replaying import packets


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
    assert told.startswith(f"the sound is left out: no player can play audio flac in {suffix}")


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


# Going on


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
    assert caplog.messages == [f"{source}: damaged packets of sound or data left out: 1"]
    assert len(packets(tmp_path / name, "audio")) == whole - 1
