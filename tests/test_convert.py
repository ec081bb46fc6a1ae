from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from stream.convert import convert
from stream.errors import CodecError, SourceUnsupported
from tests.clips import make_clip, read_number
from tests.doubling import DoublingEngine


def with_sound(clip: Path, path: Path) -> Path:
    """The clip with a second of silence that begins before its pictures."""
    with av.open(clip) as source, av.open(path, "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        audio = target.add_stream("aac", rate=48_000)
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
        assert [read_number(frame.to_ndarray()[:240]) for frame in frames] == list(range(30))
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
