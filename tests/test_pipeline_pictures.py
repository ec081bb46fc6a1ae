from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest

from stream import outlet
from stream.publish import Publisher
from stream.relay import Relay
from stream.settings import EncoderSettings
from stream.wire.messages import Header, Message
from tests.clips import PATCHES, UdpSender, klv_packet, make_clip, read_number, read_patches
from tests.doubling import DoublingEngine
from tests.relaying import camera, decoded, luma, pictures, port_of, recording, replayed
from tests.waiting import wait_until


def test_a_replay_publishes_every_picture_in_order_doubled_and_with_its_colours(tmp_path: Path) -> None:
    figures, messages = replayed(DoublingEngine(), recording(make_clip(tmp_path / "clip.mp4", pictures=60)))
    assert (figures.received, figures.published, figures.under_way) == (60, 60, 0)
    frames = decoded(messages)
    assert [read_number(luma(frame)) for frame in frames] == list(range(60))
    assert {(frame.width, frame.height) for frame in frames} == {(320, 240)}
    plane = frames[30].to_ndarray()
    u, v = plane[240:300].reshape(120, 160), plane[300:].reshape(120, 160)
    assert np.abs(read_patches(plane[:240], u, v) - PATCHES).max() < 4


def shapes(messages: list[Message], codec: str) -> list[tuple[bool, Fraction | None]]:
    """Of each picture whether it is a key frame, and how wide a pixel is to be shown."""
    context = av.CodecContext.create(codec, "r")
    shown = []
    for message in pictures(messages):
        context.decode(av.Packet(message.payload))  # type: ignore[arg-type]
        shown.append((message.header.key, context.sample_aspect_ratio))  # type: ignore[attr-defined]
    return shown


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("suffix", [".ts", ".mp4"])
def test_pixels_that_are_not_square_are_shown_as_the_camera_means_them(
    suffix: str, codec: Literal["h264", "hevc"], tmp_path: Path
) -> None:
    clip = make_clip(tmp_path / f"clip{suffix}", pictures=10, aspect=Fraction(16, 11))
    _, messages = replayed(DoublingEngine(), recording(clip, encoder=EncoderSettings(codec=codec)))
    assert {shape for _, shape in shapes(messages, codec)} == {Fraction(16, 11)}


def test_another_shape_of_pixels_begins_with_a_key_frame(tmp_path: Path) -> None:
    parts = [make_clip(tmp_path / f"{n}.ts", pictures=10, aspect=Fraction(4, n)) for n in (3, 4)]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    _, messages = replayed(DoublingEngine(), recording(joined))
    shown = shapes(messages, "h264")
    assert [shape for _, shape in shown] == [Fraction(4, 3)] * 10 + [Fraction(1)] * 10
    assert shown[10][0]


def test_the_header_says_what_is_known_of_a_picture(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=30, creation_time="2026-03-01T20:00:00Z")
    _, messages = replayed(DoublingEngine(), recording(clip))
    headers = [message.header for message in pictures(messages)]
    first, last = headers[0], headers[-1]
    assert first.key
    assert (first.codec, first.width, first.height, first.mode, first.state) == ("h264", 320, 240, "enhanced", "clean")
    assert first.model == "0" * 64
    assert first.capture_clock == "recording"
    assert last.capture_ns is not None
    assert first.capture_ns is not None
    assert last.capture_ns - first.capture_ns == pytest.approx(29 * 40e6, abs=1e6)
    assert last.pts is not None
    assert first.pts is not None
    assert first.time_base is not None
    assert (last.pts - first.pts) * first.time_base == Fraction(29, 25)
    assert [header.seq for header in headers] == list(range(30))


def test_an_enhanced_picture_names_the_access_unit_that_it_came_from(tmp_path: Path) -> None:
    _, messages = replayed(DoublingEngine(), recording(make_clip(tmp_path / "clip.mp4", pictures=20)))
    units = [message for message in messages if message.kind == "source"]
    assert len(units) == 20
    assert [hashlib.sha256(unit.payload).digest() for unit in units] == [
        message.header.source_sha256 for message in pictures(messages)
    ]
    assert (units[0].header.codec, units[0].header.width, units[0].header.key) == ("h264", 160, True)


def test_the_camera_s_own_pictures_say_their_size_from_their_first_key_frame_on(tmp_path: Path) -> None:
    parts = [make_clip(tmp_path / f"{width}.ts", pictures=10, size=(width, 120)) for width in (160, 320)]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    _, messages = replayed(DoublingEngine(), recording(joined))
    units = [message.header for message in messages if message.kind == "source"]
    assert [(unit.width, unit.key) for unit in units[9:12]] == [(160, False), (320, True), (320, False)]


def test_the_camera_s_own_pictures_say_their_new_size_also_after_damage(tmp_path: Path) -> None:
    """After which decoding begins anew."""
    small = make_clip(tmp_path / "small.h264", pictures=10, key_interval=5, options={"x264-params": "cabac=0"})
    large = make_clip(tmp_path / "large.h264", pictures=5, size=(320, 240))
    with av.open(small) as container:
        units = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    units[3] = units[3][:300] + units[3][400:]
    clip = tmp_path / "clip.h264"
    clip.write_bytes(b"".join(units) + large.read_bytes())
    _, messages = replayed(DoublingEngine(), recording(clip))
    assert [message.header.state for message in pictures(messages)][3:6] == ["concealed", "tainted", "clean"]
    sizes = [(message.header.width, message.header.height) for message in messages if message.kind == "source"]
    assert sizes == [(160, 120)] * 10 + [(320, 240)] * 5


