"""What the path of a picture costs, from a file or a paced feed to the wire and to a viewer."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path
from statistics import median

import av
import numpy as np

from engines.cards import shipped
from engines.data.darken import Night
from engines.door import Door
from stream.decode import Decoder
from stream.encode import Encoder
from stream.enhance import enhance
from stream.errors import StreamError
from stream.frame import Frame, Plane
from stream.publish import Publisher
from stream.relay import Relay
from stream.settings import EncoderSettings, FeedSettings, RelaySettings, Settings
from stream.simulator.camera import Clip, at_rate, shrunk, simulate_night
from stream.source import open_source
from stream.subscribe import Subscriber
from stream.wire.messages import Message, decode_status
from tools.demo_parts import ROOT, without_overrides

RATE = Fraction(25)
BIT_RATE = 300_000
START_SECONDS = 60.0
"""How long a relay may take to its first picture."""
END_SECONDS = 30.0
"""How long it may take to stop, before it is killed."""
JOINS = 10
"""Viewers that are timed from connecting to their first picture."""
TAPE_SECONDS = 40
"""Length of the recording that they see."""
FURTHER_FEEDS = 3
"""Additional feeds whose memory is measured."""
KEPT = 125
"""Frames that engine and encoder are timed on alone: five seconds."""
ROUNDS = 5
"""Every CPU figure is the median of this many whole runs."""
MEMORY = "64GB"
"""Memory limit of a feed: enough for pictures of any size."""
HIGH_WATER_MARK = 4096
"""Messages that may wait for the one viewer of all feeds: the default of 64 is enough for 16 feeds only."""


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


def path_figures(feed: Path, engine: Door) -> dict[str, float]:
    """Figures of the path from file to wire, as fast as it goes, and of its parts alone, measured in turns.

    CPU milliseconds per frame: `decode_ms`, `engine_cpu_ms`, `encode_ms`, each alone, and `pipeline_cpu_ms`.
    `pipeline_efficiency` is the sum of the parts over `pipeline_cpu_ms`; `pipeline_fps` is by wall time.
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
    """CPU milliseconds per frame."""
    began = time.process_time()
    count = sum(1 for _ in decode(feed))
    return 1000 * (time.process_time() - began) / count


def enhance_alone(engine: Door, frames: Sequence[Frame]) -> tuple[list[tuple[Plane, Plane]], float]:
    """The enhanced planes of every frame, and the CPU milliseconds per frame, without copying the planes."""
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


def run_pipeline(feed: Path, engine: Door) -> dict[str, float]:
    """One whole run: `pipeline_fps` and `pipeline_cpu_ms`."""
    settings = Settings.model_construct(  # ignores environment variables meant for another relay
        relay=RelaySettings(endpoint="tcp://127.0.0.1:*"),
        feeds={"bench": FeedSettings.model_validate({"url": str(feed), "mode": "replay", "memory": MEMORY})},
    )
    with Publisher(settings.relay, "bench") as publisher:
        cpu, clock = time.process_time(), time.perf_counter()
        with Relay(settings, engine, publisher) as relay:
            relay.wait()
        cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
    published = relay.feeds["bench"].meter.figures().published
    return {"pipeline_fps": published / clock, "pipeline_cpu_ms": 1000 * cpu / published}


