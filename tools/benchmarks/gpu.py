"""`nightbridge bench --gpu`: measures an NVIDIA GPU, part by part, within some minutes.

This process uses no CUDA: it starts a process for each part, kills it when its time is over, and keeps its figures.
The most valuable parts come first.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from rich.console import Console

from engines.cards import find_weights, shipped
from engines.errors import EngineMismatch, EngineMissing
from engines.nvidia.gpu import NO_GPU, find_gpu
from engines.runtime import ON_CUDA
from tools.benchmarks.gpu_child import KILL_SECONDS, Child, OwnProcess, in_child, innermost_line, last_line
from tools.benchmarks.gpu_findings import Findings, print_findings
from tools.benchmarks.stream import in_full

TRY_SECONDS = 90.0
"""How long a runtime may take until its first picture: TensorRT-RTX compiles."""
TRY = """
import faulthandler, os, sys
from dataclasses import replace
from engines.runtime import open_engine
from tools.benchmarks.gpu_checks import make_picture, through
from tools.benchmarks.gpu_parts import ON_GPU
runtime, weights, seconds = sys.argv[1:]
faulthandler.dump_traceback_later(0.9 * float(seconds), exit=True)
try:
    with open_engine(runtime, weights, replace(ON_GPU, batch=1)) as engine:
        through(engine, make_picture("dusk", (64, 48)))
except Exception as error:
    print(" ".join(f"{type(error).__name__}: {error}".split()), file=sys.stderr, flush=True)
    os._exit(1)
os._exit(0)  # how the libraries end with the interpreter is not what is asked
"""
"""Program that enhances one picture: a library that does not support the GPU can end its process, or hang."""
NEID = "paper"
"""Weights of the large network, whose share of the GPU's arithmetic is measured."""
NEID_BATCH = 8
"""Batch that it is measured with."""
OTHERS_BATCHES = (8, 32)
"""Batches of weights other than the chosen ones."""


class Limit(NamedTuple):
    """Time for processes that measure the same for one runtime after another."""

    each: float
    """Seconds."""
    until: float
    """Share of the total time by which the last one ends; the time left until then is divided equally."""


ENVIRONMENT = Limit(45, 0.15)
TRIALS = Limit(TRY_SECONDS + KILL_SECONDS, 0.35)
CHECKS = Limit(75, 0.45)
TIMES = Limit(90, 0.57)
NEID_TIMES = Limit(60, 0.65)
EFFICIENCY = Limit(45, 0.68)
CODECS = Limit(75, 0.76)
RELAY = Limit(math.inf, 0.92)
FURTHER_TIMES = Limit(120, 0.97)
FURTHER = Limit(60, 1.00)
"""In the order of execution: no time may be left for the last."""


@dataclass
class Run:
    """Runs processes one after another, and collects what they find."""

    findings: Findings
    show: Callable[[str], None]
    """Shows people what is under way."""

    @property
    def figures(self) -> Mapping[str, object]:
        """All that was found so far."""
        return self.findings.figures

    def seconds(self, limit: Limit, processes: int = 1) -> float:
        """Seconds for the next of so many processes."""
        left = self.findings.time_left(limit.until) / processes
        return min(limit.each, left) - KILL_SECONDS

    def measure(self, limit: Limit, *children: Child, more: int = 0) -> None:
        """Run the processes, and keep what they find; leaves time for `more` of their kind."""
        for number, child in enumerate(children):
            seconds = self.seconds(limit, len(children) - number + more)
            self.show(f"measuring {child.name}, for {seconds:.0f} s at most")
            self.findings.measure(child.time_key, partial(in_child, child, seconds))
            self.findings.add(known_shares(self.figures))


def bench_gpu(weights: str, minutes: float, path: Path | None, runtime: str = "auto") -> None:
    """Measure everything, write `path` after each step, print it; `runtime` is one of `ON_CUDA`, or auto for all.

    Raises `EngineMissing` without a GPU, and `EngineMismatch` for a runtime that needs none.
    """
    if find_gpu() == NO_GPU:
        raise EngineMissing("bench --gpu needs an NVIDIA GPU and its driver, and none was found")
    if runtime not in ("auto", *ON_CUDA):
        raise EngineMismatch(f"runtime {runtime!r}: bench --gpu measures one of auto, {', '.join(ON_CUDA)}")
    wanted, weights = ON_CUDA if runtime == "auto" else (runtime,), in_full(weights)
    card = find_weights(weights).card
    findings = Findings(path, 60 * minutes)
    with Console(stderr=True).status("") as status, TemporaryDirectory(prefix="nightbridge-bench-") as folder:
        run = Run(findings, status.update)
        run.measure(ENVIRONMENT, Child("environment", "environment", "environment"))
        status.update("trying the runtimes")
        findings.measure("runtimes", lambda: runtimes(wanted, weights, partial(run.seconds, TRIALS)))
        usable = [name for name in wanted if findings.figures.get(f"{name}_works")]
        others = sorted((name for name in shipped() if name != weights), key=lambda name: name != NEID)

        run.measure(CHECKS, *(checks(name, weights, card.name, 1) for name in usable))
        run.measure(TIMES, *(Child("times", f"times_{name}", "times", (name, weights, 0, 1)) for name in usable))
        if NEID in others:
            run.measure(NEID_TIMES, *(times_of_others(name, NEID, [NEID_BATCH]) for name in usable))
        run.measure(EFFICIENCY, Child("efficiency", "efficiency", "efficiency", (weights,)))
        relays(run, usable, weights, folder)
        run.measure(
            FURTHER_TIMES, *(Child("times", f"times_{name}", "times", (name, weights, 1, None)) for name in usable)
        )
        run.measure(FURTHER, *(checks(name, weights, card.name, None) for name in usable))
        for other in others:
            counts = [count for count in OTHERS_BATCHES if (other, count) != (NEID, NEID_BATCH)]
            run.measure(FURTHER, *(checks(name, other, other, None) for name in usable))
            run.measure(FURTHER, *(times_of_others(name, other, counts) for name in usable))
    print_findings(Console(), findings.figures)


