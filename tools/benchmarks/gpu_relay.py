"""How many live feeds one relay carries before pictures are dropped, lost or too old."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from engines.door import Door
from stream.errors import StreamError
from stream.subscribe import Subscriber
from stream.wire.messages import Status, decode_status
from tools.benchmarks.gpu_findings import NO_TIME
from tools.benchmarks.stream import (
    KEPT,
    RATE,
    decode,
    decode_alone,
    encode_alone,
    enhance_alone,
    running_relay,
)

SIZE = (352, 288)
COUNTS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256)
"""Numbers of feeds, one relay each."""
FIRST = 64
"""The count that is tried first; then more, or fewer if that was too many."""
TRIES = 2
"""Relays of one count, the later ones if the earlier did not carry it."""
START_SECONDS = 120.0
"""How long a relay may take until every feed has a picture, if there is time: TensorRT-RTX compiles at a plan's first
run."""
WATCH_SECONDS = 8.0
SETTLE_SECONDS = 4.0
"""From the last feed's first picture until measuring begins: the engine sees new counts of pictures."""
STEP_SECONDS = 30.0
"""What one more relay takes, start and end included; with less time left none is started."""
OLDEST_MS = 150.0
"""Largest 95th percentile of the age."""
SLOWEST = 0.98
"""Least share of the cameras' pictures that must be published."""

Figures = dict[str, float | int | str | None]


@dataclass
class Watched:
    """What came from a relay while it was watched."""

    ages_ms: list[float] = field(default_factory=list)
    """Capture to published."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of the relay, all its threads."""
    first: dict[str, int] = field(default_factory=dict)
    latest: dict[str, int] = field(default_factory=dict)
    """By feed: `seq` of its first and its latest picture."""
    before: dict[str, Status] = field(default_factory=dict)
    after: dict[str, Status] = field(default_factory=dict)
    """By feed: its status when measuring began, and at the end."""

    @property
    def pictures(self) -> int:
        """How many the relay published, whether or not they arrived here."""
        return sum(self.latest[feed] - self.first[feed] + 1 for feed in self.latest)

    def counted(self, what: Callable[[Status], Mapping[str, int]]) -> int:
        """How many pictures were dropped, or lost, in between, as `what` reads from a status."""
        return sum(sum(what(self.after[feed]).values()) - sum(what(self.before[feed]).values()) for feed in self.after)


def relay_figures(
    feed: Path,
    folder: Path,
    engine: Mapping[str, str],
    codecs_ms: float | None,
    time_left: Callable[[], float],
    used_mb: Callable[[], float | None],
    counts: Sequence[int],
    is_last_runtime: bool = True,
) -> Iterator[Figures]:
    """Figures of one relay after another: `FIRST` feeds, then twice as many while they are carried, or half as many
    until they are, then a bisection of the `counts` in between. If the first count brings no picture at all, the search
    ends: unless `is_last_runtime`, after one try within half of the time, so that another engine can still be tried.

    `feed` is a recording, or a folder of them, that each feed plays at its own pace; `engine` are settings of the
    relay's `[engine]`; `codecs_ms` is what decoding and encoding a picture cost alone. `relay_feeds` comes whenever
    more are carried; the last figures say why the search ended.
    """
    limit, heard = "largest number of feeds that is tried", False
    low, high, index = -1, len(counts), first_index(counts)  # indices: largest carried, smallest not carried
    while low + 1 < high:
        count, tries, reason = counts[index], 0, NO_TIME
        while reason and tries < (TRIES if is_last_runtime or heard else 1) and time_left() >= STEP_SECONDS:
            tries += 1
            patience = time_left if is_last_runtime or heard else lambda: time_left() / 2
            figures, reason = one_relay(feed, folder, count, engine, codecs_ms, patience, used_mb)
            heard = heard or bool(figures)
            yield {f"relay_{count}_feeds_{name}": value for name, value in (figures | {"tries": tries}).items()}
        if not tries:
            limit = reason
            break
        if reason:
            high, limit = index, f"{count} feeds: {reason}"
        else:
            low = index
            yield {"relay_feeds": count}
        if not heard:
            break  # fewer feeds would bring no picture either
        index = next_index(counts, low, high)
    yield {"relay_feeds": counts[low] if low >= 0 else 0, "relay_limit": limit}


def first_index(counts: Sequence[int]) -> int:
    """Index of the count to begin with: `FIRST`, or the next below it."""
    return max(0, sum(count <= FIRST for count in counts) - 1)


def next_index(counts: Sequence[int], low: int, high: int) -> int:
    """Index of the next count to try, between that of one that is carried (-1: none) and of one that is not."""
    if low < 0:
        return max(0, sum(2 * count <= counts[high] for count in counts) - 1)
    if high < len(counts):
        return (low + high) // 2
    return min(sum(count < 2 * counts[low] for count in counts), high - 1)


