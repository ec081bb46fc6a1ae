"""`nightbridge demo`: runs a night camera, the relay and a viewer on this machine, and shows what they make of a clip.

camera, a process ═ UDP ═► relay, a process ═ ZeroMQ ═► viewer, here
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from stream.errors import StreamError
from tools.common.report import JsonFile, write_json
from tools.common.signals import answering
from tools.demo_parts import CommandProcess, camera_and_relay

if TYPE_CHECKING:
    from stream.wire.messages import Message

CLIP = Path(__file__).parent / "clip" / "day.mp4"
CREDIT = (
    "Lake: danielbuechele, https://www.flickr.com/photos/danielbuechele/6061409035/, CC BY 2.0, changed. "
    "Raccoon: public domain."
)
PICTURE = Path("demo.png")
FEED = "demo"
BIT_RATE = 300_000
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end the demo. SIGHUP comes when its terminal is closed; to the relay it means to reload its settings."""
FIRST_PICTURE_SECONDS = 60.0
"""The longest wait for the first picture."""


def demo(
    seconds: Annotated[float, typer.Option(min=1, help="How long to watch, from the first picture on.")] = 10,
    json: JsonFile = None,
) -> None:
    """Run a night camera, the relay and a viewer on this machine; writes demo.png, before and after."""
    if not os.access(PICTURE.absolute().parent, os.W_OK):
        raise StreamError(f"{PICTURE} cannot be written into {Path.cwd()}")
    begin = time.monotonic()
    console, stop = Console(highlight=False), Event()
    console.print(
        f"[bold]Nightbridge demo:[/] a night camera, the relay and a viewer on this machine, for {seconds:g} s",
        soft_wrap=True,
    )
    limit = FIRST_PICTURE_SECONDS + seconds
    with (
        answering(dict.fromkeys(ENDINGS, stop.set)),
        camera_and_relay(FEED, CLIP, BIT_RATE, limit) as (endpoint, processes),
    ):
        viewing = watch(endpoint, processes, Viewing(begin, seconds), stop, console)
    with console.status("comparing with the clip by day"):
        figures = viewing.figures() | compare_with_clip(viewing)
    print_figures(console, figures)
    write_json(json, figures)


class Viewing:
    """What a viewer has seen so far. Times are those of `time.monotonic`, ages are in milliseconds."""

    def __init__(self, begin: float, seconds: float) -> None:
        """`begin` is when the demo began; it is watched for `seconds`."""
        from stream.simulator.camera import Clip
        from tools.demo_pictures import Pairs

        with Clip(CLIP) as clip:
            self.pairs = Pairs(clip.rate)
        self.until = begin + FIRST_PICTURE_SECONDS
        """When to stop watching; without any enhanced picture, when to give up."""
        self._begin, self._seconds = begin, seconds
        self._published = 0
        self._times: list[float] = []
        self._ages: list[float] = []
        self._view_ages: list[float] = []

    def add(self, message: Message) -> bool:
        """Add a message that has just come; returns whether it is the first enhanced picture."""
        now, now_ns = time.monotonic(), time.time_ns()
        self.pairs.add(message)
        if message.kind != "video":
            return False
        captured_ns = message.header.capture_ns or 0
        self._ages.append((message.header.published_ns - captured_ns) / 1e6)
        self._view_ages.append((now_ns - captured_ns) / 1e6)
        self._published = message.header.seq + 1
        self._times.append(now)
        self.until = self._times[0] + self._seconds
        return len(self._times) == 1

    @property
    def first_picture_s(self) -> float:
        """Seconds from the start of the demo to the first enhanced picture, which must have come."""
        return self._times[0] - self._begin

    @property
    def rate(self) -> float:
        """Enhanced pictures a second."""
        return (len(self._times) - 1) / max(self._times[-1] - self._times[0], 1e-9)

    def figures(self) -> dict[str, object]:
        """Figures of speed, by the keys of `--json`; at least one enhanced picture must have come."""
        import numpy as np

        figures: dict[str, object] = {
            "first_picture_s": self.first_picture_s,
            "frames_published": self._published,
            "rate_fps": self.rate,
        }
        for name, ages in (("age", self._ages), ("view_age", self._view_ages)):
            figures[f"{name}_p50_ms"], figures[f"{name}_p95_ms"] = np.percentile(ages, (50, 95)).tolist()
        return figures

    def __str__(self) -> str:
        """One line for people."""
        if not self._times:
            return "starting the camera and the relay"
        return f"watching: {len(self._times)} pictures, {self.rate:.1f} a second, {self._view_ages[-1]:.0f} ms old"


def watch(
    endpoint: str, processes: Sequence[CommandProcess], viewing: Viewing, stop: Event, console: Console
) -> Viewing:
    """Watch until the time is over or `stop` is set. Raises `StreamError` if there is nothing to compare."""
    from stream.subscribe import Subscriber

    with Subscriber(endpoint, FEED, ("video", "source")) as subscriber, console.status(str(viewing)) as status:
        while time.monotonic() < viewing.until and not stop.is_set():
            for process in processes:
                process.check()
            if (message := subscriber.receive(0.1)) is None:
                continue
            if viewing.add(message):
                print_row(console, "started", f"first picture after {viewing.first_picture_s:.1f} s")
            status.update(str(viewing))
    if viewing.pairs.found:
        return viewing
    if stop.is_set():
        raise StreamError("stopped before there were pictures to compare")
    raise StreamError("no pictures came that can be compared" + "".join(process.last_words() for process in processes))


def compare_with_clip(viewing: Viewing) -> dict[str, object]:
    """Figures of quality, by the keys of `--json`; a moment from the middle is written to `PICTURE`."""
    from tools.demo_pictures import compare, save_png, side_by_side

    pairs = viewing.pairs.found
    before, after = compare(CLIP, pairs)
    pair = pairs[len(pairs) // 2]
    sheet = side_by_side(
        pair,
        f"camera: {pair.camera.width}x{pair.camera.height}, {BIT_RATE // 1000} kbit/s",
        f"Nightbridge: {pair.relay.width}x{pair.relay.height}",
    )
    save_png(sheet, PICTURE, CREDIT)
    return {"psnr_in_db": before, "psnr_out_db": after, "pictures_compared": len(pairs), "picture": str(PICTURE)}


def print_figures(console: Console, figures: Mapping[str, object]) -> None:
    """Print what a newcomer wants to know, a line each."""
    for name, text in (
        ("rate", "{rate_fps:.1f} enhanced pictures a second, {frames_published} in all"),
        ("age", "{age_p50_ms:.0f} ms from the camera to the wire, 95 % below {age_p95_ms:.0f} ms"),
        ("PSNR", "{psnr_in_db:.1f} dB before, [bold green]{psnr_out_db:.1f} dB[/] after, against the clip by day"),
        ("picture", "[bold]{picture}[/], before and after side by side"),
    ):
        print_row(console, name, text.format_map(figures))


def print_row(console: Console, name: str, text: str) -> None:
    """Print a line, with its name in the first column."""
    console.print(f"[cyan]{name:<8}[/] {text}", soft_wrap=True)
