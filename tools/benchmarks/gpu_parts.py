"""The parts of `nightbridge bench --gpu`: functions that yield figures when they have them.

They run in processes of their own, see `tools.benchmarks.gpu_child`. `time_left` gives the seconds in which they may
still start something.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from engines.cards import find_weights, shipped
from engines.cores import available_cores
from engines.door import Door
from engines.errors import EngineError, EngineMissing
from engines.nvidia.gpu import find_gpu
from engines.nvidia.tensorrt_library import import_tensorrt
from engines.runtime import EngineOptions, open_engine
from tools.benchmarks.gpu_findings import NO_TIME

PACKAGES = ("torch", "tensorrt", "tensorrt-rtx", "pycuda", "cuda-bindings", "av", "numpy")
TAPE_SECONDS, TAPE_COPIES = 20, 30
"""Length of the recording that each feed of the relay plays, and how often it does."""

ON_GPU = EngineOptions(cuda_only=True, trial_first=True)
"""On the GPU or not at all, in batches as large as the relay's; TensorRT is first tried in its own process."""

Figures = Mapping[str, object]
TimeLeft = Callable[[], float]


def environment(time_left: TimeLeft) -> Iterator[Figures]:
    """The machine, and what is installed on it."""
    del time_left
    gpu = find_gpu()
    yield {"gpu": gpu.name, "driver": gpu.driver, "cores": available_cores(), "python": platform.python_version()}
    yield {f"{name.replace('-', '_')}_version": installed(name) for name in PACKAGES}
    with suppress(EngineMissing):
        library = import_tensorrt()  # may be a folder that pip does not know
        yield {f"{library.name}_version": library.version}
    yield {f"weights_id_{name}": find_weights(name).id for name in shipped()}
    if installed("torch") is None:
        return
    import torch

    yield {"torch_cuda_version": torch.version.cuda}
    major, minor = torch.cuda.get_device_capability()
    yield {"compute_capability": f"{major}.{minor}", "gpu_memory_mb": torch.cuda.mem_get_info()[1] / 1e6}


