from __future__ import annotations

import http.server
import time
from pathlib import Path
from typing import Any

import pytest

from stream.decode import Decoder
from stream.errors import SourceLost
from stream.source import open_source
from stream.sources import reader
from tests.clips import make_clip
from tests.reading import feed, readers, take, why_lost
from tests.waiting import wait_until
from tests.web_server import Answer, WebServer, send


def test_a_recording_over_http_is_read_to_its_end_and_opened_again(tmp_path: Path) -> None:
    make_clip(tmp_path / "clip.ts", pictures=30)
    with WebServer(tmp_path, {}) as server:
        settings = feed(server.url("/clip.ts"))
        with open_source(settings) as source:
            segment = next(source.segments())
            assert segment.recorded
            assert len(take(segment, 100)) == 30
            with pytest.raises(SourceLost, match="the server ended the stream"):
                next(source.segments())
        with open_source(settings.model_copy(update={"mode": "replay"})) as source:
            assert [len(take(segment, 100)) for segment in source.segments()] == [30]


def test_a_connection_that_breaks_off_in_a_recording_over_http_is_a_loss(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=20).read_bytes()

    def broken_off(handler: http.server.BaseHTTPRequestHandler) -> None:
        send(handler, 200, Content_Length=str(2 * len(clip)))
        handler.wfile.write(clip)

    with WebServer(tmp_path, {"/cam": broken_off}) as server:
        lost = why_lost(feed(server.url("/cam")))
    assert (lost.reason, str(lost).rpartition(": ")[2]) == ("lost", "the connection broke off")


def test_a_recording_over_http_whose_key_frames_nobody_takes_for_long_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_clip(tmp_path / "clip.ts", pictures=120, key_interval=60)
    monkeypatch.setattr(reader, "KEYLESS_SECONDS", 0.5)
    monkeypatch.setattr(reader, "AHEAD_BYTES", 1)
    with WebServer(tmp_path, {}) as server, open_source(feed(server.url("/clip.ts"))) as source:
        packets = next(source.segments()).packets()
        began = [next(packets) for _ in range(10)]
        time.sleep(1)  # the time that the pictures take
        assert len(began + list(packets)) == 120


