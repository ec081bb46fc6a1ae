"""What the engine costs: milliseconds for one picture through its door, beside ONNX Runtime on the same cores."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import cycle, islice
from statistics import median

import numpy as np

from engines.cards import find_weights
from engines.cores import available_cores
from engines.door import Door, no_past
from engines.errors import EngineMismatch, EngineMissing
from engines.network.config import CONFIGS
from engines.padding import past_shapes
from engines.runtime import EngineOptions, open_engine
from stream.enhance import fill
from stream.frame import Frame

ROUNDS, PICTURES = 5, 40
"""Each figure is the median over all pictures of all rounds; what is compared takes turns, round by round."""

Picture = Callable[[], object]
"""Enhances the next picture."""


def engine_figures(frames: Sequence[Frame], weights: str, runtime: str, options: EngineOptions) -> dict[str, object]:
    """`engine_ms` of the chosen precision, `engine_ms_by_precision`, `engine_parallel_ms`, `onnxruntime_ms` and
    `engine_speedup`."""
    with ExitStack() as stack:
        chosen = stack.enter_context(open_engine(runtime, weights, options))
        runners = {chosen.info.precision: through_the_door(chosen, frames)}
        if chosen.info.runtime == "openvino":
            for precision in ("fp32", "bf16", "int8"):
                if precision in runners:
                    continue
                other = replace(options, precision=precision)
                try:
                    engine = stack.enter_context(open_engine(runtime, weights, other))
                except (EngineMismatch, EngineMissing):  # the processor or the weights lack it
                    continue
                runners[precision] = through_the_door(engine, frames)
            count = min(options.threads or available_cores(), chosen.info.largest_batch)
            several = replace(options, precision=chosen.info.precision, parallel=count, slots=count)
            runners["parallel"] = side_by_side(
                stack.enter_context(open_engine(runtime, weights, several)), frames, count
            )
        if rival := onnxruntime_picture(frames, weights, options.threads):
            runners["onnxruntime"] = rival
        times = in_turns(runners)
        onnxruntime_ms, parallel_ms = times.pop("onnxruntime", None), times.pop("parallel", None)
        engine_ms = times[chosen.info.precision]
        return {
            "runtime": chosen.info.runtime,
            "precision": chosen.info.precision,
            "device": chosen.info.device,
            "weights_id": chosen.info.weights_id,
            "engine_ms": engine_ms,
            "engine_ms_by_precision": times,
            "engine_parallel_ms": parallel_ms / count if parallel_ms else None,
            "onnxruntime_ms": onnxruntime_ms,
            "engine_speedup": onnxruntime_ms / engine_ms if onnxruntime_ms else None,
        }


def side_by_side(engine: Door, frames: Sequence[Frame], count: int) -> Picture:
    """`count` pictures at once, each of a different feed."""
    upcoming = cycle(frames)

    def pictures() -> None:
        slots = []
        for frame in islice(upcoming, count):
            slots.append(engine.acquire(frame.width, frame.height))
            fill(slots[-1], frame, frame.planes())
        engine.submit(slots)
        for slot in slots:
            slot.wait()
            slot.release()

    return pictures


def through_the_door(engine: Door, frames: Sequence[Frame]) -> Picture:
    """A picture's whole way: acquire a slot, fill it, submit, wait, release."""
    upcoming = cycle(frames)

    def picture() -> None:
        frame = next(upcoming)
        slot = engine.acquire(frame.width, frame.height)
        fill(slot, frame, frame.planes())
        engine.submit([slot])
        slot.wait()
        slot.release()

    return picture


def onnxruntime_picture(frames: Sequence[Frame], weights: str, threads: int) -> Picture | None:
    """The same ONNX file in ONNX Runtime on as many cores; None without that (extra `dev`) or fp32.onnx."""
    try:
        import onnxruntime
    except ImportError:
        return None
    found = find_weights(weights)
    if not found.has("fp32.onnx"):
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(str(found.file("fp32.onnx")), options)
    config = CONFIGS[found.card.network]
    nothing = {"memory": np.zeros((1, config.memory_size), np.float32), "keep": np.zeros((1, 1), np.float32)}
    inputs = []
    for frame in frames:
        y, *chroma = frame.planes()
        uv = np.stack(chroma)[None]
        planes = {"y": y[None, None], "uv": uv, "colour": frame.colour.coefficients()[None]}
        inputs.append(planes | nothing | no_past(past_shapes(config, frame.width, frame.height)))
    upcoming = cycle(inputs)
    return lambda: session.run(None, next(upcoming))


def in_turns(runners: dict[str, Picture]) -> dict[str, float]:
    """Median milliseconds per picture, by name."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(ROUNDS):
        for name, picture in runners.items():
            for warm_up in (*[True] * 3, *[False] * PICTURES):
                began = time.perf_counter()
                picture()
                if not warm_up:
                    times[name].append(time.perf_counter() - began)
    return {name: 1000 * median(seconds) for name, seconds in times.items()}
