"""The half of `replay` that writes files."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from tools.common.progress import Meter
from tools.common.signals import stop_on_signals
from tools.enhance import require_container, said_of_lost

if TYPE_CHECKING:
    from engines.door import Door
    from stream.files.convert import Progress
    from stream.settings import Settings

log = logging.getLogger("nightbridge")

KEPT = {".mkv": ".mkv", ".mov": ".mov", ".mp4": ".mp4", ".m4v": ".mp4", ".ts": ".ts", ".m2ts": ".m2ts", ".mts": ".m2ts"}
"""Suffix of the file by that of the recording; others become Matroska, which holds nearly everything."""

GRAINS = 1, 100, 10_000_000, 1_000_000_000, 2_000_000_000
"""Nanoseconds: file systems round file times down to these (NTFS 100 ns, exFAT 10 ms, HFS+ 1 s, FAT 2 s)."""


@dataclass(frozen=True)
class Job:
    """A recording and the file that it becomes."""

    source: Path
    target: Path
    size: int
    """Of the recording, in bytes."""

    @property
    def finished(self) -> bool:
        """Whether the file exists, has the recording's modification time, and has not been begun anew."""
        from stream.files.parts import parts_folder

        if not self.target.is_file() or parts_folder(self.target).exists():
            return False
        recorded_ns, made_ns = (path.stat().st_mtime_ns for path in (self.source, self.target))
        return made_ns in {recorded_ns - recorded_ns % grain for grain in GRAINS}


@dataclass(frozen=True)
class Outcome:
    """What became of a recording."""

    source: str
    target: str
    state: Literal["done", "there already", "stopped", "failed"]
    pictures: int = 0
    resumed: int = 0
    """Pictures that an earlier call had made."""
    lost: int = 0
    """Access units that gave no picture."""
    reason: str | None = None


def file_jobs(files: Sequence[Path], to: Path) -> list[Job]:
    """Each recording with its file: in the folder `to`, or `to` itself."""
    from stream.files.join import ENDINGS
    from stream.sources.recording import SUFFIXES

    ending = to.suffix.lower()
    if (ending in SUFFIXES or ending[1:] in ENDINGS) and not to.is_dir():
        if len(files) > 1:
            raise typer.BadParameter(f"{to} is one file, and there are {len(files)} recordings; --to must be a folder")
        require_container(to)
        targets = [to]
    elif to.exists() and not to.is_dir():
        raise typer.BadParameter(
            f"{to} is not a folder; --to must be a folder, or a file name with the ending of a video"
        )
    else:
        targets = [to / f"{file.stem}{KEPT.get(file.suffix.lower(), '.mkv')}" for file in files]
    sources: dict[Path, Path] = {}
    for file, target in zip(files, targets, strict=True):
        if target in sources:
            raise typer.BadParameter(f"{sources[target]} and {file} would both become {target}")
        if target.exists() and any(target.samefile(other) for other in files):
            raise typer.BadParameter(
                f"{target} is one of the recordings and would be overwritten; choose another place for --to"
            )
        sources[target] = file
    return [Job(file, target, file.stat().st_size) for target, file in sources.items()]


def to_files(settings: Settings, jobs: Sequence[Job], from_start: bool) -> dict[str, object]:
    """Write all files and return the summary; one that fails leaves the others alone."""
    from engines.runtime import EngineOptions, open_engine

    stop = threading.Event()
    outcomes: list[Outcome] = []
    engine = settings.engine
    options = EngineOptions(precision=engine.precision, threads=engine.threads, cache=engine.cache, batch=1)
    with (
        stop_on_signals(stop.set),
        open_engine(engine.runtime, engine.weights, options) as opened,
        Meter(sum(job.size for job in jobs)) as meter,
    ):
        work = Work(opened, stop, meter, from_start)
        for job in jobs:
            if stop.is_set():
                break
            outcomes.append(work.do(job))
    return summary(outcomes, len(jobs))


class Work:
    """Converts one recording after another."""

    def __init__(self, engine: Door, stop: threading.Event, meter: Meter, from_start: bool) -> None:
        self._engine = engine
        self._stop = stop
        self._meter = meter
        self._from_start = from_start
        self._bytes = self._pictures = 0

    def do(self, job: Job) -> Outcome:
        """Write one file, unless it is there."""
        from engines.errors import EngineError
        from stream.errors import StreamError

        source, target = str(job.source), str(job.target)
        self._meter.update(job.source.name, self._bytes, self._pictures)
        try:
            if job.finished and not self._from_start:
                log.info("%s exists already; use --from-start to make it again", job.target)
                return Outcome(source, target, "there already")
            outcome = self._make(job)
        except (StreamError, EngineError, OSError) as error:
            log.error("%s", error)
            outcome = Outcome(source, target, "failed", reason=str(error))
        finally:
            self._bytes += job.size
        self._pictures += outcome.pictures
        return outcome

    def _make(self, job: Job) -> Outcome:
        from stream.files.convert import convert

        done = convert(
            self._engine,
            job.source,
            job.target,
            self._reporter(job),
            stop=self._stop,
            keep_parts=True,
            from_start=self._from_start,
            dated=True,
        )
        state: Literal["done", "stopped"] = "done" if done.complete else "stopped"
        return Outcome(str(job.source), str(job.target), state, done.pictures, done.resumed, done.lost)

    def _reporter(self, job: Job) -> Callable[[Progress], None]:
        before, pictures = self._bytes, self._pictures

        def report(now: Progress) -> None:
            self._meter.update(job.source.name, before + now.bytes_read, pictures + now.pictures)

        return report


def summary(outcomes: Sequence[Outcome], jobs: int) -> dict[str, object]:
    """Print what became of all recordings, and return it as values for programs."""
    states = [outcome.state for outcome in outcomes]
    pictures = sum(outcome.pictures for outcome in outcomes)
    complete = len(outcomes) == jobs and not {"stopped", "failed"} & set(states)
    counts = [
        f"{states.count(state)} {state}" for state in ("done", "there already", "stopped", "failed") if state in states
    ]
    lost = said_of_lost(sum(outcome.lost for outcome in outcomes))
    print(f"{pictures} pictures; of {jobs} recordings {', '.join(counts) or 'none started'}{lost}")
    if "stopped" in states or len(outcomes) < jobs:
        print("run the same command again to resume")
    return {
        "files": [asdict(outcome) for outcome in outcomes],
        "recordings": jobs,
        "pictures": pictures,
        "complete": complete,
    }
