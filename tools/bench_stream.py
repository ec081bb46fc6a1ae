"""What the path of a picture costs, from a file or a paced feed to the wire and to a viewer."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from statistics import median

import av
import numpy as np

from engines.darken import Night
from engines.door import Engine
from stream.decode import Decoder
from stream.encode import Encoder
from stream.enhance import enhance
from stream.errors import StreamError
from stream.frame import Frame, Plane
from stream.pipeline import Relay
from stream.publish import Publisher
from stream.settings import EncoderSettings, FeedSettings, RelaySettings, Settings
from stream.simulate import Clip, at_rate, shrunk, simulate_night
from stream.source import open_source
from stream.subscribe import Subscriber
from stream.wire import Message, decode_status

RATE = Fraction(25)
BIT_RATE = 300_000
START_SECONDS = 60.0
"""How long a relay may take to its first picture."""
KEPT = 125
"""Frames that engine and encoder are timed on alone: five seconds."""
ROUNDS = 5
"""Every CPU figure is the median of this many whole runs."""


def make_feed(clip: Path, feed: Path, size: tuple[int, int], pictures: int) -> None:
    """Write what a night camera would send: `clip` darkened, with noise, as H.264 at 300 kbit/s in MPEG-TS."""
    with Clip(clip) as source, av.open(str(feed), "w", format="mpegts") as out:
        stream = out.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.bit_rate, stream.codec_context.gop_size = BIT_RATE, 50
        days = (shrunk(frame, size) for frame in at_rate(source.frames(loop=True), source.rate, RATE))
        for number, night in zip(range(pictures), simulate_night(days, Night(), seed=1), strict=False):
            frame = av.VideoFrame.from_ndarray(night, format="rgb24")
            frame.pts, frame.time_base = number, 1 / RATE
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def decode(feed: Path) -> Iterator[Frame]:
    """Every frame of a recording."""
    with open_source(FeedSettings(url=str(feed))) as source:
        for segment in source.segments():
            decoder = Decoder(segment.video)
            for packet in segment.packets():
                if packet.kind == "video":
                    yield from decoder.decode(packet)
            yield from decoder.flush()


def path_figures(feed: Path, engine: Engine) -> dict[str, float]:
    """File to wire as fast as it goes, taking turns with its parts alone.

    CPU milliseconds of a frame: `decode_ms`, `engine_cpu_ms`, `encode_ms`, each alone, and `pipeline_cpu_ms`.
    `pipeline_efficiency` is the parts' sum over the pipeline's; `pipeline_fps` is by the clock.
    """
    rounds: list[dict[str, float]] = []
    for _ in range(ROUNDS):
        frames = list(islice(decode(feed), KEPT))
        enhanced, engine_cpu_ms = enhance_alone(engine, frames)
        alone = {
            "decode_ms": decode_alone(feed),
            "engine_cpu_ms": engine_cpu_ms,
            "encode_ms": encode_alone(enhanced, frames),
        }
        together = run_pipeline(feed, engine)
        efficiency = sum(alone.values()) / together["pipeline_cpu_ms"]
        rounds.append({**alone, **together, "pipeline_efficiency": efficiency})
    return {name: median(figures[name] for figures in rounds) for name in rounds[0]}


def decode_alone(feed: Path) -> float:
    """CPU milliseconds of a frame."""
    began = time.process_time()
    count = sum(1 for _ in decode(feed))
    return 1000 * (time.process_time() - began) / count


def enhance_alone(engine: Engine, frames: Sequence[Frame]) -> tuple[list[tuple[Plane, Plane]], float]:
    """The enhanced planes of every frame, and the CPU milliseconds of one, without the copy that keeps it."""
    planes, spent = [], 0.0
    for frame in frames:
        began = time.process_time()
        (slot,) = enhance(engine, [frame])
        slot.wait()
        spent += time.process_time() - began
        planes.append((slot.y_out.copy(), slot.uv_out.copy()))
        slot.release()
    return planes, 1000 * spent / len(frames)


def encode_alone(planes: Sequence[tuple[Plane, Plane]], frames: Sequence[Frame]) -> float:
    """CPU milliseconds of one picture in the relay's encoder at its default settings."""
    height, width = planes[0][0].shape
    began = time.process_time()
    with Encoder(EncoderSettings(), width, height, frames[0].colour, frames[0].time_base, RATE) as encoder:
        for (y, uv), frame in zip(planes, frames, strict=True):
            encoder.encode(y, uv[0], uv[1], frame.pts)
        encoder.flush()
    return 1000 * (time.process_time() - began) / len(frames)


