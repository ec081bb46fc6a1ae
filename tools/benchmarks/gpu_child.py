"""A part of `nightbridge bench --gpu` in a process of its own: a CUDA fault, or a hang, costs only that part."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import NamedTuple, Self

from tools.benchmarks.gpu_findings import NO_TIME
from tools.common.report import plain
from tools.demo_parts import ROOT, without_overrides

COMMAND: tuple[str, ...] = (sys.executable, "-m", "tools.benchmarks.gpu_child")
"""Starts a part; `main` reads the arguments that follow."""
LEAST_SECONDS = 8.0
"""With less time left no part is started."""
LOOK_SECONDS = 0.1
"""Between two checks for new figures of a part."""
KILL_SECONDS = 3.0
"""How long a killed process may take to end: one that is stuck in the driver is left behind."""
OWN_SHARE = 0.95
"""Share of a part's time after which its process ends by itself, since only it can tell where it was."""
SPARE_SHARE, SPARE_MOST = 0.2, 20.0
"""Share of a part's time, and most seconds, at its end in which nothing more is started."""
HUNG = "(most recent call first):\n"
"""After this, `faulthandler` tells where a thread is; the main thread comes last."""

log = logging.getLogger(__name__)


class Child(NamedTuple):
    """What is measured in one process."""

    time_key: str
    """Its time is added to `TIME_KEY_seconds`."""
    name: str
    """`NAME_failed` tells why it ended early, `NAME_left_out` that it was not started."""
    function: str
    """Its name in `tools.benchmarks.gpu_parts.PARTS`."""
    arguments: tuple[object, ...] = ()
    """Values that JSON can hold; `time_left` is passed after them."""


class OwnProcess:
    """Runs a program; at the end of the `with` block it is killed, with its process group."""

    def __init__(self, command: Sequence[str], said: Path) -> None:
        """Its output goes into the file `said`."""
        self._command, self._said = command, said

    def __enter__(self) -> Self:
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                self._command,
                cwd=ROOT,
                env=without_overrides(),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self.wait(KILL_SECONDS)

    def wait(self, seconds: float) -> int | None:
        """Its exit code (negative: the signal that ended it), or None if it still runs after `seconds`."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(max(0.0, seconds))
        return None

    @property
    def said(self) -> str:
        """Its output so far."""
        return self._said.read_text(encoding="utf-8", errors="replace")


def in_child(child: Child, seconds: float) -> Iterator[Mapping[str, object]]:
    """Run a part, and yield what it finds when it finds it; after `seconds` its process is killed."""
    if seconds < LEAST_SECONDS:
        yield {f"{child.name}_left_out": NO_TIME}
        return
    end = time.monotonic() + seconds
    with TemporaryDirectory(prefix="nightbridge-bench-") as folder:
        found = Path(folder) / "found"
        found.touch()
        words = (child.name, child.function, json.dumps(child.arguments), str(end), str(found))
        taken, code = 0, None
        with OwnProcess([*COMMAND, *words], Path(folder) / "said") as process:
            while code is None and time.monotonic() < end:
                code = process.wait(min(LOOK_SECONDS, end - time.monotonic()))
                for figures in lines_of(found)[taken:]:
                    taken += 1
                    yield figures
        log.debug("%s said: %s", child.name, process.said)
        if reason := why_early(code, process.said, seconds + time.monotonic() - end):
            yield {f"{child.name}_failed": reason}


def lines_of(found: Path) -> list[dict[str, object]]:
    """What a part has written, an object per line; an incomplete last line is left out."""
    *lines, _ = found.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]


def why_early(code: int | None, said: str, seconds: float) -> str | None:
    """Why a part's process ended after `seconds`, for people; None if it was done. Code None: it was killed."""
    if code == 0:
        return None
    if code is None:
        return f"it was killed after {seconds:.0f} s"
    at = innermost_line(said)
    if code == 1 and at:
        return f"it ended after {seconds:.0f} s, still in {at}"
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"it ended with {how}{f' in {at}' if at else f': {last_line(said)}'}"


def innermost_line(said: str) -> str:
    """Where `faulthandler` found a process: its innermost line of Python; empty if `said` does not tell."""
    _, told, stack = said.rpartition(HUNG)
    return stack.strip().partition("\n")[0] if told else ""


def last_line(said: str) -> str:
    """Of a process's output: the end of an error message."""
    return (said.strip().splitlines() or ["no reason given"])[-1]


def main() -> None:
    """Measure one part in this process, see `in_child`, and write what it finds line by line."""
    name, function, arguments, end, path = sys.argv[1:]
    parent, seconds = os.getppid(), float(end) - time.monotonic()  # this clock is the same in all processes
    begin_until = float(end) - min(SPARE_SHARE * seconds, SPARE_MOST)
    faulthandler.enable(all_threads=False)
    faulthandler.dump_traceback_later(OWN_SHARE * seconds, exit=True)
    logging.basicConfig(level=logging.WARNING)
    with Path(path).open("a", encoding="utf-8") as found:

        def time_left() -> float:
            return begin_until - time.monotonic() if os.getppid() == parent else 0.0  # nobody would read what it finds

        def write_figures(figures: Mapping[str, object]) -> None:
            found.write(json.dumps(plain(figures), allow_nan=False) + "\n")
            found.flush()

        try:
            from tools.benchmarks.gpu_parts import PARTS

            for figures in PARTS[function](*json.loads(arguments), time_left):
                write_figures(figures)
        except Exception as error:  # whatever it is: the report names it
            traceback.print_exc()
            write_figures({f"{name}_failed": f"{type(error).__name__}: {error}"})
    os._exit(0)  # how the libraries shut down is not of interest


if __name__ == "__main__":
    main()
