"""A night camera: what arrives is dark, small, thin, on time, and the same for the same seed."""

from __future__ import annotations

import inspect
import io
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from engines.data.darken import Night
from stream.errors import SourceLost, SourceUnsupported
from stream.simulator.camera import Codec, NightCamera, Sent, simulate_night
from tests.clips import make_clip
from tests.waiting import DEADLINE, wait_until
from tools import simulate as command

SHIPPED = Path(command.__file__).parent / "clip" / "day.mp4"


class Receiver:
    """A UDP socket on this machine that keeps what arrives inside its `with` block."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(DEADLINE)
        self.url = f"udp://127.0.0.1:{self._socket.getsockname()[1]}"
        self.datagrams: list[bytes] = []
        self.first = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join(DEADLINE)
        self._socket.close()

    def _read(self) -> None:
        while data := self._socket.recv(65536):
            self.datagrams.append(data)
            self.first.set()


class Clock:
    """Stands in for `time`: sleeping takes no time at all, and is exact."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("stream.simulator.camera.time", clock)
    return clock


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures of 96x64 at 25 a second, each of its own brightness."""
    path = tmp_path_factory.mktemp("clips") / "small.mp4"
    with av.open(path, "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(20):
            picture = np.full((64, 96, 3), 12 * index, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return path


def received(clip: Path, **options: Any) -> tuple[list[bytes], Sent]:
    """The datagrams that arrive from a camera, and what it says that it sent."""
    with Receiver() as receiver:
        sent = NightCamera(clip, receiver.url, **options).run()
    return receiver.datagrams, sent


def decoded(datagrams: list[bytes]) -> list[av.VideoFrame]:
    with av.open(io.BytesIO(b"".join(datagrams)), "r", format="mpegts") as container:
        return list(container.decode(video=0))


def test_what_arrives_is_dark_and_half_the_size(clock: Clock) -> None:
    datagrams, sent = received(SHIPPED, seconds=1)
    frames = decoded(datagrams)
    assert len(frames) == sent.pictures == 25
    assert {(frame.width, frame.height) for frame in frames} == {(320, 240)}
    assert all(15 < frame.to_ndarray(format="rgb24").mean() < 25 for frame in frames)


def test_datagrams_hold_whole_packets_of_mpeg_ts(clock: Clock) -> None:
    datagrams, sent = received(SHIPPED, seconds=1)
    assert len(datagrams) == sent.datagrams
    assert max(len(data) for data in datagrams) == 1316
    assert all(len(data) % 188 == 0 and data[::188] == b"\x47" * (len(data) // 188) for data in datagrams)


@pytest.mark.parametrize(
    ("codec", "bit_rate"), [("h264", 300_000), ("h264", 150_000), ("hevc", 300_000), ("mpeg4", 300_000)]
)
def test_the_bit_rate_is_the_one_asked_for(clock: Clock, codec: Codec, bit_rate: int) -> None:
    sent = NightCamera(SHIPPED, "udp://127.0.0.1:9", codec=codec, bit_rate=bit_rate, seconds=3).run()
    assert sent.bit_rate == pytest.approx(bit_rate, rel=0.2)


@pytest.mark.parametrize(("codec", "name"), [("h264", "h264"), ("hevc", "hevc"), ("mpeg4", "mpeg4")])
def test_a_key_frame_comes_every_two_seconds_and_no_frame_is_late(
    clock: Clock, small_clip: Path, codec: Codec, name: str
) -> None:
    datagrams, _ = received(small_clip, codec=codec, loop=True, seconds=4.2)
    with av.open(io.BytesIO(b"".join(datagrams)), "r", format="mpegts") as container:
        assert container.streams.video[0].codec_context.name == name
        packets = [packet for packet in container.demux(video=0) if packet.pts is not None]
    assert [number for number, packet in enumerate(packets) if packet.is_keyframe] == [0, 50, 100]
    assert all(packet.pts == packet.dts for packet in packets)


def test_the_colours_are_marked_as_they_are(clock: Clock) -> None:
    datagrams, _ = received(SHIPPED, seconds=0.2, night=Night(1, 1e9, 0), bit_rate=4_000_000)
    frame = decoded(datagrams)[-1]
    with av.open(SHIPPED) as clip:
        day = next(clip.decode(video=0)).to_ndarray(format="rgb24")
    assert (frame.colorspace, frame.color_range) == (5, 1)
    assert frame.to_ndarray(format="rgb24").mean((0, 1)) == pytest.approx(day.mean((0, 1)), abs=2)


def test_the_same_seed_sends_the_same_bytes(clock: Clock) -> None:
    first, again, other = (received(SHIPPED, seconds=0.4, seed=seed, loss=0.1)[0] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_noise_is_new_in_every_picture() -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    first, second = (picture.astype(float) for picture in simulate_night([grey, grey], Night(), 0))
    assert first.std() > 1
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05


def test_the_share_asked_for_gets_lost(clock: Clock) -> None:
    datagrams, sent = received(SHIPPED, seconds=3, loss=0.2)
    assert sent.lost / sent.datagrams == pytest.approx(0.2, abs=0.07)
    assert len(datagrams) == sent.datagrams - sent.lost


def test_a_loop_begins_again_and_a_clip_alone_ends(clock: Clock, small_clip: Path) -> None:
    assert received(small_clip)[1].pictures == 20
    datagrams, sent = received(small_clip, loop=True, seconds=2)
    assert sent.pictures == 50
    light = [frame.to_ndarray(format="gray").mean() for frame in decoded(datagrams)]
    assert light[39] > light[20] + 20
    assert light[20] == pytest.approx(light[0], abs=4)


def test_a_clip_that_cannot_be_sought_in_begins_again_too(clock: Clock, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.h264", pictures=20, size=(96, 64))
    assert NightCamera(clip, "udp://127.0.0.1:9", loop=True, seconds=2).run().pictures == 50


@pytest.mark.parametrize(("rate", "pictures"), [(Fraction(10), 8), (Fraction(25, 2), 10), (Fraction(50), 40)])
def test_another_rate_shows_the_same_scene_at_the_same_time(
    clock: Clock, small_clip: Path, rate: Fraction, pictures: int
) -> None:
    datagrams, sent = received(small_clip, rate=rate, night=Night(1, 1e9, 0), bit_rate=2_000_000)
    frames = decoded(datagrams)
    assert len(frames) == sent.pictures == pictures
    for number, frame in enumerate(frames):
        of_clip = int(number * 25 / rate)
        assert frame.to_ndarray(format="rgb24").mean() == pytest.approx(12 * of_clip, abs=5)
        assert frame.time == pytest.approx(float(number / rate), abs=0.001)


@pytest.mark.parametrize("codec", ["h264", "hevc", "mpeg4"])
@pytest.mark.parametrize("rate", ["23.97602", "65536/3001", "0.3", "1/60"])
def test_every_rate_can_be_had_with_every_codec(clock: Clock, small_clip: Path, codec: Codec, rate: str) -> None:
    wanted = command.as_rate(rate)
    datagrams, sent = received(small_clip, codec=codec, rate=wanted, loop=True, seconds=float(4 / wanted))
    frames = decoded(datagrams)
    times = [float(frame.time) for frame in frames if frame.time is not None]
    assert len(times) == sent.pictures == 4
    assert sent.seconds == pytest.approx(float(4 / wanted), rel=1e-6)
    assert times == pytest.approx([float(number / wanted) for number in range(4)], abs=0.001)


@pytest.mark.parametrize("codec", ["h264", "hevc", "mpeg4"])
def test_the_highest_bit_rate_can_be_had_at_a_low_rate(clock: Clock, small_clip: Path, codec: Codec) -> None:
    bit_rate = command.as_bit_rate("1000M")
    assert len(decoded(received(small_clip, codec=codec, rate=Fraction(3, 10), bit_rate=bit_rate)[0])) == 1


def test_the_size_can_be_chosen(clock: Clock, small_clip: Path) -> None:
    assert {(frame.width, frame.height) for frame in decoded(received(small_clip, size=(64, 48))[0])} == {(64, 48)}


def test_work_between_pictures_makes_no_drift(clock: Clock, small_clip: Path) -> None:
    times: list[float] = []

    def work(sent: Sent) -> None:
        times.append(clock.now)
        clock.now += 0.5 if sent.pictures == 5 else 0.02

    NightCamera(small_clip, "udp://127.0.0.1:9", loop=True, seconds=2).run(work)
    due = 1000 + np.arange(50) / 25
    late = np.array(times) - due
    assert late.min() > -1e-6
    assert late[4] == pytest.approx(0, abs=1e-6)
    assert late[5] > 0.4
    assert late[-1] == pytest.approx(0, abs=1e-6)


def test_pictures_come_in_real_time(small_clip: Path) -> None:
    start = time.monotonic()
    sent = NightCamera(small_clip, "udp://127.0.0.1:9").run()
    assert sent.pictures == 20
    assert 19 / 25 <= time.monotonic() - start < 10


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_stop_ends_a_camera_that_somebody_watches_and_leaves_nothing_open(small_clip: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    camera = NightCamera(small_clip, f"udp://127.0.0.1:{port}", rate=Fraction(50), loop=True)
    threads = threading.active_count()
    thread = threading.Thread(target=camera.run)
    thread.start()
    options = {"timeout": "5000000", "analyzeduration": "200000"}
    with av.open(f"udp://127.0.0.1:{port}", format="mpegts", options=options) as container:
        frames = container.decode(video=0)
        assert {next(frames).width for _ in range(5)} == {48}
    camera.stop()
    thread.join(2)
    assert not thread.is_alive()
    wait_until(lambda: threading.active_count() <= threads, "the end of all threads")


def test_a_slow_camera_stops_at_once(small_clip: Path) -> None:
    camera = NightCamera(small_clip, "udp://127.0.0.1:9", rate=Fraction(1, 60), loop=True)
    begun = threading.Event()
    thread = threading.Thread(target=camera.run, args=(lambda _: begun.set(),))
    thread.start()
    assert begun.wait(DEADLINE)
    camera.stop()
    thread.join(2)
    assert not thread.is_alive()


def test_no_file_stays_open(clock: Clock, small_clip: Path) -> None:
    before = open_files()
    for _ in range(3):
        NightCamera(small_clip, "udp://127.0.0.1:9").run()
        with pytest.raises(SourceLost, match=r"udp://255\.255\.255\.255:9: Permission denied"):
            NightCamera(small_clip, "udp://255.255.255.255:9").run()
    wait_until(lambda: open_files() <= before, "the closing of all files")


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "clip.mp4"
    text.write_text("not a video")
    with pytest.raises(SourceUnsupported, match=r"clip\.mp4: Invalid data"):
        NightCamera(text, "udp://127.0.0.1:9").run()
    with pytest.raises(SourceUnsupported, match=r"gone\.mp4: No such file"):
        NightCamera(tmp_path / "gone.mp4", "udp://127.0.0.1:9").run()


def test_a_clip_of_a_codec_that_is_not_known_is_refused(small_clip: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(small_clip.read_bytes().replace(b"avc1", b"none"))
    with pytest.raises(SourceUnsupported, match=r"clip\.mp4: its video codec is not supported"):
        NightCamera(clip, "udp://127.0.0.1:9").run()


def test_a_clip_whose_title_is_no_utf_8_is_played(clock: Clock, tmp_path: Path) -> None:
    clip, old = tmp_path / "clip.avi", tmp_path / "old.avi"
    with av.open(clip, "w") as out:
        out.metadata["title"] = "Brücke"
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        out.mux(stream.encode(av.VideoFrame(96, 64, "yuv420p")))
        out.mux(stream.encode())
    old.write_bytes(clip.read_bytes().replace("Brücke".encode(), "Brücken".encode("latin-1")))
    assert NightCamera(old, "udp://127.0.0.1:9").run().pictures == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"url": "http://127.0.0.1:8554/night"}, r"url 'http://.*must be udp://HOST:PORT, or rtsp://HOST:PORT/PATH"),
        ({"url": "udp://127.0.0.1"}, r"must be udp://HOST:PORT"),
        ({"url": "rtsp://127.0.0.1/night"}, r"url 'rtsp://127.0.0.1/night'; must be rtsp://HOST:PORT/PATH"),
        ({"url": "rtsp://me:secret@127.0.0.1:8554/night"}, r"url '127.0.0.1:8554/night'; .*, without a login"),
        ({"url": "rtsp://127.0.0.1:port/night"}, r"must be rtsp://HOST:PORT/PATH"),
        ({"url": "udp://a..b:9"}, r"url 'udp://a\.\.b:9'; must have a host whose parts have 1 to 63 letters"),
        ({"size": (101, 100)}, "size 101x100; both sides must be even, from 16 to 4096"),
        ({"size": (100, 4098)}, "size 100x4098; both sides must be even, from 16 to 4096"),
        ({"rate": Fraction(0)}, "rate 0; must be above 0"),
        ({"bit_rate": 3}, "bit rate 3; must be at least 10000"),
        ({"seconds": 0}, "seconds 0; must be above 0"),
        ({"seconds": float("nan")}, "seconds nan; must be above 0, at most 1000000000"),
        ({"seconds": float("inf")}, "seconds inf; must be above 0, at most 1000000000"),
        ({"loss": 1.2}, "loss 1.2; must be a share from 0 to 1"),
        ({"codec": "vp9"}, "codec 'vp9'; must be one of h264, hevc, mpeg4"),
    ],
)
def test_wrong_values_are_named(wrong: dict[str, Any], message: str) -> None:
    usual: dict[str, Any] = {"clip": SHIPPED, "url": "udp://127.0.0.1:9"}
    with pytest.raises(ValueError, match=message):
        NightCamera(**usual | wrong)


def typed(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(command.simulate)
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "TERM": "dumb"})
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("http://127.0.0.1:8554/night",), "must be udp://HOST:PORT, or rtsp://HOST:PORT/PATH"),
        (("udp://127.0.0.1:9", "--size", "wide"), "'wide'; must be WIDTHxHEIGHT"),
        (("udp://127.0.0.1:9", "--rate", "1/0"), "'1/0'; must be a number"),
        (("udp://127.0.0.1:9", "--bit-rate", "fast"), "'fast'; must be a bit rate such as"),
        (("udp://127.0.0.1:9", "--bit-rate", "5k"), '\'5k\'; must be a bit rate such as "800k" or "2M", from 10k to'),
        (("udp://127.0.0.1:9", "--loss", "101"), "less than or equal to 100"),
        (("udp://127.0.0.1:9", "--photons", "0"), "greater than or equal to 1"),
    ],
)
def test_wrong_use_of_the_command_ends_with_2(arguments: tuple[str, ...], message: str) -> None:
    code, output = typed(str(SHIPPED), *arguments)
    assert code == 2
    assert message in output


@pytest.mark.parametrize(
    ("text", "rate"), [("25", Fraction(25)), ("12.5", Fraction(25, 2)), ("29.97002997", Fraction(30_000, 1001))]
)
def test_a_rate_of_many_digits_is_one_that_ffmpeg_can_hold(text: str, rate: Fraction) -> None:
    assert command.as_rate(text) == rate


def test_the_command_tells_what_it_sent(clock: Clock, small_clip: Path) -> None:
    with Receiver() as receiver:
        code, output = typed(str(small_clip), receiver.url, "--loop", "--seconds", "21", "--loss", "100")
    assert code == 0
    head, *lines = output.splitlines()
    assert head == f"{small_clip} to {receiver.url} at 300 kbit/s"
    assert [line.split(";")[0].split(", ")[1] for line in lines] == ["10.0 s", "20.0 s", "21.0 s"]
    assert not receiver.datagrams


def test_a_terminal_shows_one_line_that_changes(clock: Clock, small_clip: Path) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=200)
    command.run_camera(NightCamera(small_clip, "udp://127.0.0.1:9", loop=True, seconds=21), terminal)
    shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[2Ksent 525 pictures" in shown
    assert "\nsent" not in shown


def test_the_options_have_the_defaults_of_the_camera() -> None:
    options = {name: option.default for name, option in inspect.signature(command.simulate).parameters.items()}
    night, camera = Night(), NightCamera(SHIPPED, "udp://127.0.0.1:9")
    assert [options[name] for name in ("exposure", "photons", "read_noise")] == [
        night.exposure,
        night.photons,
        night.read_noise,
    ]
    for name in ("size", "rate", "bit_rate", "codec", "loop", "seconds", "loss", "seed"):
        assert options[name] == getattr(camera, name)


@pytest.fixture
def running(small_clip: Path) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, which has sent its first datagram."""
    code = "import typer; from tools.simulate import simulate; typer.run(simulate)"
    with (
        Receiver() as receiver,
        subprocess.Popen(
            [sys.executable, "-c", code, str(small_clip), receiver.url, "--loop"],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            assert receiver.first.wait(DEADLINE)
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_a_clean_stop(running: subprocess.Popen[str], number: signal.Signals) -> None:
    running.send_signal(number)
    output, _ = running.communicate(timeout=DEADLINE)
    assert running.returncode == 0
    assert output.splitlines()[-1].startswith("sent ")


def test_the_shipped_clip_is_what_its_readme_says() -> None:
    assert SHIPPED.stat().st_size < 2_000_000
    with av.open(SHIPPED) as clip:
        stream = clip.streams.video[0]
        assert (stream.width, stream.height, stream.frames) == (640, 480, 250)
        assert stream.average_rate == 25
    text = (SHIPPED.parent / "README.md").read_text(encoding="utf-8")
    assert "danielbuechele" in text
    assert "https://creativecommons.org/licenses/by/2.0/" in text
