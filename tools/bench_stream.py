"""What the path of a picture costs, from a file or a paced feed to the wire and to a viewer."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from statistics import median

import av
import numpy as np

from engines.darken import Night
from engines.door import Engine
from stream.decode import Decoder
from stream.encode import Encoder
from stream.errors import StreamError
from stream.frame import Frame
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
ROUNDS = 3
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


def read_frames(feed: Path) -> list[Frame]:
    """Every frame of a recording."""
    frames = []
    with open_source(FeedSettings(url=str(feed))) as source:
        for segment in source.segments():
            decoder = Decoder(segment.video)
            for packet in segment.packets():
                frames += decoder.decode(packet) if packet.kind == "video" else []
            frames += decoder.flush()
    return frames


def alone_figures(feed: Path, engine: Engine) -> dict[str, float]:
    """CPU milliseconds of one frame: `decode_ms`, `engine_cpu_ms` and `encode_ms`, each alone."""
    decode, enhance, encode = [], [], []
    for _ in range(ROUNDS):
        began = time.process_time()
        frames = read_frames(feed)
        decode.append((time.process_time() - began) / len(frames))
        enhanced, seconds = enhance_all(engine, frames)
        enhance.append(seconds)
        encode.append(encode_all(enhanced, frames))
    return {
        "decode_ms": 1000 * median(decode),
        "engine_cpu_ms": 1000 * median(enhance),
        "encode_ms": 1000 * median(encode),
    }


def enhance_all(engine: Engine, frames: Sequence[Frame]) -> tuple[list[tuple[np.ndarray, np.ndarray]], float]:
    """The enhanced planes of every frame, and the CPU seconds of one without the copy that keeps them."""
    planes, spent = [], 0.0
    for frame in frames:
        began = time.process_time()
        slot = engine.acquire(frame.width, frame.height)
        y, *chroma = frame.planes()
        slot.y[:], slot.uv[:], slot.colour = y, np.stack(chroma), frame.colour
        engine.submit([slot])
        slot.wait()
        spent += time.process_time() - began
        planes.append((slot.y_out.copy(), slot.uv_out.copy()))
        slot.release()
    return planes, spent / len(frames)


def encode_all(planes: Sequence[tuple[np.ndarray, np.ndarray]], frames: Sequence[Frame]) -> float:
    """CPU seconds of one picture in the relay's encoder at its default settings."""
    height, width = planes[0][0].shape
    began = time.process_time()
    with Encoder(EncoderSettings(), width, height, frames[0].colour, frames[0].time_base, RATE) as encoder:
        for (y, uv), frame in zip(planes, frames, strict=True):
            encoder.encode(y, uv[0], uv[1], frame.pts)
        encoder.flush()
    return (time.process_time() - began) / len(frames)


def pipeline_figures(feed: Path, engine: Engine, alone_ms: float) -> dict[str, float]:
    """File to wire as fast as it goes: `pipeline_fps`, and `pipeline_efficiency` against the parts alone."""
    rates, costs = [], []
    settings = Settings(
        relay=RelaySettings(endpoint="tcp://127.0.0.1:*"),
        feeds={"bench": FeedSettings(url=str(feed), mode="replay")},
    )
    for _ in range(ROUNDS):
        with Publisher(settings.relay, "bench") as publisher:
            cpu, clock = time.process_time(), time.perf_counter()
            with Relay(settings, engine, publisher) as relay:
                relay.wait()
            cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
        published = relay.feeds["bench"].meter.figures().published
        rates.append(published / clock)
        costs.append(1000 * cpu / published)
    return {
        "pipeline_fps": median(rates),
        "pipeline_cpu_ms": median(costs),
        "pipeline_efficiency": alone_ms / median(costs),
    }


def live_figures(feed: Path, folder: Path, seconds: float, weights: str, precision: str) -> dict[str, float | None]:
    """A relay of its own on a paced feed, and this process as its viewer, for some seconds after the first picture.

    `live_fps`, `live_dropped`, `age_*` (capture to published), `view_age_*` (capture to received here),
    `relay_memory_mb` (the most that was resident).
    """
    config = folder / "bench.toml"
    endpoint = f"ipc://{folder}/wire"
    config.write_text(
        f'[relay]\nendpoint = "{endpoint}"\nlog_level = "warning"\n'
        f'[engine]\nweights = "{weights}"\nprecision = "{precision}"\n'
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
