"""`nightbridge bench --gpu`: all that is worth knowing of an NVIDIA GPU, part by part, within some minutes."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from engines.cards import find_weights, shipped
from engines.cores import available_cores
from engines.door import Door
from engines.errors import EngineError, EngineMismatch, EngineMissing
from engines.gpu import NO_GPU, find_gpu
from engines.runtime import ON_CUDA, EngineOptions, open_engine
from engines.tensorrt_library import import_tensorrt
from tools.bench_gpu_findings import NO_TIME, Findings, print_findings

PACKAGES = ("torch", "tensorrt", "tensorrt-rtx", "pycuda", "cuda-bindings", "av", "numpy")
TRY_SECONDS = 90.0
"""How long a runtime may take to its first picture: TensorRT-RTX compiles."""
TRY = """
import faulthandler, os, sys
from engines.runtime import EngineOptions, open_engine
from tools.bench_gpu_checks import make_picture, through
runtime, weights, seconds = sys.argv[1:]
faulthandler.dump_traceback_later(0.9 * float(seconds), exit=True)
try:
    with open_engine(runtime, weights, EngineOptions(cuda_only=True, batch=1)) as engine:
        through(engine, make_picture("dusk", (64, 48)))
except Exception as error:
    print(" ".join(f"{type(error).__name__}: {error}".split()), file=sys.stderr, flush=True)
    os._exit(1)
os._exit(0)  # how the libraries end with the interpreter is not what is asked
"""
"""One picture through a runtime, in a process of its own: a library that refuses a GPU can end its process, or hang."""
HUNG = "(most recent call first):\n"
"""Behind it `faulthandler` tells where a thread is, the main one at last."""
CHECKS_SHARE = 0.35
"""Of all time: when it is over no further weights are checked beside the chosen ones."""
RELAY_SHARE = 0.85
"""Of the time: relays are watched until then."""
OTHERS_SHARE = 0.95
"""Of all time: when it is over no further weights are timed."""
TIMES_SHARE = 0.5
"""Of all time: when it is over the relay begins, whatever is not timed yet."""
LEAST_TIMES_SHARE = 0.3
"""Of all time: what the times get, however long everything before them took."""
TAPE_SECONDS, TAPE_COPIES = 20, 30
"""Of the recording that each feed of the relay plays, and how often."""


def bench_gpu(weights: str, minutes: float, path: Path | None, runtime: str = "auto") -> None:
    """Measure everything, write `path` after each step, print it; `runtime` is one of `ON_CUDA`, or auto for all.

    Raises `EngineMissing` where there is no GPU, and `EngineMismatch` for a runtime that needs none.
    """
    if find_gpu() == NO_GPU:
        raise EngineMissing("bench --gpu needs an NVIDIA GPU and its driver; here is none")
    if runtime not in ("auto", *ON_CUDA):
        raise EngineMismatch(f"runtime {runtime!r}: bench --gpu measures one of auto, {', '.join(ON_CUDA)}")
    wanted = ON_CUDA if runtime == "auto" else (runtime,)
    find_weights(weights)
    findings = Findings(path, 60 * minutes)

    def until(share: float) -> Callable[[], float]:
        return partial(findings.time_left, share)

    console = Console(stderr=True)
    with console.status("") as status:
        status.update("looking around")
        findings.measure("environment", environment)
        status.update("trying the runtimes")
        findings.measure("runtimes", lambda: runtimes(wanted, weights))
        usable = [name for name in wanted if findings.figures.get(f"{name}_works")]
        status.update("comparing with fp32 on the processor")
        for runtime in usable:
            findings.measure(f"{runtime}_checks", partial(checks, runtime, weights, until(CHECKS_SHARE)))
        status.update("timing batches")
        seconds = max(findings.time_left(TIMES_SHARE), LEAST_TIMES_SHARE * findings.seconds)
        end = time.monotonic() + seconds
        findings.measure("times", lambda: times(usable, weights, lambda: end - time.monotonic()))
        status.update("watching relays")
        findings.measure("relay", lambda: relay(usable, weights, until(RELAY_SHARE)))
        for other in [name for name in shipped() if name != weights]:
            status.update(f"timing {other}")
            findings.measure(f"times_{other}", partial(times_of_others, usable, other, until(OTHERS_SHARE)))
        status.update("comparing with a matrix product")
        findings.measure("efficiency", lambda: efficiency(weights, findings.figures))
    print_findings(Console(), findings.figures)


def environment() -> Iterator[Mapping[str, object]]:
    """The machine, and what is installed on it."""
    gpu = find_gpu()
    yield {"gpu": gpu.name, "driver": gpu.driver, "cores": available_cores(), "python": platform.python_version()}
    yield {f"{name.replace('-', '_')}_version": installed(name) for name in PACKAGES}
    with suppress(EngineMissing):
        library = import_tensorrt()  # may be a folder that pip knows nothing of
        yield {f"{library.name}_version": library.version}
    yield {f"weights_id_{name}": find_weights(name).id for name in shipped()}
    if installed("torch") is None:
        return
    import torch

    yield {"torch_cuda_version": torch.version.cuda}
    major, minor = torch.cuda.get_device_capability()
    yield {"compute_capability": f"{major}.{minor}", "gpu_memory_mb": torch.cuda.mem_get_info()[1] / 1e6}


def installed(package: str) -> str | None:
    """The version of an installed package; None where it is not."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def runtimes(wanted: Sequence[str], weights: str) -> Iterator[Mapping[str, object]]:
    """`RUNTIME_works`, and `RUNTIME_missing`: why not."""
    for runtime in wanted:
        reason = why_not(runtime, weights)
        yield {f"{runtime}_works": reason is None, f"{runtime}_missing": reason}