def checks(runtime: str, weights: str, name: str, sizes: int | None) -> Child:
    """Contract and parity of the weights called `name`, over the first `sizes` of all sizes (None: all)."""
    return Child(f"{runtime}_checks", f"checks_{runtime}_{name}", "checks", (runtime, weights, sizes))


def times_of_others(runtime: str, other: str, counts: Sequence[int]) -> Child:
    """Times of weights other than the chosen ones."""
    return Child(f"times_{other}", f"times_{runtime}_{other}", "times_of_others", (runtime, other, counts))


def relays(run: Run, usable: Sequence[str], weights: str, folder: str) -> None:
    """How many feeds one relay carries, with the first runtime whose relay sends pictures."""
    if not usable:
        run.findings.add({"relay_failed": "EngineMissing: no runtime works on this GPU"})
    for number, runtime in enumerate(usable, 1):
        last = number == len(usable)
        codecs = Child("codecs", f"codecs_{runtime}", "codecs", (runtime, weights, folder))
        run.measure(CODECS, codecs, more=len(usable) - number)
        if f"{codecs.name}_failed" in run.figures and not last:
            continue  # its relay would not do better
        relay = Child("relay", f"relay_{runtime}", "relay", (runtime, weights, folder, codecs_ms(run.figures), last))
        run.measure(RELAY, relay)
        if any(re.fullmatch(r"relay_\d+_feeds_fps", key) for key in run.figures):
            return


def codecs_ms(figures: Mapping[str, object]) -> float | None:
    """CPU milliseconds of decoding and encoding a picture alone; None if not known."""
    decode, encode = figures.get("relay_decode_ms"), figures.get("relay_encode_ms")
    return decode + encode if isinstance(decode, float) and isinstance(encode, float) else None


def runtimes(wanted: Sequence[str], weights: str, seconds: Callable[[int], float]) -> Iterator[Mapping[str, object]]:
    """`RUNTIME_works`, and `RUNTIME_missing`: why not. `seconds(n)` gives the time for the next of `n`."""
    for number, runtime in enumerate(wanted):
        reason = why_not(runtime, weights, seconds(len(wanted) - number))
        yield {f"{runtime}_works": reason is None, f"{runtime}_missing": reason}


def why_not(runtime: str, weights: str, seconds: float = math.inf) -> str | None:
    """Why a runtime cannot enhance a picture here, for people; None if it can."""
    within = min(seconds, TRY_SECONDS)
    with TemporaryDirectory(prefix="nightbridge-bench-") as folder:
        command = [sys.executable, "-c", TRY, runtime, weights, str(within)]
        with OwnProcess(command, Path(folder) / "said") as process:
            code = process.wait(within)
        said = process.said
    if code == 0:
        return None
    if code is None:
        return f"no picture within {within:.0f} s"
    if at := innermost_line(said):
        return f"no picture within {within:.0f} s: it hangs in {at}"
    return last_line(said) if code > 0 else f"it ended with signal {-code}: {last_line(said)}"


def known_shares(figures: Mapping[str, object]) -> dict[str, float]:
    """`shares`, from the operations and the peak rate known so far."""
    peak, needed = figures.get("matrix_peak_tflops"), dict[str, float]()
    for key, gflop in figures.items():
        if key.startswith("gflop_") and isinstance(gflop, float):
            needed[key.removeprefix("gflop_")] = 1e9 * gflop
    return shares(figures, needed, 1e12 * peak) if isinstance(peak, float) else {}


def shares(figures: Mapping[str, object], needed: Mapping[str, float], peak: float) -> dict[str, float]:
    """`..._tflops` and `..._matrix_share` (of `peak`, operations per second) of each network that was timed alone.

    `needed`: operations per picture.
    """
    found: dict[str, float] = {}
    for key, network_ms in figures.items():
        if key.endswith("_network_ms") and isinstance(network_ms, float):
            cell = key.removesuffix("_network_ms")
            _, what, batch = re.fullmatch(r"([a-z]+)_(.+)_(b\d+)", cell).groups()  # type: ignore[union-attr]
            if what in needed:
                rate = needed[what] * int(batch[1:]) / (network_ms / 1000)
                found |= {f"{cell}_tflops": rate / 1e12, f"{cell}_matrix_share": rate / peak}
    return found
