from __future__ import annotations

from pathlib import Path

import av
import pytest

from stream.source import open_source
from tests.clips import make_clip
from tests.reading import feed, numbers, take, why_lost
from tests.web_server import WebServer, impatient


def make_playlist(
    folder: Path, *, segments: int = 4, ended: bool = False, codec: str = "libx264", fragments: bool = False
) -> Path:
    """An HLS playlist and its segments of 0.4 s each: transport streams, or fragments of MP4."""
    clip = make_clip(folder / "all.ts", codec=codec, pictures=10 * segments, key_interval=10)
    made = folder / "live.m3u8"
    options = {"hls_time": "0.4", "hls_list_size": "0", "hls_segment_filename": f"{folder}/part%d.ts"}
    if fragments:
        options |= {"hls_segment_type": "fmp4", "hls_segment_filename": f"{folder}/part%d.m4s"}
    with av.open(str(clip)) as source, av.open(str(made), "w", format="hls", options=options) as playlist:
        stream = playlist.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                playlist.mux(packet)
    if not ended:
        made.write_text(made.read_text().replace("#EXT-X-ENDLIST\n", ""))
    return made


def test_a_playlist_is_paced_and_begins_near_its_end(tmp_path: Path) -> None:
    make_playlist(tmp_path)
    with WebServer(tmp_path, {}) as server, open_source(feed(server.url("/live.m3u8"))) as source:
        segment = next(source.segments())
        assert segment.recorded
        assert segment.info.container == "hls"
        assert numbers(segment, 15)[0] == 20


def damaged_in(folder: Path) -> list[int]:
    """Which of the 40 access units of a playlist are marked as damaged."""
    with WebServer(folder, {}) as server, open_source(feed(server.url("/live.m3u8"), mode="replay")) as source:
        units = take(next(source.segments()), 50)
    assert len(units) == 40
    return [number for number, unit in enumerate(units) if unit.packet.is_corrupt]


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_damaged_access_unit_of_a_playlist_of_transport_streams_is_marked(tmp_path: Path, codec: str) -> None:
    make_playlist(tmp_path, ended=True, codec=codec)
    part = tmp_path / "part3.ts"
    data = part.read_bytes()
    middle_of_key_frame = 188 * 8
    part.write_bytes(data[:middle_of_key_frame] + data[middle_of_key_frame + 188 :])
    assert damaged_in(tmp_path) == [30]


def test_an_access_unit_that_is_cut_off_in_a_playlist_of_fragments_is_marked(tmp_path: Path) -> None:
    make_playlist(tmp_path, ended=True, codec="mpeg4", fragments=True)
    part = tmp_path / "part3.m4s"
    part.write_bytes(part.read_bytes()[:-50])
    assert damaged_in(tmp_path) == [39]


def test_a_playlist_cannot_read_files_of_this_machine(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "secret.ts", pictures=30)
    (tmp_path / "live.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{clip}\n#EXT-X-ENDLIST\n"
    )
    with WebServer(tmp_path, {}) as server:
        lost = why_lost(impatient(server.url("/live.m3u8")))
    assert lost.reason in ("refused", "lost", "no video", "time-out")
