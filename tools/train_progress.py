"""Progress of a training run: a bar on a terminal, lines elsewhere, and a TensorBoard log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

SHOW_SECONDS = 0.5
LINE_SECONDS = 60.0
LOG_EVERY = 50
"""Steps between two points of the log."""

Log = Callable[[str, float, int], None]
"""(name, value, step) into a log."""


class TrainProgress:
    """Shows steps, parts of the loss, held-out score and speed. A context manager."""

    def __init__(self, console: Console, batch: int, log: Log | None = None) -> None:
        """`batch` is in pictures; `log` receives every figure, too."""
        self.steps = 0
        """Taken so far by this process."""
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("training", total=1.0)
        self._console, self._batch, self._log = console, batch, log
        self._score = ""
        self._step_ms = 0.0
        self._mark: tuple[int, float] | None = None
        self._line_due = time.monotonic() + LINE_SECONDS

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def report(self, step: int, share: float, parts: Mapping[str, float]) -> None:
        """To be called after every step; see `engines.training.train.Report`."""
        now = time.monotonic()
        self.steps += 1
        if self._mark is None:
            self._mark = (step, now)
        first, since = self._mark
        if step > first and now - since >= SHOW_SECONDS:
            self._step_ms = 1e3 * (now - since) / (step - first)
            self._mark = (step, now)
            self._show(step, share, parts, now)
        if self._log is not None and step % LOG_EVERY == 0:
            for name, value in self._figures(parts).items():
                self._log(name, value, step)

    def report_score(self, step: int, score: float) -> None:
        """To be called after every score on held-out pairs, in dB; its time does not count as step time."""
        self._score = f", {score:.2f} dB held out at step {step}"
        self._console.print(f"step {step}: raw PSNR {score:.3f} dB on held-out scenes", highlight=False)
        if self._log is not None:
            self._log("held_out_psnr_db", score, step)
        self._mark = None

    def _figures(self, parts: Mapping[str, float]) -> dict[str, float]:
        speed = {"step_ms": self._step_ms, "pictures_per_second": self.pictures_per_second}
        return {f"loss/{name}": value for name, value in parts.items()} | speed

    @property
    def step_ms(self) -> float:
        """Wall time of the latest steps; 0 before it is known."""
        return self._step_ms

    @property
    def pictures_per_second(self) -> float:
        """At the speed of the latest steps; 0 before it is known."""
        return 1e3 * self._batch / self._step_ms if self._step_ms else 0.0

    def _show(self, step: int, share: float, parts: Mapping[str, float], now: float) -> None:
        values = " ".join(f"{name} {value:.4f}" for name, value in parts.items())
        speed = f"{self._step_ms:.1f} ms, {self.pictures_per_second:.1f} pictures/s"
        text = f"step {step}: {values}; {speed}{self._score}"
        self._bar.update(self._task, completed=share, description=text)
        if self._bar.disable and now >= self._line_due:
            self._line_due = now + LINE_SECONDS
            self._console.print(f"{100 * share:.0f} %, {text}", markup=False, highlight=False, soft_wrap=True)


def open_log(folder: Path, console: Console) -> tuple[Log, Callable[[], None]] | None:
    """A TensorBoard log in this folder, and a call that closes it; without TensorBoard, prints so and returns None."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        console.print("no TensorBoard log: the package `tensorboard` is not installed", highlight=False)
        return None
    writer = SummaryWriter(str(folder))

    def log(name: str, value: float, step: int) -> None:
        writer.add_scalar(name, value, step)

    return log, writer.close
