"""The figures of `nightbridge bench --gpu`: kept in a file while it runs, and printed at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tools.common.report import plain, print_values, write_json

NO_TIME = "no time was left"
WIDTH = 150
"""Least width of the printed tables, in columns: a narrower terminal wraps their lines, and loses nothing."""

TIMES_COLUMNS = (
    *("door_ms", "latency_ms", "network_ms", "upload_ms", "download_ms", "fps", "door_ratio"),
    *("copies_hidden", "tflops", "matrix_share"),
)
RELAY_COLUMNS = (
    *("fps", "age_p50_ms", "age_p95_ms", "age_p99_ms", "dropped", "lost"),
    *("cores", "cpu_ms", "cpu_beside_codecs_ms", "gpu_memory_mb"),
)

Measurement = Callable[[], Iterator[Mapping[str, object]]]

log = logging.getLogger(__name__)


@dataclass
class Findings:
    """Figures so far, written to the file after each step, so that a killed run leaves what it measured."""

    path: Path | None
    seconds: float
    """How long everything may take."""
    figures: dict[str, object] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)
    _began: float = field(default_factory=lambda: time.monotonic())

    def time_left(self, share: float = 1.0) -> float:
        """Seconds until this share of the total time is over; negative afterwards."""
        return self._began + share * self.seconds - time.monotonic()

    def add(self, figures: Mapping[str, object]) -> None:
        """Add figures, and write the file."""
        self.figures |= figures
        write_json(self.path, self.figures)

    def measure(self, name: str, part: Measurement) -> None:
        """Keep what a part finds. If it fails, `NAME_failed` says why, and its earlier figures stay.

        The times of a part that is measured in several calls add up.
        """
        began = time.monotonic()
        try:
            for figures in part():
                self.add(figures)
        except Exception as error:  # whatever it is: the other parts go on
            log.debug("%s", name, exc_info=error)
            self.add({f"{name}_failed": f"{type(error).__name__}: {error}"})
        took = time.monotonic() - began
        self._seconds[name] = self._seconds.get(name, 0.0) + took
        self.add({f"{name}_seconds": round(self._seconds[name], 1)})
        log.info("%s took %.1f s, %.0f s are left", name, took, self.time_left())


def print_findings(console: Console, figures: Mapping[str, object]) -> None:
    """Print batches and relays as tables, all else as lines."""
    console.width = max(console.width, WIDTH)
    tables = [
        as_table("batch", "_door_ms", TIMES_COLUMNS, figures),
        as_table("relay", "_cpu_ms", RELAY_COLUMNS, figures),
    ]
    shown = {key for _, keys in tables for key in keys}
    print_values(console, {key: value for key, value in figures.items() if key not in shown})
    for table, keys in tables:
        if keys:
            console.print(table)


def as_table(title: str, mark: str, columns: tuple[str, ...], figures: Mapping[str, object]) -> tuple[Table, list[str]]:
    """A table with a row for each figure whose name ends with `mark`, and the names of all figures in it."""
    table = Table(title)
    for column in columns:
        table.add_column(column, justify="right")
    keys: list[str] = []
    for row in [key.removesuffix(mark) for key in figures if key.endswith(mark)]:
        names = [f"{row}_{column}" for column in columns]
        keys += [name for name in names if name in figures]
        table.add_row(row, *(as_cell(plain(figures.get(name))) for name in names))
    return table, keys


def as_cell(value: object) -> str:
    """A figure with three significant digits, or whole from 100 on; - if it is missing."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "-" if value is None else str(value)
