"""What tests of `bench --gpu` share. `python -m tests.short_bench` is `python -m tools.benchmarks.gpu_child`, which
measures as little as can be.

Without a GPU, too: what torch multiplies is on the processor, and so are the runtimes but `tensorrt`, which kills the
process that asks it for a picture.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from types import ModuleType

import pytest
import torch

from engines.door import Door
from engines.nvidia.gpu import Gpu
from engines.runtime import EngineOptions, open_engine
from tests.doubling import DoublingEngine
from tools.benchmarks import gpu, gpu_checks, gpu_child, gpu_matrix, gpu_parts, gpu_relay, gpu_times

SIZES = ((32, 32), (33, 21))
SHORT: list[tuple[ModuleType, str, object]] = [
    (gpu_times, "ROUNDS", 2),
    (gpu_times, "TURN_SECONDS", 0),
    (gpu_times, "SIZES", ((32, 32), (48, 32))),
    (gpu_times, "BATCHES", ((1, 2),)),
    (gpu_times, "OTHERS_SIZE", (32, 32)),
    (gpu_matrix, "SIDES", (32,)),
    (gpu_relay, "COUNTS", (1,)),
    (gpu_relay, "TRIES", 1),
    (gpu_relay, "SETTLE_SECONDS", 1.2),
    (gpu_relay, "WATCH_SECONDS", 2.5),
    (gpu_relay, "STEP_SECONDS", 0),
    (gpu_parts, "TAPE_SECONDS", 3),
    (gpu_parts, "TAPE_COPIES", 9),
    (gpu_checks, "SIZES", SIZES),
]
"""Few repetitions with small pictures: of each module, what to set to what."""
DOOR = {"door_ms", "latency_ms", "fps"}
"""What is told of each batch, whatever the engine."""


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few repetitions as can be, of small pictures, here and in the processes of all parts, with time for each."""
    for module, name, value in SHORT:
        monkeypatch.setattr(module, name, value)
    for name, value in list(vars(gpu).items()):
        if isinstance(value, gpu.Limit):
            monkeypatch.setattr(gpu, name, value._replace(each=math.inf))
    monkeypatch.setattr(gpu_child, "COMMAND", (sys.executable, "-m", "tests.short_bench"))


def together(parts: Iterator[Mapping[str, object]]) -> dict[str, object]:
    """All figures of a part."""
    return {key: value for figures in parts for key, value in figures.items()}


class FatalEngine(DoublingEngine):
    """As a library with a fault: the first picture kills the process."""

    def submit(self, _slots: object) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


def open_stand_in(runtime: str, weights: str, options: EngineOptions) -> Door:
    return FatalEngine() if runtime == "tensorrt" else open_engine(runtime, weights, options)


if __name__ == "__main__":
    for module, name, value in SHORT:
        setattr(module, name, value)
    gpu_matrix.matrix_peak = partial(gpu_matrix.matrix_peak, "cpu", torch.float32, (32,))
    gpu_parts.find_gpu = lambda: Gpu("NVIDIA H200", "580")
    gpu_parts.shipped = lambda: ["field"]
    gpu_parts.open_engine = open_stand_in
    gpu_child.main()