def why_not(runtime: str, weights: str) -> str | None:
    """Why a runtime cannot enhance a picture here, for people; None where it can."""
    command = [sys.executable, "-c", TRY, runtime, weights, str(TRY_SECONDS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRY_SECONDS, check=False)  # noqa: S603 - our own program
    except subprocess.TimeoutExpired:
        return f"no picture within {TRY_SECONDS:g} s"
    if done.returncode == 0:
        return None
    _, hung, stack = done.stderr.rpartition(HUNG)
    if hung:
        return f"no picture within {TRY_SECONDS:g} s: it hangs in {stack.strip().splitlines()[0]}"
    last = (done.stderr.strip().splitlines() or ["it does not say why"])[-1]
    return last if done.returncode > 0 else f"it ended with signal {-done.returncode}: {last}"


def checks(runtime: str, weights: str, time_left: Callable[[], float]) -> Iterator[Mapping[str, object]]:
    """Contract and parity of a runtime, for the chosen weights, and for all that are shipped while there is time."""
    from tools.bench_gpu_checks import SCENES, SIZES, Reference, contract, parity

    options = EngineOptions(cuda_only=True, batch=len(SCENES))  # a size is made ready for each count of pictures
    for name in dict.fromkeys((weights, *shipped())):
        found = find_weights(name)
        if name != weights and time_left() <= 0:
            yield {f"checks_{runtime}_{found.card.name}_left_out": NO_TIME}
            continue
        try:
            with open_engine(runtime, name, options) as engine:
                label = f"{runtime}_{engine.info.precision}_{found.card.name}"
                yield {f"contract_{label}_{key}": value for key, value in contract(engine, SIZES).items()}
                yield {f"parity_{label}_{key}": value for key, value in parity(engine, Reference(found), SIZES).items()}
        except EngineError as error:
            yield {f"checks_{runtime}_{found.card.name}_failed": str(error)}


def times(usable: list[str], weights: str, time_left: Callable[[], float]) -> Iterator[Mapping[str, object]]:
    """Times of all sizes and batches, as long as there is time."""
    from tools.bench_gpu_times import BATCHES, SIZES

    options = timed(BATCHES)
    with ExitStack() as stack:
        engines: dict[str, Door] = {}
        for name in usable:
            try:
                engines[name] = stack.enter_context(open_engine(name, weights, options))
            except EngineError as error:
                yield {f"times_{name}_failed": str(error)}
        for size in SIZES:
            yield from times_of_size(engines, size, BATCHES, time_left)
            for engine in engines.values():
                with suppress(EngineError):  # told with the times
                    engine.allow(options.slots, 0)  # frees the size
                    engine.allow(options.slots, 1)


def times_of_others(usable: list[str], weights: str, time_left: Callable[[], float]) -> Iterator[Mapping[str, object]]:
    """Times of other weights, of one size and the usual batches, with each runtime alone, while there is time."""
    from tools.bench_gpu_times import OTHERS_BATCHES, OTHERS_SIZE, times

    where = f"{OTHERS_SIZE[0]}x{OTHERS_SIZE[1]}"
    for runtime in usable:
        if time_left() <= 0:
            yield {f"times_{runtime}_{weights}_left_out": NO_TIME}
            continue
        try:
            with open_engine(runtime, weights, timed(OTHERS_BATCHES)) as engine:
                for count in OTHERS_BATCHES:
                    for name, figures in times({f"{runtime}_{weights}": engine}, OTHERS_SIZE, count).items():
                        yield {f"{name}_{where}_b{count}_{key}": value for key, value in figures.items()}
        except EngineError as error:
            yield {f"times_{runtime}_{weights}_failed": str(error)}


def timed(counts: Sequence[int]) -> EngineOptions:
    """Of an engine that is to be kept busy with batches of so many pictures."""
    from tools.bench_gpu_times import UNDER_WAY

    return EngineOptions(cuda_only=True, batch=max(counts), slots=UNDER_WAY * max(counts))


def times_of_size(
    engines: Mapping[str, Door], size: tuple[int, int], counts: tuple[int, ...], time_left: Callable[[], float]
) -> Iterator[Mapping[str, object]]:
    """GPU memory of each engine for this size, then its times for each count of pictures in a batch."""
    from tools.bench_gpu_times import memory_growth, times

    where = f"{size[0]}x{size[1]}"
    if time_left() > 0:
        for name, engine in engines.items():
            with suppress(EngineError):  # told with the times
                yield {f"{name}_{where}_gpu_memory_mb": memory_growth(engine, size, max(counts), used_mb)}
    for count in counts:
        if time_left() <= 0:
            yield {f"times_{where}_b{count}_left_out": NO_TIME}
            continue
        for name, figures in times(engines, size, count).items():
            yield {f"{name}_{where}_b{count}_{key}": value for key, value in figures.items()}


def efficiency(weights: str, figures: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """Operations of a picture, the GPU's rate in a plain product, and the network's share of that."""
    from tools.bench_gpu_matrix import flop, matrix_peak
    from tools.bench_gpu_times import OTHERS_SIZE, SIZES

    needed = {f"{width}x{height}": flop(find_weights(weights), (width, height)) for width, height in SIZES}
    yield {f"gflop_{size}": count / 1e9 for size, count in needed.items()}
    peak, side = matrix_peak()
    yield {"matrix_peak_tflops": peak / 1e12, "matrix_peak_side": side}
    width, height = OTHERS_SIZE
    for other in [name for name in shipped() if name != weights]:
        needed[f"{other}_{width}x{height}"] = flop(find_weights(other), OTHERS_SIZE)
        yield {f"gflop_{other}_{width}x{height}": needed[f"{other}_{width}x{height}"] / 1e9}
    yield shares(figures, needed, peak)


def shares(figures: Mapping[str, object], needed: Mapping[str, int], peak: float) -> dict[str, float]:
    """For each network that was timed alone, `..._tflops` and `..._matrix_share`: of the rate `peak`."""
    found: dict[str, float] = {}
    for key, network_ms in figures.items():
        if key.endswith("_network_ms") and isinstance(network_ms, float):
            cell = key.removesuffix("_network_ms")
            _, what, batch = re.fullmatch(r"([a-z]+)_(.+)_(b\d+)", cell).groups()  # type: ignore[union-attr]
            rate = needed[what] * int(batch[1:]) / (network_ms / 1000)
            found |= {f"{cell}_tflops": rate / 1e12, f"{cell}_matrix_share": rate / peak}
    return found


def relay(usable: list[str], weights: str, time_left: Callable[[], float]) -> Iterator[Mapping[str, object]]:
    """How many feeds one relay carries with the better runtime that works."""
    from tools.bench_gpu_relay import COUNTS, SIZE, codecs_figures, relay_figures
    from tools.bench_stream import RATE, make_feed, repeated

    if not usable:
        raise EngineMissing("no runtime works on this GPU")
    settings = {"runtime": usable[0], "weights": weights}
    yield {"relay_runtime": usable[0], "relay_size": f"{SIZE[0]}x{SIZE[1]}", "relay_rate": float(RATE)}
    with TemporaryDirectory(prefix="nightbridge-bench-") as name:
        folder = Path(name)
        feed = folder / "night.ts"
        make_feed(Path(__file__).parent / "clip" / "day.mp4", feed, SIZE, int(TAPE_SECONDS * RATE))
        with open_engine(
            usable[0], weights, EngineOptions(cuda_only=True, batch=1)
        ) as engine:  # for pictures to encode
            codecs = codecs_figures(feed, engine)
        yield codecs
        tape = repeated(feed, folder / "tape", TAPE_COPIES)
        yield from relay_figures(tape, folder, settings, sum(codecs.values()), time_left, used_mb, COUNTS)


def used_mb() -> float | None:
    """MB of the GPU's memory that anybody has taken; None without torch on CUDA."""
    try:
        import torch

        torch.cuda.empty_cache()  # or what torch keeps of a size that is gone would count
        free, total = torch.cuda.mem_get_info()
    except Exception:  # ImportError, or whatever torch says without CUDA
        return None
    return (total - free) / 1e6