def live_figures(feed: Path, folder: Path, seconds: float, engine: Mapping[str, str]) -> dict[str, float | None]:
    """Run a relay process on a paced feed, with this process as its viewer, for `seconds` after the first picture.

    `engine` are settings of the relay's `[engine]`. Figures: `live_fps`, `live_dropped`, `age_*` (capture to
    published), `view_age_*` (capture to received here), `join_*` (from a viewer's connecting to its first picture),
    `relay_memory_mb` (peak resident memory), `feed_memory_mb` (what each further feed adds to that).
    """
    with running_relay(feed, folder, 1, engine) as (relay, endpoint):
        with Subscriber(endpoint, "bench0", ("video", "status")) as viewer:
            pictures, status = watch(viewer, seconds, lambda: relay.poll() is None)
        memory = peak_memory_mb(relay.pid)
    tape = repeated(feed, folder / "tape", math.ceil(TAPE_SECONDS / seconds))
    with running_relay(tape, folder, 1, engine) as (relay, endpoint):
        joins = joins_ms(endpoint)
    ages = [(message.header.published_ns - (message.header.capture_ns or 0)) / 1e6 for message, _ in pictures]
    view_ages = [(received_ns - (message.header.capture_ns or 0)) / 1e6 for message, received_ns in pictures]
    span = (pictures[-1][1] - pictures[0][1]) / 1e9
    figures: dict[str, float | None] = {
        "live_fps": (len(pictures) - 1) / span,
        "live_dropped": sum(decode_status(status.payload).dropped.values()) if status else None,
    }
    for name, values in (("age", ages), ("view_age", view_ages)):
        figures |= {f"{name}_p{p}_ms": float(np.percentile(values, p)) for p in (50, 95, 99)}
    figures |= {f"join_p{p}_ms": float(np.percentile(joins, p)) for p in (50, 95)}
    with running_relay(tape, folder, 1 + FURTHER_FEEDS, engine) as (relay, endpoint):
        for number in range(1 + FURTHER_FEEDS):
            with Subscriber(endpoint, f"bench{number}", ("video", "status")) as viewer:
                watch(viewer, 1, lambda: relay.poll() is None)
        further = (peak_memory_mb(relay.pid) - memory) / FURTHER_FEEDS
    return {**figures, "relay_memory_mb": memory, "feed_memory_mb": further}


def repeated(feed: Path, folder: Path, times: int) -> Path:
    """A folder with `times` copies of a recording, to be played one after another."""
    folder.mkdir()
    for number in range(times):
        shutil.copy(feed, folder / f"{number:03}{feed.suffix}")
    return folder


@contextmanager
def running_relay(
    feed: Path, folder: Path, count: int, engine: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run a relay process with `count` feeds of one recording, `bench0` and so on; yields it and its endpoint."""
    config = folder / "bench.toml"
    endpoint = f"ipc://{folder}/wire{count}"
    chosen = "\n".join(f'{key} = "{in_full(value)}"' for key, value in engine.items())
    table = f'url = "{feed}"\nmode = "live"\nmemory = "{MEMORY}"'
    feeds = "\n".join(f"[feeds.bench{number}]\n{table}" for number in range(count))
    wire = f'endpoint = "{endpoint}"\nhigh_water_mark = {HIGH_WATER_MARK}\nlog_level = "warning"'
    config.write_text(f"[relay]\n{wire}\n[engine]\n{chosen}\n{feeds}\n")
    command = [sys.executable, "-m", "tools", "run", str(config)]
    relay = subprocess.Popen(command, cwd=ROOT, env=without_overrides())  # noqa: S603 - our own program
    try:
        yield relay, endpoint
    finally:
        relay.terminate()
        try:
            relay.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            relay.kill()
            relay.wait()


def in_full(value: str) -> str:
    """A setting of the engine; a folder of weights becomes an absolute path."""
    return str(Path(value).absolute()) if value not in shipped() and Path(value).is_dir() else value


def joins_ms(endpoint: str) -> list[float]:
    """Milliseconds from a viewer's connecting to its first picture, each measured just after a key frame.

    The next regular key frame is then far away, but a new viewer gets one at once. The key frame made for a viewer
    starts no other measurement: else each would cause the next without end.
    """
    joins: list[float] = []
    with Subscriber(endpoint, "bench0") as witness:
        seen = next_picture(witness).header.seq  # a key frame was made for the witness
        while len(joins) < JOINS:
            message = next_picture(witness)
            if message.header.key and message.header.seq > seen:
                began = time.perf_counter()
                with Subscriber(endpoint, "bench0") as viewer:
                    seen = next_picture(viewer).header.seq
                    joins.append(1000 * (time.perf_counter() - began))
    return joins


def next_picture(viewer: Subscriber) -> Message:
    """The next picture that a viewer receives."""
    message = viewer.receive(START_SECONDS)
    if message is None:
        raise StreamError(f"no picture within {START_SECONDS:g} s")
    return message


def watch(
    viewer: Subscriber, seconds: float, alive: Callable[[], bool]
) -> tuple[list[tuple[Message, int]], Message | None]:
    """Pictures with their arrival times (UTC ns), and the latest status, until `seconds` after the first picture."""
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
    if len(pictures) < 2 or not alive():
        raise StreamError(
            f"the relay ended early or took more than {START_SECONDS:g} s to start; it sent {len(pictures)} pictures"
        )
    return pictures, status


def peak_memory_mb(pid: int) -> float:
    """Peak resident memory of a process, in MB (Linux)."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024 / 1e6
