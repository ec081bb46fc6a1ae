"""Progress of long work, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

LINE_SECONDS = 10.0
"""Between two lines."""


class Meter:
    """Shows how many bytes are done, and how many pictures were made of them. A context manager."""

    def __init__(self, total: int) -> None:
        """`total` is in bytes."""
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[pictures]} pictures"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=total, pictures=0)
        self._total = total
        self._console = console
        self._line_due = time.monotonic() + LINE_SECONDS

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, doing: str, done: int, pictures: int) -> None:
        """Show that `done` bytes are done, `doing` is under way, and `pictures` were made."""
        self._bar.update(self._task, description=doing, completed=done, pictures=pictures)
        if self._bar.disable and time.monotonic() >= self._line_due:
            self._line_due = time.monotonic() + LINE_SECONDS
            share = 100 * done / max(1, self._total)
            self._console.print(
                f"{share:.0f} %, {pictures} pictures; {doing}", markup=False, highlight=False, soft_wrap=True
            )