def installed(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def checks(runtime: str, weights: str, sizes: int | None, time_left: TimeLeft) -> Iterator[Figures]:
    """Contract and parity of a runtime with some weights, over the first `sizes` of all sizes (None: all)."""
    from tools.benchmarks.gpu_checks import SIZES, Reference, contract, parity

    found, over = find_weights(weights), SIZES[:sizes]
    told = {"sizes": ", ".join(map(in_words, over))}
    try:
        with open_engine(runtime, weights, ON_GPU) as engine:
            label = f"{runtime}_{engine.info.precision}_{found.card.name}"
            kept = contract(engine, over) | told
            yield {f"contract_{label}_{key}": value for key, value in kept.items()}
            if time_left() <= 0:
                yield {f"parity_{label}_left_out": NO_TIME}
                return
            apart = parity(engine, Reference(found), over) | told
            yield {f"parity_{label}_{key}": value for key, value in apart.items()}
    except EngineError as error:
        yield {f"checks_{runtime}_{found.card.name}_failed": str(error)}


def times(runtime: str, weights: str, first: int, last: int | None, time_left: TimeLeft) -> Iterator[Figures]:
    """Times of the chosen weights, for `cells()[first:last]`, while there is time."""
    from tools.benchmarks.gpu_times import cells

    for size, counts in cells()[first:last]:
        if time_left() <= 0:
            yield left_out(runtime, size, counts)
            continue
        try:
            with open_engine(runtime, weights, timed(max(counts))) as engine:
                yield from times_of_size({runtime: engine}, size, counts, time_left)
        except EngineError as error:
            yield {f"times_{runtime}_failed": str(error)}


def times_of_size(
    engines: Mapping[str, Door], size: tuple[int, int], counts: Sequence[int], time_left: TimeLeft
) -> Iterator[Figures]:
    """GPU memory of each engine, if the largest batch of all is in `counts`, then its times for each count."""
    from tools.benchmarks.gpu_times import BATCHES, memory_growth, times

    where = in_words(size)
    if time_left() > 0 and max(counts) == max(map(max, BATCHES)):
        for name, engine in engines.items():
            with suppress(EngineError):  # reported with the times
                yield {f"{name}_{where}_gpu_memory_mb": memory_growth(engine, size, max(counts), used_mb)}
    for count in counts:
        if time_left() <= 0:
            for name in engines:
                yield left_out(name, size, [count])
            continue
        for name, figures in times(engines, size, count).items():
            yield {f"{name}_{where}_b{count}_{key}": value for key, value in figures.items()}


def left_out(name: str, size: tuple[int, int], counts: Sequence[int]) -> Figures:
    """Figures that say that no time was left."""
    return {f"times_{name}_{in_words(size)}_b{count}_left_out": NO_TIME for count in counts}


def times_of_others(runtime: str, weights: str, counts: Sequence[int], time_left: TimeLeft) -> Iterator[Figures]:
    """Times of other weights at one size, while there is time."""
    from tools.benchmarks.gpu_times import OTHERS_SIZE, times

    name, where = f"{runtime}_{weights}", in_words(OTHERS_SIZE)
    for count in counts:
        if time_left() <= 0:
            yield {f"times_{name}_left_out": NO_TIME}
            return
        try:
            with open_engine(runtime, weights, timed(count)) as engine:
                for figures in times({name: engine}, OTHERS_SIZE, count).values():
                    yield {f"{name}_{where}_b{count}_{key}": value for key, value in figures.items()}
        except EngineError as error:
            yield {f"times_{name}_failed": str(error)}


def timed(count: int) -> EngineOptions:
    """Options of an engine to be kept busy with batches of up to `count` pictures, and prepared for no larger ones."""
    from tools.benchmarks.gpu_times import UNDER_WAY

    return replace(ON_GPU, batch=count, slots=UNDER_WAY * count)


def efficiency(weights: str, time_left: TimeLeft) -> Iterator[Figures]:
    """Operations per picture, and the GPU's rate in a plain matrix product."""
    from tools.benchmarks.gpu_matrix import flop, matrix_peak
    from tools.benchmarks.gpu_times import OTHERS_SIZE, SIZES

    del time_left
    for size in SIZES:
        yield {f"gflop_{in_words(size)}": flop(find_weights(weights), size) / 1e9}
    peak, side = matrix_peak()
    yield {"matrix_peak_tflops": peak / 1e12, "matrix_peak_side": side}
    for other in [name for name in shipped() if name != weights]:
        try:
            yield {f"gflop_{other}_{in_words(OTHERS_SIZE)}": flop(find_weights(other), OTHERS_SIZE) / 1e9}
        except EngineError as error:
            yield {f"efficiency_{other}_failed": str(error)}


def codecs(runtime: str, weights: str, folder: str, time_left: TimeLeft) -> Iterator[Figures]:
    """What the relay's codecs cost alone. First prepares the engine, which fills its caches for the relay."""
    from tools.benchmarks.gpu_relay import SIZE, codecs_figures

    del time_left
    feed = night(Path(folder))
    with open_engine(runtime, weights, relay_options()) as engine:
        engine.prepare(*SIZE)
        yield codecs_figures(feed, engine)


def relay(
    runtime: str, weights: str, folder: str, codecs_ms: float | None, is_last_runtime: bool, time_left: TimeLeft
) -> Iterator[Figures]:
    """How many feeds one relay carries; `is_last_runtime`: no other runtime can be tried."""
    from tools.benchmarks.gpu_relay import COUNTS, SIZE, relay_figures
    from tools.benchmarks.stream import RATE, repeated

    heard = False
    yield {"relay_runtime": runtime, "relay_size": in_words(SIZE), "relay_rate": float(RATE)}
    own = Path(folder) / runtime
    own.mkdir()
    tape = repeated(night(Path(folder)), own / "tape", TAPE_COPIES)
    settings, last = {"runtime": runtime, "weights": weights}, {}
    for last in relay_figures(tape, own, settings, codecs_ms, time_left, used_mb, COUNTS, is_last_runtime):
        heard = heard or any(key.endswith("_fps") for key in last)
        yield last
    if not heard:
        yield {f"relay_{runtime}_failed": last["relay_limit"]}


def relay_options() -> EngineOptions:
    """The engine options of a relay with default settings: caches, such as plans, are valid for these."""
    from stream.settings import load_settings

    engine = load_settings(None).engine
    return EngineOptions(precision=engine.precision, threads=engine.threads, cache=engine.cache, batch=engine.batch)


def night(folder: Path) -> Path:
    """The recording that feeds play, made once."""
    from tools.benchmarks.gpu_relay import SIZE
    from tools.benchmarks.stream import RATE, make_feed

    feed, part = folder / "night.ts", folder / "part.ts"
    if not feed.exists():
        make_feed(Path(__file__).parents[1] / "clip" / "day.mp4", part, SIZE, int(TAPE_SECONDS * RATE))
        part.replace(feed)
    return feed


def used_mb() -> float | None:
    """MB of the GPU's memory in use by all processes; None without torch on CUDA."""
    try:
        import torch

        torch.cuda.empty_cache()  # else what torch keeps of an earlier size would count
        free, total = torch.cuda.mem_get_info()
    except Exception:  # ImportError, or whatever torch raises without CUDA
        return None
    return (total - free) / 1e6


def in_words(size: tuple[int, int]) -> str:
    """The size as in the names of figures."""
    return f"{size[0]}x{size[1]}"


PARTS: dict[str, Callable[..., Iterator[Figures]]] = {
    "environment": environment,
    "checks": checks,
    "times": times,
    "times_of_others": times_of_others,
    "efficiency": efficiency,
    "codecs": codecs,
    "relay": relay,
}
"""By the names that `tools.benchmarks.gpu_child` receives."""