def run_pipeline(feed: Path, engine: Engine) -> dict[str, float]:
    """One whole run: `pipeline_fps` and `pipeline_cpu_ms`."""
    settings = Settings(
        relay=RelaySettings(endpoint="tcp://127.0.0.1:*"),
        feeds={"bench": FeedSettings(url=str(feed), mode="replay")},
    )
    with Publisher(settings.relay, "bench") as publisher:
        cpu, clock = time.process_time(), time.perf_counter()
        with Relay(settings, engine, publisher) as relay:
            relay.wait()
        cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
    published = relay.feeds["bench"].meter.figures().published
    return {"pipeline_fps": published / clock, "pipeline_cpu_ms": 1000 * cpu / published}


def live_figures(feed: Path, folder: Path, seconds: float, engine: Mapping[str, str]) -> dict[str, float | None]:
    """A relay of its own on a paced feed, and this process as its viewer, for some seconds after the first picture.

    `engine` are settings of the relay's `[engine]`. Figures: `live_fps`, `live_dropped`, `age_*` (capture to
    published), `view_age_*` (capture to received here), `relay_memory_mb` (the most that was resident).
    """
    config = folder / "bench.toml"
    endpoint = f"ipc://{folder}/wire"
    chosen = "\n".join(f'{key} = "{value}"' for key, value in engine.items())
    config.write_text(
        f'[relay]\nendpoint = "{endpoint}"\nlog_level = "warning"\n'
        f"[engine]\n{chosen}\n"
        f'[feeds.bench]\nurl = "{feed}"\nmode = "live"\n'
    )
    relay = subprocess.Popen([sys.executable, "-m", "tools", "run", str(config)])  # noqa: S603 - our own program
    try:
        with Subscriber(endpoint, "bench", ("video", "status")) as viewer:
            pictures, status = watch(viewer, seconds, lambda: relay.poll() is None)
            memory = peak_memory_mb(relay.pid)
    finally:
        relay.terminate()
        relay.wait()
    ages = [(message.header.published_ns - (message.header.capture_ns or 0)) / 1e6 for message, _ in pictures]
    view_ages = [(received_ns - (message.header.capture_ns or 0)) / 1e6 for message, received_ns in pictures]
    span = (pictures[-1][1] - pictures[0][1]) / 1e9
    figures: dict[str, float | None] = {
        "live_fps": (len(pictures) - 1) / span,
        "live_dropped": sum(decode_status(status.payload).dropped.values()) if status else None,
    }
    for name, values in (("age", ages), ("view_age", view_ages)):
        figures |= {f"{name}_p{p}_ms": float(np.percentile(values, p)) for p in (50, 95, 99)}
    return {**figures, "relay_memory_mb": memory}


def watch(
    viewer: Subscriber, seconds: float, alive: Callable[[], bool]
) -> tuple[list[tuple[Message, int]], Message | None]:
    """Pictures with the time of their coming, and the last status, until `seconds` after the first picture."""
    pictures: list[tuple[Message, int]] = []
    status = None
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and alive():
        message = viewer.receive(0.5)
        if message is None:
            continue
        if message.kind == "status":
            status = message
        else:
            if not pictures:
                end = time.monotonic() + seconds
            pictures.append((message, time.time_ns()))
    if len(pictures) < 2:
        raise StreamError(f"the relay sent {len(pictures)} pictures and ended, or took over {START_SECONDS:g} s")
    return pictures, status


def peak_memory_mb(pid: int) -> float:
    """The most memory that a process has had resident, in MB (Linux)."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024 / 1e6