def test_klv_travels_untouched(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=20, klv=True)
    _, messages = replayed(DoublingEngine(), recording(clip))
    data = [message for message in messages if message.kind == "data"]
    assert [message.payload for message in data] == [klv_packet(number) for number in range(20)]
    assert {(message.header.codec, message.header.key) for message in data} == {("klv", False)}


def test_the_camera_s_own_pictures_say_when_to_decode_them_where_that_is_not_when_to_show_them(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=20, b_frames=2)
    with av.open(str(clip)) as container:
        times = [(packet.pts, packet.dts) for packet in container.demux(video=0) if packet.size]
    assert sum(dts != pts for pts, dts in times) > 5
    _, messages = replayed(DoublingEngine(), recording(clip))
    units = [message.header for message in messages if message.kind == "source"]
    assert [(unit.pts, unit.dts) for unit in units] == [(pts, None if dts == pts else dts) for pts, dts in times]


@pytest.mark.parametrize(
    ("changes", "missing"), [({"publish_source": False}, "source"), ({"publish_data": False}, "data")]
)
def test_what_came_untouched_is_published_where_the_settings_ask_for_it(
    changes: dict[str, bool], missing: str, tmp_path: Path
) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=10, klv=True)
    _, messages = replayed(DoublingEngine(), recording(clip, **changes))
    assert {message.kind for message in messages} == {"video", "source", "data"} - {missing}


@pytest.mark.parametrize("codec", ["hevc", "av1"])
def test_other_encoders_are_flushed_at_the_end(tmp_path: Path, codec: str) -> None:
    feed = recording(make_clip(tmp_path / "clip.mp4", pictures=12), encoder=EncoderSettings(codec=codec))  # type: ignore[arg-type]
    figures, messages = replayed(DoublingEngine(), feed)
    assert figures.published == 12
    assert {message.header.codec for message in pictures(messages)} == {codec}
    frames = decoded(messages, "hevc" if codec == "hevc" else "libdav1d")
    assert [read_number(luma(frame)) for frame in frames] == list(range(12))


def test_the_encoder_plans_with_the_rate_that_the_source_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = []
    real = outlet.Encoder
    monkeypatch.setattr(outlet, "Encoder", lambda *arguments: planned.append(arguments[5]) or real(*arguments))
    replayed(DoublingEngine(), recording(make_clip(tmp_path / "clip.mp4", pictures=5, rate=10)))
    assert planned == [Fraction(10)]


def test_a_folder_plays_file_after_file_and_a_new_size_begins_with_a_key_frame(tmp_path: Path) -> None:
    make_clip(tmp_path / "a.mp4", pictures=10)
    make_clip(tmp_path / "b.mp4", pictures=10, size=(176, 144))
    figures, messages = replayed(DoublingEngine(), recording(tmp_path))
    assert figures.published == 20
    headers = [message.header for message in pictures(messages)]
    assert [(header.width, header.height) for header in headers] == [(320, 240)] * 10 + [(352, 288)] * 10
    assert headers[10].key


def test_pictures_whose_lines_go_backwards_in_memory_are_shown_upright(tmp_path: Path) -> None:
    path = tmp_path / "raw.nut"
    slope = np.repeat(np.arange(60, 204, 3, dtype=np.uint8)[:, None], 64, axis=1)
    with av.open(path, "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray"
        stream.codec_context.extradata = b"BottomUp\0"
        for number in range(10):
            picture = av.VideoFrame.from_ndarray(slope[::-1].copy(), format="gray")
            picture.pts, picture.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(picture))
    figures, messages = replayed(DoublingEngine(), recording(path))
    assert (figures.published, figures.lost) == (10, {})
    shown = luma(decoded(messages)[0])[:, 64].astype(int)
    assert shown[:10].mean() < shown[-10:].mean() - 60


def test_access_units_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mkv", pictures=30, key_interval=10)
    with av.open(str(clip)) as container:
        wrong = bytes([packet for packet in container.demux(video=0) if packet.size][13])
    clip.write_bytes(clip.read_bytes().replace(wrong, b"\xff\xff" + wrong[2:]))
    figures, _ = replayed(DoublingEngine(), recording(clip))
    assert (figures.received, figures.published, figures.lost) == (30, 29, {"undecodable": 1})


def test_a_size_that_is_not_known_yet_does_not_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = camera(open_timeout=2.0)
    clip = make_clip(tmp_path / "clip.ts", pictures=200, key_interval=1000)
    start = clip.stat().st_size // 1316 // 5
    headers: list[Header] = []
    with DoublingEngine() as engine, Publisher(wanted.relay, "run") as publisher:
        monkeypatch.setattr(publisher, "publish", lambda *message: headers.append(message[2]))
        with Relay(wanted, engine, publisher), UdpSender(clip, port_of(wanted), start=start, bit_rate=1_000_000):
            wait_until(lambda: headers, "an access unit")
    assert {(header.width, header.height) for header in headers} == {(None, None)}
