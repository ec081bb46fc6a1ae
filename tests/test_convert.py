from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream

from stream.convert import convert
from stream.errors import CodecError, SourceUnsupported
from tests.clips import make_clip, read_number
from tests.doubling import DoublingEngine


def with_sound(clip: Path, path: Path, codec: str = "aac") -> Path:
    """The clip with a second of silence that begins before its pictures."""
    with av.open(clip) as source, av.open(path, "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        audio = cast("AudioStream", target.add_stream(codec, rate=48_000))
        for number in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.int16), format="s16", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, number * 1024, Fraction(1, 48_000)
            target.mux(audio.encode(frame))
        target.mux(audio.encode(None))
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                target.mux(packet)
    return path


def test_a_video_comes_out_doubled_with_its_times_its_matrix_and_its_sound(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=30, matrix="bt709", full_range=True, b_frames=2)
    source = with_sound(clip, tmp_path / "sound.mp4")
    seen: list[int] = []
    with DoublingEngine() as engine:
        assert convert(engine, source, tmp_path / "out.mkv", lambda done, _: seen.append(done)) == 30
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
            convert(engine, clip, tmp_path / "out.txt", lambda *_: None)
        with pytest.raises(SourceUnsupported, match=r"no\.mp4"):
            convert(engine, tmp_path / "no.mp4", tmp_path / "out.mp4", lambda *_: None)

        def interrupt(done: int, _: int | None) -> None:
            if done == 3:
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
        assert convert(engine, source, tmp_path / "out.mp4", lambda *_: None) == 5
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
        convert(engine, source, tmp_path / name, lambda *_: None)
    assert not (tmp_path / name).exists()
    assert not caplog.messages


def test_a_recording_whose_pictures_change_their_size_is_refused(tmp_path: Path) -> None:
    parts = [make_clip(tmp_path / f"{size[0]}.ts", pictures=3, size=size) for size in ((160, 120), (176, 144))]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    with (
        DoublingEngine() as engine,
        pytest.raises(SourceUnsupported, match=r"both\.ts: .* to 176x144; a file holds one"),
    ):
        convert(engine, tmp_path / "both.ts", tmp_path / "out.mp4", lambda *_: None)
    assert not (tmp_path / "out.mp4").exists()
