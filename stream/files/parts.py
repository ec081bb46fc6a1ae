"""Unfinished work on a file: its pictures in part files, and a journal of these, which all survive a kill."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import zlib
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from engines.colour import Colour, Matrix
from stream.errors import StreamError

log = logging.getLogger(__name__)

JOURNAL, GROWING = "journal", "growing.nut"

LONGEST_NAME = 255
"""Bytes of a file's name, on the usual file systems."""


class Job(msgspec.Struct, frozen=True, tag="job"):
    """What is made from what: parts of another job are of no use."""

    source: str
    """Name of the recording."""
    size: int
    """In bytes."""
    mtime_ns: int
    model: str
    encoder: str


class Layout(msgspec.Struct, frozen=True, tag="layout"):
    """What all enhanced pictures have in common: width, height, colours and orientation."""

    width: int
    height: int
    matrix: Matrix
    full_range: bool
    display_matrix: tuple[int, ...] = ()
    """How players turn and mirror the pictures, as FFmpeg's nine numbers; empty: not at all."""

    @property
    def colour(self) -> Colour:
        """What the code values mean."""
        return Colour(self.matrix, self.full_range)


class Part(msgspec.Struct, frozen=True, tag="part"):
    """One part file, and all that is needed to resume after it. Times are in ticks of the recording's video."""

    pictures: int
    size: int
    """In bytes."""
    unit: int
    """Number of the recording's access unit that the last picture came from."""
    key: int
    """Number of the access unit where decoding must begin to get all pictures after the last one."""
    placed: int
    """When the last picture should be shown."""
    last: int
    """When it is shown: later, if two pictures had the same time."""
    jump: int
    """What is added to the recording's times at the last picture, to make up for settings of the recorder's clock."""
    jumps: list[tuple[int, int]]
    """The jumps in this part: number of the first access unit, and the `jump` from there on."""


Entry = Job | Layout | Part


class Parts:
    """The parts of one file, in a folder of their own. A context manager that only one process can enter at a time.

    What an earlier process has left of the same job is taken over; work of another job is discarded, with a warning.
    Raises `StreamError` if another process is at work, and `OSError`.
    """

    def __init__(self, folder: Path, job: Job) -> None:
        self.folder = folder
        self.layout: Layout | None = None
        self.done: list[Part] = []
        self.pictures = 0
        """In all parts."""
        self._job = job
        self._journal: FileIO | None = None
        self._made: list[Path] = []  # parent folders
        self._unwanted = False

    def __enter__(self) -> Self:
        new = not self.folder.exists()
        self._made = [parent for parent in self.folder.parents if not parent.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        journal = FileIO(self.folder / JOURNAL, "a+")
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._journal = journal
            self._read()
        except BlockingIOError:
            journal.close()
            raise StreamError(f"{self.folder}: another process is working in this folder") from None
        except BaseException:
            journal.close()
            if new:
                shutil.rmtree(self.folder)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._unwanted:
            shutil.rmtree(self.folder, ignore_errors=True)  # before the lock is released
        self._open_journal().close()
        if self._unwanted and self.folder.exists():  # on NFS, open files keep a folder
            try:
                shutil.rmtree(self.folder)
            except OSError as failure:  # no reason to fail: the file itself may be complete
                log.warning("%s cannot be removed: %s", self.folder, failure.strerror)
        if self._unwanted:
            with suppress(OSError):  # ends at the first one that is not empty
                for parent in self._made:
                    parent.rmdir()

    @property
    def growing(self) -> Path:
        """Where the next part is written, until `add` takes it in."""
        return self.folder / GROWING

    def paths(self) -> list[Path]:
        """Paths of all parts, in order."""
        return [self._path(number) for number in range(len(self.done))]

    def begin(self, layout: Layout) -> None:
        """Set what all parts have in common."""
        self.layout = layout
        self._note(layout)

    def add(self, part: Part) -> None:
        """Take `growing` in as the next part; it is on the disk when this returns, and survives a kill."""
        with self.growing.open("rb") as file:
            os.fsync(file.fileno())
        self.growing.replace(self._path(len(self.done)))
        self._count(part)
        self._note(part)

    def clear(self) -> None:
        """Forget all parts and begin anew."""
        self.layout, self.done, self.pictures = None, [], 0
        self._open_journal().truncate(0)
        self._note(self._job)

    def remove(self) -> None:
        """Have the folder removed at the end of the `with` block, with the empty parents that were made for it."""
        self._unwanted = True

    def _count(self, part: Part) -> None:
        self.done.append(part)
        self.pictures += part.pictures

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.nut"

    def _open_journal(self) -> FileIO:
        if self._journal is None:
            raise ValueError("parts are used outside of their `with` block")
        return self._journal

    def _note(self, entry: Entry) -> None:
        journal = self._open_journal()
        journal.write(msgspec.json.encode(entry) + b"\n")
        os.fsync(journal.fileno())

    def _read(self) -> None:
        """Take over what the journal says, up to the first entry that is not valid."""
        journal = self._open_journal()
        journal.seek(0)
        lines = journal.read().splitlines(keepends=True)
        good = sum(map(len, lines[: self._take_over(lines)]))
        if not good:
            if lines:
                log.warning(
                    "%s: the unfinished work is for another recording, weights or encoder settings: starting over",
                    self.folder,
                )
            self.clear()
        else:
            journal.truncate(good)

    def _take_over(self, lines: list[bytes]) -> int:
        """Take over the valid entries; returns the number of their lines."""
        for number, line in enumerate(lines):
            entry = decoded(line)
            match entry:
                case Job() if number == 0 and entry == self._job:
                    continue
                case Layout() if number == 1:
                    self.layout = entry
                case Part() if number >= 2 and self._is_there(entry):
                    self._count(entry)
                case _:
                    return number
        return len(lines)

    def _is_there(self, part: Part) -> bool:
        path = self._path(len(self.done))
        return path.is_file() and path.stat().st_size == part.size


def parts_folder(target: Path) -> Path:
    """The folder with the parts of a file: `.part-NAME` beside it, with a checksum for a name that is too long."""
    name = f".part-{target.name}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f".part-{zlib.crc32(os.fsencode(target.name)):08x}"
    return target.with_name(name)


def as_text(name: str) -> str:
    """The name of a file as text that can be encoded: bytes that are not UTF-8 are escaped."""
    return os.fsencode(name).decode(errors="backslashreplace")


def decoded(line: bytes) -> Entry | None:
    """The entry in a line; None if it is torn or damaged."""
    try:
        return msgspec.json.decode(line, type=Entry) if line.endswith(b"\n") else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