def test_a_live_stream_over_http_without_key_frames_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=200, key_interval=200).read_bytes()
    monkeypatch.setattr(reader, "KEYLESS_SECONDS", 0.5)

    def stream(handler: http.server.BaseHTTPRequestHandler) -> None:
        send(handler, 200, Content_Type="video/mp2t")
        for start in range(0, len(clip), len(clip) // 100):
            handler.wfile.write(clip[start : start + len(clip) // 100])
            time.sleep(0.02)

    with WebServer(tmp_path, {"/live": stream}) as server, open_source(feed(server.url("/live"))) as source:
        take(next(source.segments()), 200)
        with pytest.raises(SourceLost, match=r"no key frame for 0\.5 s"):
            next(source.segments())


def test_a_live_stream_over_http_is_not_paced(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=30).read_bytes()

    def stream(handler: http.server.BaseHTTPRequestHandler) -> None:
        send(handler, 200, Content_Type="video/mp2t")
        handler.wfile.write(clip)
        time.sleep(5)

    with WebServer(tmp_path, {"/live": stream}) as server, open_source(feed(server.url("/live"))) as source:
        segment = next(source.segments())
        assert not segment.recorded
        assert len(take(segment, 100)) >= 28
        with pytest.raises(SourceLost, match=r"no packet for 2 s") as lost:
            next(source.segments())
    assert lost.value.reason == "time-out"


def test_video_that_stops_while_data_goes_on_is_noticed(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=400, klv=True).read_bytes()
    packets = [clip[start : start + 188] for start in range(0, len(clip), 188)]
    data_pid = 0x101

    def stream(handler: http.server.BaseHTTPRequestHandler) -> None:
        send(handler, 200, Content_Type="video/mp2t")
        handler.wfile.write(b"".join(packets[: len(packets) // 10]))
        for packet in packets[len(packets) // 10 :]:
            if (packet[1] & 0x1F) << 8 | packet[2] == data_pid:
                handler.wfile.write(packet)
                time.sleep(0.01)

    with (
        WebServer(tmp_path, {"/live": stream}) as server,
        open_source(feed(server.url("/live"), read_timeout=0.5)) as source,
    ):
        packets_read = list(next(source.segments()).packets())
        with pytest.raises(SourceLost, match=r"packets come, but no video for 0.5 s") as lost:
            next(source.segments())
    assert lost.value.reason == "no video"
    assert sum(packet.kind == "data" for packet in packets_read) < 200, "long before the data ends"


def changing(folder: Path, **after: Any) -> Answer:
    """An answer whose video is something else after 20 pictures."""
    first = make_clip(folder / "first.ts", pictures=20).read_bytes()
    second = make_clip(folder / "second.ts", pictures=40, **after).read_bytes()

    def stream(handler: http.server.BaseHTTPRequestHandler) -> None:
        send(handler, 200, Content_Type="video/mp2t")
        handler.wfile.write(first)
        for start in range(0, len(second), 1316):
            handler.wfile.write(second[start : start + 1316])
            time.sleep(0.02)
        time.sleep(5)

    return stream


@pytest.mark.parametrize("codec", ["libx265", "mpeg4"])
def test_a_stream_over_http_whose_codec_changes_is_lost_at_once(tmp_path: Path, codec: str) -> None:
    with (
        WebServer(tmp_path, {"/live": changing(tmp_path, codec=codec)}) as server,
        open_source(feed(server.url("/live"))) as source,
    ):
        assert 18 <= len(take(next(source.segments()), 100)) <= 20
        with pytest.raises(SourceLost, match="the codec of its video has changed"):
            next(source.segments())


def test_a_stream_over_http_whose_video_moves_goes_on_and_its_reader_can_end(tmp_path: Path) -> None:
    with WebServer(tmp_path, {"/live": changing(tmp_path, first_pid=0x200)}) as server:
        with open_source(feed(server.url("/live"))) as source:
            assert len(take(next(source.segments()), 50)) == 50
        wait_until(lambda: not readers(), "the end of the reader")


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_stream_over_http_that_repeats_its_parameter_sets_goes_on(tmp_path: Path, codec: str) -> None:
    body = make_clip(tmp_path / "clip.flv", codec=codec, pictures=20).read_bytes()
    with (
        WebServer(tmp_path, {"/live": flv(body, body)}) as server,
        open_source(feed(server.url("/live"))) as source,
    ):
        segment = next(source.segments())
        decoder = Decoder(segment.video)
        frames = [frame for unit in take(segment, 100) for frame in decoder.decode(unit)] + decoder.flush()
    assert (len(frames), decoder.lost) == (40, 0)


def test_a_stream_over_http_whose_parameter_sets_of_hevc_change_is_lost_at_once(tmp_path: Path) -> None:
    """FFmpeg goes on with the first ones."""
    first = make_clip(tmp_path / "first.flv", codec="libx265", pictures=20).read_bytes()
    second = make_clip(tmp_path / "second.flv", codec="libx265", pictures=20, size=(320, 240)).read_bytes()
    with (
        WebServer(tmp_path, {"/live": flv(first, second)}) as server,
        open_source(feed(server.url("/live"))) as source,
    ):
        assert len(take(next(source.segments()), 100)) == 20
        with pytest.raises(SourceLost, match="the size or profile of its video has changed") as lost:
            next(source.segments())
    assert lost.value.reason == "lost"


def flv(first: bytes, second: bytes) -> Answer:
    """An answer of two streams in FLV, one behind the other."""
    header_bytes = 13

    def stream(handler: http.server.BaseHTTPRequestHandler) -> None:
        send(handler, 200, Content_Type="video/x-flv")
        handler.wfile.write(first + second[header_bytes:])

    return stream
