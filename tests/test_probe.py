from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from stream.errors import SourceLost, SourceUnsupported
from stream.settings import FeedSettings
from tests.clips import UdpSender, datagrams, free_port, make_clip
from tests.command import ROOT
from tests.converting import cut_in_front
from tests.waiting import DEADLINE
from tools.probe import probe, survey

app = typer.Typer()
app.command()(probe)


def found(url: str | Path, seconds: float = 5) -> dict[str, Any]:
    return survey(FeedSettings(url=str(url), open_timeout=2.0, read_timeout=2.0), seconds)


def test_a_recording_is_described_and_measured(tmp_path: Path) -> None:
    clip = make_clip(
        tmp_path / "clip.mkv",
        codec="libx265",
        pix_fmt="yuv420p10le",
        size=(320, 240),
        pictures=60,
        key_interval=20,
        matrix="bt709",
        full_range=True,
        creation_time="2026-11-22T15:30:00Z",
    )
    values = found(clip)
    video = values["video"]
    assert values["source"] == str(clip)
    assert values["container"] == "matroska,webm"
    assert (video["codec"], video["profile"], video["pixel_format"]) == ("hevc", "Main 10", "yuv420p10le")
    assert (video["width"], video["height"], video["rate"]) == (320, 240, 25.0)
    assert (video["matrix"], video["matrix_stated"], video["full_range"]) == ("bt709", True, True)
    assert video["key_interval_seconds"] == pytest.approx(0.8)
    assert video["pictures"] == {"clean": 60}
    assert video["bit_rate"] == pytest.approx(clip.stat().st_size * 8 / 2.4, rel=0.1)
    assert values["relay"] == {
        "decoded_to": "yuv420p",
        "capture_clock": "recording",
        "width": 640,
        "height": 480,
        "codec": "h264",
        "bit_rate": 2_000_000,
        "refused": None,
    }


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le", "yuv422p"])
@pytest.mark.parametrize("matrix", ["bt709", None])
def test_whether_a_camera_says_its_matrix_is_told_of_its_own_pictures(
    tmp_path: Path, pix_fmt: str, matrix: str | None
) -> None:
    """Those that are made plain all say one."""
    clip = make_clip(tmp_path / "clip.mkv", pictures=5, pix_fmt=pix_fmt, **({"matrix": matrix} if matrix else {}))
    assert found(clip)["video"]["matrix_stated"] is (matrix is not None)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((2048, 1536), 'its pictures are 2048x1536; the feed must have memory = "708MB" or more'),
        ((1920, 1080), None),
        ((4104, 32), "its pictures are 4104x32; they must be 16x16 to 4096x4096"),
        ((8, 8), "its pictures are 8x8; they must be 16x16 to 4096x4096"),
    ],
)
def test_pictures_that_the_relay_would_not_take_are_told_with_what_it_takes(
    tmp_path: Path, size: tuple[int, int], reason: str | None
) -> None:
    clip = make_clip(tmp_path / "clip.avi", codec="mjpeg", pix_fmt="yuvj420p", size=size, pictures=1)
    assert found(clip)["relay"]["refused"] == reason


def test_only_the_time_asked_for_is_looked_at(tmp_path: Path) -> None:
    assert found(make_clip(tmp_path / "clip.mkv", pictures=60), seconds=1)["video"]["access_units"] == 26


