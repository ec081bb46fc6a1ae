"""Finds out in a separate process whether the GPU runs TensorRT's plans.

On a GPU that it does not know, the library may end its process, hang, or cause a fault after which nothing in that
process can use the GPU. So each compute capability is tried in a process of its own, and `Plans` keeps the result.
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
from engines.runtime import TRIAL_SIZE, EngineOptions

TRIAL_SECONDS = 300.0
"""Longest trial: TensorRT times kernels when it builds, TensorRT-RTX compiles when it runs."""
KILLED_SECONDS = 5.0
"""How long to wait for a killed process: one that is inside the driver may never end."""
PROGRAM = """
import os, sys
sys.path[:] = sys.argv[1].split(os.pathsep)
from engines.nvidia.trial import try_here
try_here(*sys.argv[2:])
"""
REFUSED, INCONCLUSIVE = 3, 4
"""Exit codes of a trial: the GPU does not run the plan; or something else prevented the trial."""
FROM_OUTSIDE = {signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM}
"""Signals that say nothing about the GPU: the service is being stopped, or the machine is out of memory."""
PR_SET_PDEATHSIG = 1
"""From the kernel's prctl.h."""

log = logging.getLogger(__name__)


def capability_that_runs(library: Library, gpu: Gpu, weights: Weights, options: EngineOptions) -> str:
    """The first of `capabilities` whose plans the GPU runs; a capability is tried only if no result is kept.

    Raises `EngineMissing` if there is none, with what each trial said, and if a trial cannot tell.
    """
    plans, refusals = Plans(library, gpu, options.cache), list[str]()
    for capability in capabilities(library):
        key = plans.key(weights, *TRIAL_SIZE, options.batch, capability=capability)
        refusal = plans.trial_result(key)
        if refusal is None:
            log.info("testing in a separate process whether %s runs the plans of %s", gpu.name, library)
            refusal = refusal_of(weights, options, capability)
            plans.store_trial_result(key, refusal)
        if not refusal:
            if refusals:
                log.warning(
                    "%s uses a plan built for compute capability %s; others failed: %s",
                    gpu.name,
                    capability,
                    "; ".join(refusals),
                )
            return capability
        refusals.append(f"{capability or 'default capability'}: {refusal}")
    raise EngineMissing(f"{library} could not run any plan on {gpu.name}: {'; '.join(refusals)}")


def refusal_of(weights: Weights, options: EngineOptions, capability: str) -> str:
    """Why the GPU refuses plans for a capability, in one line; empty if it runs one.

    Raises `EngineMissing` if the trial cannot tell.
    """
    words = (str(weights.folder.absolute()), str(options.cache or ""), str(options.batch), capability)
    command = [sys.executable, "-P", "-c", PROGRAM, os.pathsep.join(sys.path), *words, str(TRIAL_SECONDS)]
    try:
        code, last = outcome(command)
    except subprocess.TimeoutExpired:
        return f"it was not ready within {TRIAL_SECONDS:g} s"
    except OSError as error:
        raise EngineMissing(f"TensorRT cannot be tested in a separate process: {error.strerror}") from error
    if code == 0:
        return ""
    reason = last if code > 0 else f"its process ended with signal {-code}: {last}"
    if code == INCONCLUSIVE or -code in FROM_OUTSIDE:
        raise EngineMissing(reason)
    return reason


def outcome(command: Sequence[str]) -> tuple[int, str]:
    """Run a process; returns its exit code, as `subprocess` gives it, and its last line on stderr.

    Raises `OSError` if the process cannot be started, and `TimeoutExpired`. A process that still runs is killed.
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
    return code, lines[-1].strip() if lines else "no reason given"


def try_here(folder: str, cache: str, batch: str, capability: str, seconds: str) -> NoReturn:
    """The body of a trial's process: prepare an engine for a small size, and exit with a code for the result.

    What is built and compiled is kept for the real engine.
    """
    end_with_parent(float(seconds))
    from engines.runtime_tensorrt import import_driver, open_engine

    options = EngineOptions(cache=Path(cache) if cache else None, batch=int(batch), slots=1, capability=capability)
    code = INCONCLUSIVE
    try:
        engine = open_engine(Weights(Path(folder)), options).__enter__()
        code = REFUSED
        engine.prepare(*TRIAL_SIZE)
        code = 0
    except Exception as error:
        lacks_memory = code == REFUSED and isinstance(error.__cause__, import_driver().MemoryError)
        if lacks_memory or isinstance(error, EngineMissing | EngineMismatch):
            code = INCONCLUSIVE
        print("\n", " ".join(str(error).split()), file=sys.stderr, flush=True)
    os._exit(code)  # skip the libraries' exit handlers, which are not on trial


def end_with_parent(seconds: float) -> None:
    """Let the kernel kill this process when the thread that started it ends, and after `seconds` in any case."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.setitimer(signal.ITIMER_REAL, seconds)  # without a handler SIGALRM ends it wherever it hangs
