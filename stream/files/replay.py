"""Recordings as one feed that can be resumed: what is played, and a bookmark that outlives the process."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from bisect import bisect_right
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from platformdirs import user_state_path

from stream.errors import SourceUnsupported
from stream.files.parts import as_text
from stream.settings import FeedSettings
from stream.sources.recording import RecordedSegment, open_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """A place in a list of recordings."""

    file: int
    """Number of the recording."""
    unit: int
    """Number of the access unit in it, a key frame."""


@dataclass(frozen=True)
class Opened:
    """A recording that was begun. Its segment is not kept, since that holds a decoder and its pictures."""

    file: int
    first: int
    """The access unit that it was begun with."""
    keys: list[int]
    """Numbers of its key frames; the segment appends to this list."""
    units_before: int
    """Access units given out by the recordings before it."""


class Playlist:
    """Recordings, one after another: `open` is an `Opener` for the relay. Any thread may call the other methods."""

    def __init__(self, files: Sequence[Path], start: Position | None = None) -> None:
        self.files = files
        self.sizes = [file.stat().st_size for file in files]
        """In bytes."""
        self.failed: dict[Path, str] = {}
        """Recordings that could not be read to their end, with the reason."""
        self._start = start or Position(0, 0)
        self._opened: list[Opened] = []
        self._segment: RecordedSegment | None = None  # the one being played

    def open(self, feed: FeedSettings, stop: threading.Event) -> Generator[RecordedSegment]:
        """A segment for each recording. One that cannot be read is logged, and the next one follows.

        Raises `SourceUnsupported` if none can be opened.
        """
        units = 0
        for number in range(self._start.file, len(self.files)):
            try:
                for segment in open_file(self.files[number], feed, stop):
                    segment.first = self._start.unit if number == self._start.file else 0
                    self._segment = segment
                    self._opened.append(Opened(number, segment.first, segment.keys, units))
                    yield segment
                    units += units_given(segment)
            except SourceUnsupported as error:
                log.warning("%s", error)
                self.failed[self.files[number]] = str(error)
            if stop.is_set():
                return
        if not self._opened and self.failed:
            raise SourceUnsupported("; ".join(self.failed.values()), reason="no video")

    @property
    def file(self) -> int:
        """Number of the recording that is being played."""
        return self._opened[-1].file if self._opened else self._start.file

    @property
    def bytes_read(self) -> int:
        """Of all recordings, those before the start included."""
        current = self._segment
        return sum(self.sizes[: self.file]) + (current.bytes_read if current else 0)

    def position(self, finished: int) -> Position:
        """Where to resume so that nothing after the first `finished` access units given out is missed."""
        for opened in reversed(list(self._opened)):
            unit = opened.first + finished - opened.units_before
            if at := bisect_right(opened.keys, unit):
                return Position(opened.file, opened.keys[at - 1])
        return self._start


def units_given(segment: RecordedSegment) -> int:
    """Number of access units that a recording has given out so far, unreadable ones included."""
    return max(0, segment.units - segment.first) + segment.unreadable


class Mark(msgspec.Struct, frozen=True):
    """The content of a bookmark's file; name, size and modification time identify the recording."""

    feed: str
    file: str
    size: int
    mtime_ns: int
    unit: int


class Bookmark:
    """The position of a replay, in a small file in the user's state folder. No problem with it stops the replay.

    A context manager: while another process holds the same bookmark, nothing is read, written or removed.
    """

    def __init__(self, paths: Sequence[Path], feed: str) -> None:
        """`paths` are as the user named them: the same paths and feed have the same bookmark."""
        named = "\0".join([feed, *(str(path.resolve()) for path in paths)])
        self.path = user_state_path("nightbridge") / "replay" / f"{sha256(os.fsencode(named)).hexdigest()[:32]}.json"
        self._feed = feed
        self._write_failure_logged = False
        self._lock: FileIO | None = None
        self._held_elsewhere = False

    def __enter__(self) -> Self:
        name = self.path.with_suffix(".lock")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            while self._lock is None or not is_called(self._lock, name):  # its last holder may have removed it
                if self._lock is not None:
                    self._lock.close()
                self._lock = FileIO(name, "a")
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._held_elsewhere = True
            log.warning(
                "another process is replaying these recordings: starting from the beginning without saving the position"
            )
        except OSError as error:  # `write` logs it
            log.debug("%s: %s", self.path, error.strerror)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            if not self._held_elsewhere:
                with suppress(OSError):
                    self.path.with_suffix(".lock").unlink()
            self._lock.close()

    @property
    def kept(self) -> bool:
        """Whether the position is remembered: not if another process holds the bookmark."""
        return not self._held_elsewhere

    def read(self, files: Sequence[Path]) -> Position | None:
        """The position among these recordings; None if there is none that is valid."""
        if self._held_elsewhere:
            return None
        try:
            mark = msgspec.json.decode(self.path.read_bytes(), type=Mark)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("the saved position is ignored, since it cannot be read: %s: %s", self.path, error)
            return None
        numbers = [number for number, file in enumerate(files) if self._mark(file, mark.unit) == mark]
        if not numbers or mark.unit < 0:
            log.warning("the saved position is ignored, since %s has changed", mark.file)
            return None
        return Position(numbers[0], mark.unit)

    def write(self, files: Sequence[Path], position: Position) -> None:
        """Remember a position; a failure is logged once."""
        if self._held_elsewhere:
            return
        fresh = self.path.with_suffix(f".{os.getpid()}")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                fresh.write_bytes(msgspec.json.encode(self._mark(files[position.file], position.unit)))
                fresh.replace(self.path)
            finally:
                fresh.unlink(missing_ok=True)
        except OSError as error:
            if not self._write_failure_logged:
                log.warning("the position cannot be saved: %s: %s", self.path, error.strerror)
            self._write_failure_logged = True

    def remove(self) -> None:
        """Forget the position."""
        if self._held_elsewhere:
            return
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the saved position cannot be removed: %s: %s", self.path, error.strerror)

    def _mark(self, file: Path, unit: int) -> Mark:
        found = file.stat()
        return Mark(self._feed, as_text(str(file.resolve())), found.st_size, found.st_mtime_ns, unit)


def is_called(file: FileIO, name: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), name.stat())
    except FileNotFoundError:
        return False
