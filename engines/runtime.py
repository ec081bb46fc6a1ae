"""Opening an engine: which runtime, which weights, which precision."""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, cast

from engines.cards import Weights, find_weights
from engines.door import Door
from engines.errors import EngineError, EngineMismatch, EngineMissing
from engines.fallback import FallbackEngine
from engines.nvidia.gpu import has_driver, is_sound

RUNTIMES = {
    "tensorrt": "engines.runtime_tensorrt",
    "torch": "engines.runtime_torch",
    "openvino": "engines.runtime_openvino",
}
"""Modules by the name that settings use, in the order of `auto`; each is imported only when it is tried."""
PRECISIONS = {"tensorrt": ("fp16",), "torch": ("fp32", "fp16"), "openvino": ("fp32", "bf16", "int8")}
"""What each runtime takes besides `auto`; torch has fp16 on CUDA only."""
ON_CUDA = ("tensorrt", "torch")
"""Tried by `auto` only if there is an NVIDIA driver with a GPU: importing them costs seconds and memory."""

TRIAL_SIZE = (64, 48)
"""Width and height that a GPU is tried with before it is used."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineOptions:
    """What a runtime is opened with."""

    precision: str = "auto"
    """`auto`, `fp32`, `bf16`, `fp16` or `int8`."""
    threads: int = 0
    """Processor cores to compute on; 0 takes all that the process may use."""
    cache: Path | None = None
    """Folder for compiled models; None is the user's cache directory."""
    slots: int = 8
    """Pictures of one size that may be in the engine at once."""
    batch: int = 8
    """The largest batch; a GPU reserves memory for it."""
    cuda_only: bool = False
    """Whether a runtime that also runs on the CPU counts as missing without CUDA."""
    trial_first: bool = False
    """Whether TensorRT must run in a separate process before it is opened, see `engines.nvidia.trial`."""
    capability: str | None = None
    """What TensorRT's plans are built for, one of `engines.nvidia.tensorrt_builder.capabilities`; None: the first one
    that the GPU runs."""
    parallel: int = 1
    """Pictures of different feeds that OpenVINO computes at once, each on its share of the cores."""


class RuntimeModule(Protocol):
    """What each runtime's module offers."""

    def open_engine(self, weights: Weights, options: EngineOptions) -> Door:
        """An engine, not entered yet; raises `EngineMissing` if this runtime cannot work on this machine."""


def open_engine(runtime: str = "auto", weights: str = "field", options: EngineOptions | None = None) -> Door:
    """An engine for weights given by name or folder; use it in a `with` block.

    `auto` is the first of `RUNTIMES` that works here. Raises `EngineMissing` or `EngineMismatch`, which name what is
    missing or wrong.
    """
    return _choose(runtime, weights, options or EngineOptions(), logging.DEBUG)


def open_with_fallback(runtime: str = "auto", weights: str = "field", options: EngineOptions | None = None) -> Door:
    """Like `open_engine`, for a relay that must keep running.

    With `auto` and an NVIDIA GPU, the CPU enhances whenever the GPU is not ready or has failed. The log says which
    engine was chosen, and why no better one.
    """
    options = options or EngineOptions()
    *better, last = RUNTIMES
    if runtime != "auto" or not has_driver():
        return _choose(runtime, weights, options, logging.INFO)
    found = find_weights(weights)
    try:
        engine = open_as_auto(last, found, options)
    except EngineError as error:
        log.warning("engine: no fallback, since %s cannot be opened: %s", last, error)
        return _choose(runtime, weights, options, logging.INFO)
    log.info("engine: %s, until %s is ready", engine.info, " or ".join(better))
    return FallbackEngine(engine, {name: partial(open_as_auto, name, found, options) for name in better})


def open_as_auto(runtime: str, weights: Weights, options: EngineOptions) -> Door:
    """The engine of one runtime, as `auto` opens it.

    TensorRT and torch count only on CUDA, and only once the GPU has run their code. TensorRT can crash its process, so
    it is tried in another one first.
    """
    if runtime not in ON_CUDA:
        return _open_runtime(runtime, weights, options)
    if not has_driver():
        raise EngineMissing("no NVIDIA driver with a GPU")
    if not is_sound():
        raise EngineMissing("the GPU has failed and this process can no longer use it; restart the process")
    engine = _open_runtime(runtime, weights, replace(options, cuda_only=True, trial_first=True))
    with engine:
        engine.prepare(*TRIAL_SIZE)
    return engine


def _choose(runtime: str, weights: str, options: EngineOptions, level: int) -> Door:
    """The engine of a runtime, or with `auto` of the first one that works; the choice and its reasons are logged."""
    if runtime not in ("auto", *RUNTIMES):
        raise EngineMismatch(f"no runtime {runtime!r}: it must be one of auto, {', '.join(RUNTIMES)}")
    found, reasons = find_weights(weights), list[str]()
    engine = _open_first(found, options, reasons) if runtime == "auto" else _open_runtime(runtime, found, options)
    log.log(level, "engine: %s", "; ".join([str(engine.info), *reasons]))
    return engine


def _open_first(weights: Weights, options: EngineOptions, reasons: list[str]) -> Door:
    """The engine of the first runtime that works; adds to `reasons` why those before it do not."""
    *better, last = RUNTIMES
    for runtime in better:
        try:
            return open_as_auto(runtime, weights, options)
        except EngineError as error:
            reasons.append(f"{runtime}: {error}")
    return open_as_auto(last, weights, options)


def _open_runtime(runtime: str, weights: Weights, options: EngineOptions) -> Door:
    try:
        module = cast("RuntimeModule", importlib.import_module(RUNTIMES[runtime]))
    except ImportError as error:
        raise EngineMissing(f"runtime {runtime} cannot be loaded: {error}") from error
    try:
        return module.open_engine(weights, options)
    except (EngineError, OSError):
        raise
    except Exception as error:  # whatever its library raises if it cannot use the device
        raise EngineMissing(f"runtime {runtime} cannot be opened: {error}") from error