def one_relay(
    feed: Path,
    folder: Path,
    count: int,
    engine: Mapping[str, str],
    codecs_ms: float | None,
    time_left: Callable[[], float],
    used_mb: Callable[[], float | None],
) -> tuple[Figures, str]:
    """Figures of a relay with `count` feeds, and why they are too many for it; the reason is empty if they are not.

    A relay that ended, or sent no picture, has no figures.
    """
    before, settled = used_mb(), Watched()
    with running_relay(feed, folder, count, engine) as (relay, endpoint):
        try:
            figures = step_figures(watch_all(relay, endpoint, count, time_left, settled), codecs_ms)
        except StreamError as error:
            return ({"started": len(settled.first)} if settled.first and relay.poll() is None else {}), str(error)
        after = used_mb()
    figures["gpu_memory_mb"] = None if before is None or after is None else after - before
    return figures, why_too_many(figures, count) or ""


def watch_all(
    relay: subprocess.Popen[bytes], endpoint: str, count: int, time_left: Callable[[], float], settled: Watched
) -> Watched:
    """Everything that a relay publishes of all its feeds, for `WATCH_SECONDS`; what comes before is noted in `settled`.

    Raises `StreamError` if not every feed has a picture within `START_SECONDS` and in time to watch it, or if the relay
    ends.
    """
    within = min(START_SECONDS, time_left() - SETTLE_SECONDS - WATCH_SECONDS)
    with Subscriber(endpoint, None, ("video", "status"), max_age=None) as viewer:
        listen(viewer, settled, relay, within, until=lambda: len(settled.first) == count)
        if len(settled.first) < count:
            cut = f", then {NO_TIME}" if within < START_SECONDS else ""
            raise StreamError(f"{len(settled.first)} of them had a picture within {within:.0f} s{cut}")
        listen(viewer, settled, relay, SETTLE_SECONDS)
        seen = Watched(before=dict(settled.after))
        cpu, began = cpu_seconds(relay.pid), time.monotonic()
        listen(viewer, seen, relay, WATCH_SECONDS)
        seen.cpu_seconds, seen.seconds = cpu_seconds(relay.pid) - cpu, time.monotonic() - began
    return seen


def listen(
    viewer: Subscriber,
    seen: Watched,
    relay: subprocess.Popen[bytes],
    seconds: float,
    until: Callable[[], bool] = lambda: False,
) -> None:
    """Note what comes for `seconds`, or until `until()` is true; raises `StreamError` if the relay ends."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not until():
        if relay.poll() is not None:
            raise StreamError(f"the relay ended with exit code {relay.returncode}")
        message = viewer.receive(min(left, 0.5))
        if message is None:
            continue
        header = message.header
        if message.kind == "status":
            seen.after[header.feed] = decode_status(message.payload)
            seen.before.setdefault(header.feed, seen.after[header.feed])
        else:
            seen.first.setdefault(header.feed, header.seq)
            seen.latest[header.feed] = header.seq
            seen.ages_ms.append((header.published_ns - (header.capture_ns or 0)) / 1e6)


def step_figures(seen: Watched, codecs_ms: float | None) -> Figures:
    """The figures of one relay, see docs/benchmarks.md. What codecs cost in a relay beyond `codecs_ms` is not known,
    and counts as the relay's own."""
    cpu_ms = 1000 * seen.cpu_seconds / max(1, seen.pictures)
    ages = {f"age_p{p}_ms": float(np.percentile(seen.ages_ms, p)) if seen.ages_ms else None for p in (50, 95, 99)}
    return {
        "fps": seen.pictures / seen.seconds,
        **ages,
        "dropped": seen.counted(lambda status: status.dropped),
        "lost": seen.counted(lambda status: status.lost),
        "cores": seen.cpu_seconds / seen.seconds,
        "cpu_ms": cpu_ms,
        "cpu_beside_codecs_ms": None if codecs_ms is None else cpu_ms - codecs_ms,
    }


def why_too_many(figures: Figures, count: int) -> str | None:
    """Why a relay does not carry so many feeds, for people; None if it does."""
    age, fps, wanted = figures["age_p95_ms"], figures["fps"], float(count * RATE)
    if figures["dropped"] or figures["lost"]:
        return f"{figures['dropped']} pictures were dropped and {figures['lost']} lost"
    if not isinstance(age, float) or age > OLDEST_MS:
        return f"age_p95_ms is above {OLDEST_MS:g}"
    if not isinstance(fps, float) or fps < SLOWEST * wanted:
        return f"fewer than {wanted:g} pictures a second came out"
    return None


def codecs_figures(feed: Path, engine: Door) -> dict[str, float]:
    """CPU milliseconds of decoding a frame and of encoding a picture of twice the size, each alone."""
    frames = list(islice(decode(feed), KEPT))
    planes, _ = enhance_alone(engine, frames)
    return {"relay_decode_ms": decode_alone(feed), "relay_encode_ms": encode_alone(planes, frames)}


def cpu_seconds(pid: int) -> float:
    """CPU seconds that a process has used so far, in all its threads (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
