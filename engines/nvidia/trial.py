"""Whether the GPU runs TensorRT's plans, found out where it can do no harm.

A library that does not know a GPU may end its process there, hang, or cause a fault after which nothing in that process
can use the GPU. So each compute capability is tried in a process of its own, and what it found is kept: see `Plans`.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import NoReturn

from engines.cards import Weights
from engines.errors import EngineMismatch, EngineMissing
from engines.nvidia.gpu import Gpu
from engines.nvidia.plans import Plans
from engines.nvidia.tensorrt_builder import capabilities
from engines.nvidia.tensorrt_library import Library
from engines.runtime import TRIAL, EngineOptions

TRIAL_SECONDS = 300.0
"""How long one may take: TensorRT times kernels when it builds, TensorRT-RTX compiles when it runs."""
KILLED_SECONDS = 5.0
"""How long a process that was killed may take to end: one that is inside the driver may never."""
PROGRAM = """
import os, sys
sys.path[:] = sys.argv[1].split(os.pathsep)
from engines.nvidia.trial import try_here
try_here(*sys.argv[2:])
"""
REFUSED, UNTOLD = 3, 4
"""Exit codes of a trial: the GPU does not run the plan; something else is in the way."""
FROM_OUTSIDE = {signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM}
"""Signals that tell nothing of the GPU: the service is being stopped, or the machine is out of memory."""
PR_SET_PDEATHSIG = 1
"""Of the kernel's prctl.h."""

log = logging.getLogger(__name__)


def capability_that_runs(library: Library, gpu: Gpu, weights: Weights, options: EngineOptions) -> str:
    """The first of `capabilities` whose plans the GPU runs, as far as is kept without a trial.

    Raises `EngineMissing`, with what each trial said, where there is none, and where that cannot be told.
    """
    plans, refusals = Plans(library, gpu, options.cache), list[str]()
    for capability in capabilities(library):
        key = plans.key(weights, *TRIAL, options.batch, capability=capability)
        refusal = plans.refusal(key)
        if refusal is None:
            log.info("trying whether %s runs %s, in a process of its own", gpu.name, library)
            refusal = refusal_of(weights, options, capability)
            plans.store_refusal(key, refusal)
        if not refusal:
            if refusals:
                log.warning("%s takes a plan built for %s (%s)", gpu.name, capability, "; ".join(refusals))
            return capability
        refusals.append(f"{capability or 'as usual'}: {refusal}")
    raise EngineMissing(f"{library} runs no plan on {gpu.name}: {'; '.join(refusals)}")


def refusal_of(weights: Weights, options: EngineOptions, capability: str) -> str:
    """Why the GPU refuses plans for a capability, in one line; empty where it runs one.

    Raises `EngineMissing` where that cannot be told.
    """
    words = (str(weights.folder.absolute()), str(options.cache or ""), str(options.batch), capability)
    command = [sys.executable, "-P", "-c", PROGRAM, os.pathsep.join(sys.path), *words, str(TRIAL_SECONDS)]
    try:
        code, last = outcome(command)
    except subprocess.TimeoutExpired:
        return f"it was not ready within {TRIAL_SECONDS:g} s"
    except OSError as error:
        raise EngineMissing(f"TensorRT cannot be tried in a process of its own: {error.strerror}") from error
    if code == 0:
        return ""
    reason = last if code > 0 else f"its process ended with signal {-code}: {last}"
    if code == UNTOLD or -code in FROM_OUTSIDE:
        raise EngineMissing(reason)
    return reason


def outcome(command: Sequence[str]) -> tuple[int, str]:
    """How a process ends, as `subprocess` tells it, and the last line that it says on stderr.

    Raises `OSError` where there can be no process, and `TimeoutExpired`. However this is left, the process was ended.
    """
    with TemporaryFile() as said:
        trial = subprocess.Popen(  # noqa: S603 - our own program
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
        )
        try:
            code = trial.wait(TRIAL_SECONDS)
        finally:
            if trial.poll() is None:
                trial.kill()
                with suppress(subprocess.TimeoutExpired):
                    trial.wait(KILLED_SECONDS)
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
    return code, lines[-1].strip() if lines else "it does not say why"


def try_here(folder: str, cache: str, batch: str, capability: str, seconds: str) -> NoReturn:
    """Make an engine ready for a small size, and end this process by what came of it: what a trial's process does.

    What is built and compiled is kept, so that the engine proper finds it.
    """
    end_with_parent(float(seconds))
    from engines.runtime_tensorrt import import_driver, open_engine

    options = EngineOptions(cache=Path(cache) if cache else None, batch=int(batch), slots=1, capability=capability)
    code = UNTOLD
    try:
        engine = open_engine(Weights(Path(folder)), options).__enter__()
        code = REFUSED
        engine.prepare(*TRIAL)
        code = 0
    except Exception as error:
        lacks_memory = code == REFUSED and isinstance(error.__cause__, import_driver().MemoryError)
        if lacks_memory or isinstance(error, EngineMissing | EngineMismatch):
            code = UNTOLD
        print("\n", " ".join(str(error).split()), file=sys.stderr, flush=True)
    os._exit(code)  # how the libraries end with the interpreter is not what is asked


def end_with_parent(seconds: float) -> None:
    """Let the kernel end this process with the thread that started it, and after so many seconds in any case."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.setitimer(signal.ITIMER_REAL, seconds)  # for want of a handler SIGALRM ends it wherever it hangs
