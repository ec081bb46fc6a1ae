"""Opening an engine: which runtime, which weights, which precision."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from engines.cards import Weights, find_weights
from engines.door import Engine
from engines.errors import EngineMismatch

RUNTIMES = {"openvino": "engines.runtime_openvino", "torch": "engines.runtime_torch"}
"""By the name that settings use; a runtime's module is imported only when it is chosen."""


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


class RuntimeModule(Protocol):
    """What each runtime's module offers."""

    def open_engine(self, weights: Weights, options: EngineOptions) -> Engine:
        """An engine to be entered; raises `EngineMissing` where this runtime cannot work on this machine."""


def open_engine(runtime: str = "auto", weights: str = "field", options: EngineOptions | None = None) -> Engine:
    """An engine for the weights of this name (or folder), to be used in a `with` block.

    `auto` is OpenVINO on the CPU. Raises `EngineMissing` or `EngineMismatch`, which name what is
    missing or wrong.
    """
    name = "openvino" if runtime == "auto" else runtime
    if name not in RUNTIMES:
        raise EngineMismatch(f"no runtime {runtime!r}: it must be one of auto, {', '.join(RUNTIMES)}")
    module = cast("RuntimeModule", importlib.import_module(RUNTIMES[name]))
    return module.open_engine(find_weights(weights), options or EngineOptions())