def test_pictures_that_were_cut_off_in_front_are_not_lost(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", pictures=50, key_interval=50)
    cut_in_front(clip, 1)
    video = found(clip)["video"]
    assert (video["pictures"], video["lost"]) == ({"clean": 25}, 0)


def test_a_recording_without_time_stamps_is_looked_at_by_its_rate(tmp_path: Path) -> None:
    video = found(make_clip(tmp_path / "clip.h264", pictures=60), seconds=1)["video"]
    assert video["access_units"] == 26
    assert (video["seconds"], video["key_interval_seconds"]) == pytest.approx((1, 1))
    assert video["bit_rate"] > 10_000


def test_a_source_whose_time_stamps_begin_again_is_measured_on(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=75)
    clip.write_bytes(2 * clip.read_bytes())
    video = found(clip, seconds=60)["video"]
    assert (video["access_units"], video["seconds"]) == (150, pytest.approx(149 / 25))
    assert video["bit_rate"] > 10_000


def test_a_recording_whose_name_is_no_utf_8_is_looked_at(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", pictures=10).rename(tmp_path / "k\udcfcche.ts")
    assert found(clip)["source"] == str(clip)


def test_a_live_feed_is_described_with_its_data_streams(tmp_path: Path) -> None:
    clip, port = make_clip(tmp_path / "clip.ts", klv=True, interlaced=True, pictures=75), free_port()
    with UdpSender(clip, port, bit_rate=1_000_000):
        values = found(f"udp://127.0.0.1:{port}", seconds=0.3)
    assert values["container"] == "mpegts"
    assert values["video"]["interlaced"] is True
    assert values["data"]["klv"] > 5
    assert values["relay"]["capture_clock"] == "arrival"


def test_a_feed_that_goes_silent_while_it_is_looked_at_is_lost(tmp_path: Path) -> None:
    clip, port = make_clip(tmp_path / "clip.ts", pictures=30), free_port()
    with UdpSender(clip, port), pytest.raises(SourceLost, match="no packet for 2 s"):
        found(f"udp://127.0.0.1:{port}")


def test_a_feed_without_a_key_frame_says_so(tmp_path: Path) -> None:
    clip, port = make_clip(tmp_path / "clip.ts", pictures=200, key_interval=1000), free_port()
    with (
        UdpSender(clip, port, bit_rate=1_000_000, start=len(datagrams(clip)) // 4),
        pytest.raises(SourceUnsupported, match=r"no picture could be decoded from \d+ access units, 0 of them key"),
    ):
        found(f"udp://127.0.0.1:{port}", seconds=0.3)


def test_what_is_printed_is_written_as_one_json_object(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mkv", pictures=30)
    result = CliRunner().invoke(app, [str(clip), "--json", str(tmp_path / "probe.json")])
    written = json.loads((tmp_path / "probe.json").read_text())
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert result.exit_code == 0
    assert written["video"]["width"] == 160
    assert lines["video.width"] == "160"
    assert lines["relay.height"] == "240"


@pytest.mark.parametrize("url", ["gopher://me:secret@host/live", "rtsp://me:secret@host:99999/", "udp://me:secret@h"])
def test_an_address_that_is_none_is_wrong_use_and_shows_no_password(url: str) -> None:
    ended = run_probe(url)
    assert ended.returncode == 2
    assert ended.stderr.startswith("nightbridge: ")
    assert ended.stderr.count("\n") == 1
    assert "must be" in ended.stderr
    assert "secret" not in ended.stderr


@pytest.mark.parametrize("option", ["--password-file", "--tls-ca-file"])
def test_a_file_that_is_none_is_wrong_use(tmp_path: Path, option: str) -> None:
    ended = run_probe("rtsp://host/", option, str(tmp_path / "missing"))
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "a file that can be read" in ended.stderr


@pytest.mark.parametrize("scheme", ["rtsp", "rtsps", "http", "https"])
def test_nobody_who_listens_is_told_in_one_line_and_in_json(tmp_path: Path, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"{scheme}://127.0.0.1:{server.getsockname()[1]}/cam"
    ended = run_probe(url, "--json", str(tmp_path / "probe.json"))
    assert (ended.returncode, ended.stderr) == (1, f"nightbridge: {url}: connection refused\n")
    written = json.loads((tmp_path / "probe.json").read_text())
    assert written == {"error": f"{url}: connection refused", "reason": "refused"}


def test_what_is_wrong_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    ended = run_probe(str(tmp_path / "missing.mp4"))
    assert ended.returncode == 1
    assert ended.stderr == f"nightbridge: {tmp_path / 'missing.mp4'}: no such file or folder\n"


TELLING = """
from stream.sources import udp
receive = udp.receive
def tell(listener):
    print("receiving", flush=True)
    return receive(listener)
udp.receive = tell
from tools.app import main
main()
"""
"""The command, which tells whenever it begins to wait for a datagram."""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
@pytest.mark.parametrize("waits", [1, 150], ids=["silence", "pictures"])
def test_a_signal_ends_it_at_once_without_a_report(
    tmp_path: Path, waits: int, number: signal.Signals, code: int
) -> None:
    """Datagrams are received in the middle of FFmpeg."""
    clip, port, report = make_clip(tmp_path / "clip.ts"), free_port(), tmp_path / "probe.json"
    words = ["probe", f"udp://127.0.0.1:{port}", "--seconds", "600", "--json", str(report)]
    with (
        UdpSender(clip, port, bit_rate=1_000_000, repeat=True) if waits > 1 else nullcontext(),
        subprocess.Popen(
            [sys.executable, "-c", TELLING, *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as program,
    ):
        assert program.stdout is not None
        try:
            for _ in range(waits):
                assert program.stdout.readline() == "receiving\n"
            program.send_signal(number)
            printed, told = program.communicate(timeout=DEADLINE)
        finally:
            program.kill()
    assert (program.returncode, told) == (code, "")
    assert set(printed.splitlines()) <= {"receiving"}
    assert not report.exists()


def run_probe(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools", "probe", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
