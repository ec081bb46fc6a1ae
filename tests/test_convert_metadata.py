from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from stream.files.convert import convert
from tests.clips import make_clip, read_number, turned
from tests.converting import PHONE, shown_as
from tests.doubling import DoublingEngine


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


FRONT_CAMERA = (0, 1 << 16, 0, 1 << 16, 0, 0, 0, 0, 1 << 30)
"""Turned and mirrored."""


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
