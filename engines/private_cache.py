"""A cache of files that only this user can have written, each under a key for what it was made from.

Its files are executed later, so one is used only if it is complete, has the right key, and nobody else can have written
it; otherwise it is made again. A file is a line that names the format, a line of JSON (the key, and the SHA-256 of the
rest), and the bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engines.errors import EngineError

FORMAT = b"nightbridge cache 1"
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
ABANDONED_SECONDS = 3600
"""Age above which a half-written file was left by a process that was killed."""
LARGEST_BYTES = 4 * 1024**3
"""Most bytes in a folder: when more is added, the least recently used files are removed. An update of a driver or of
weights makes new files, and the old ones are never used again."""

log = logging.getLogger(__name__)


class Unfit(Exception):
    """A file that must not be used; the message says why."""


class Header(msgspec.Struct, forbid_unknown_fields=True):
    """What a file says about its bytes."""

    key: dict[str, object]
    sha256: str


@dataclass(frozen=True)
class CachedBytes:
    """Bytes from the cache."""

    data: bytes
    path: Path | None
    """None if they could not be stored."""
    made: bool
    """Whether they were made just now."""


@dataclass(frozen=True)
class Entry:
    """A file of the cache."""

    path: Path
    bytes: int
    made: float
    """Seconds since 1970."""
    key: dict[str, object] | None
    """None if the file is unfit for use."""
    unfit: str
    """Why the file is unfit; empty if it is fit."""


class PrivateCache:
    """A folder of cached files. Any number of processes and threads may use it at once."""

    def __init__(self, folder: Path, largest: int | None = None) -> None:
        """The folder is created with its first file, and must belong to this user. If it cannot be created, nothing is
        kept, and the log says so once. `largest` replaces `LARGEST_BYTES`."""
        self.folder = folder
        self._largest = largest
        self._is_reported = False

    def path(self, kind: str, key: msgspec.Struct) -> Path:
        """The path of a key's file; `kind` is the ending of its name."""
        digest = hashlib.sha256(b"\n".join((FORMAT, kind.encode(), msgspec.json.encode(key))))
        return self.folder / f"{digest.hexdigest()}.{kind}"

    def get(self, kind: str, key: msgspec.Struct, make: Callable[[], bytes]) -> CachedBytes:
        """The bytes of a key, made by `make` if there are none: by one process, while the others wait.

        Raises `EngineError` if the folder belongs to another user, and what `make` raises.
        """
        if not self._own_folder():
            return CachedBytes(make(), None, made=True)
        path = self.path(kind, key)
        with suppress(Unfit, FileNotFoundError):
            return CachedBytes(_verified(path, key), path, made=False)
        with self._making():
            data = self._load(path, key)  # another process may have made them meanwhile
            if data is not None:
                return CachedBytes(data, path, made=False)
            data = make()
            return CachedBytes(data, path if self._store(path, key, data) else None, made=True)

    def load(self, kind: str, key: msgspec.Struct) -> bytes | None:
        """The bytes of a key, or None. Raises `EngineError` like `get`."""
        return self._load(self.path(kind, key), key) if self._own_folder() else None

    def store(self, kind: str, key: msgspec.Struct, data: bytes) -> bool:
        """Store bytes, replacing any that are there; returns False, and logs why, if that fails."""
        return self._own_folder() and self._store(self.path(kind, key), key, data)

    def entries(self, kind: str) -> list[Entry]:
        """All files of a kind, newest first."""
        if not self.folder.exists() or not self._own_folder():
            return []
        entries = []
        for path in self.folder.glob(f"*.{kind}"):
            with suppress(FileNotFoundError):
                entries.append(_entry(path))
        return sorted(entries, key=lambda entry: entry.made, reverse=True)

    def _own_folder(self) -> bool:
        """Make sure that the folder exists and others cannot write to it. False if that fails; raises `EngineError` if
        it belongs to another user."""
        try:
            self.folder.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
            status = self.folder.stat()
            if status.st_uid != os.geteuid():
                raise EngineError(
                    f"{self.folder} belongs to another user; "
                    "cached code is executed, so choose a cache folder of your own"
                )
            if status.st_mode & OTHERS_WRITE:
                self.folder.chmod(stat.S_IRWXU)
                log.warning("%s was writable by other users; permissions corrected", self.folder)
        except OSError as error:
            if not self._is_reported:
                log.warning("cache folder %s cannot be used; nothing is cached: %s", self.folder, error.strerror)
            self._is_reported = True
            return False
        return True

    @contextmanager
    def _making(self) -> Iterator[None]:
        """Let one process build at a time, since builds that time kernels would disturb each other. The lock is freed
        when its process ends."""
        lock = None
        with suppress(OSError):  # the folder cannot be written to: `_store` logs that
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if lock is None:
            yield
            return
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("%s: waiting for another build, of this process or another one, to finish", self.folder)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _load(self, path: Path, key: msgspec.Struct) -> bytes | None:
        try:
            return _verified(path, key)
        except FileNotFoundError:
            return None
        except Unfit as reason:
            log.warning("ignoring cache file %s, which %s; building it again", path, reason)
            return None

    def _store(self, path: Path, key: msgspec.Struct, data: bytes) -> bool:
        header = Header(msgspec.to_builtins(key), hashlib.sha256(data).hexdigest())
        content = b"\n".join((FORMAT, msgspec.json.encode(header), data))
        try:
            self._remove_abandoned()
            _replace(path, content)
        except OSError as error:
            log.warning("cache file %s cannot be stored: %s", path, error.strerror)
            return False
        others = [other for other in self.folder.glob("[!.]*.*") if other != path]
        make_room(others, (LARGEST_BYTES if self._largest is None else self._largest) - len(content))
        return True

    def _remove_abandoned(self) -> None:
        for part in self.folder.glob(".*.part"):
            with suppress(FileNotFoundError):
                if time.time() - part.stat().st_mtime > ABANDONED_SECONDS:
                    part.unlink()


def make_room(paths: Iterable[Path], largest: int) -> None:
    """Remove files, least recently used first, until the rest has at most `largest` bytes together.

    Any number of processes may do so at once; a reader of a removed file can read on. A file's last use is its access
    time, to the day or better, or its time of writing on a file system mounted without access times.
    """
    files = []
    for path in paths:
        with suppress(FileNotFoundError):
            status = path.lstat()
            files.append((status.st_atime_ns, status.st_size, path))
    held = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if held <= largest:
            return
        with suppress(OSError):  # it is a folder, or another process removed it first
            path.unlink()
            log.debug("removed %s, the least recently used cache file", path)
            held -= size


def _replace(path: Path, content: bytes) -> None:
    """Replace a file atomically, even through a crash; only its owner can read it."""
    handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)  # 0600
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _verified(path: Path, key: msgspec.Struct) -> bytes:
    """The bytes of a file after all checks, its key included; raises `Unfit` or `FileNotFoundError`."""
    header, data = _read(path)
    if header.key != msgspec.to_builtins(key):
        raise Unfit("holds something other than its name says")
    _mark_used(path)
    return data


def _mark_used(path: Path) -> None:
    """Set the access time to now; most file systems are mounted so that a read does not."""
    with suppress(OSError):  # such as on a read-only file system
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns), follow_symlinks=False)


def _read(path: Path) -> tuple[Header, bytes]:
    """Header and bytes of a file, with owner and digest checked; raises `Unfit` or `FileNotFoundError`."""
    content = _read_private(path)
    first, _, rest = content.partition(b"\n")
    head, _, data = rest.partition(b"\n")
    if first != FORMAT:
        raise Unfit("has another format")
    try:
        header = msgspec.json.decode(head, type=Header)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Unfit("is damaged") from None
    if hashlib.sha256(data).hexdigest() != header.sha256:
        raise Unfit("is damaged")
    return header, data


def _read_private(path: Path) -> bytes:
    """The content of a file that only this user can have written; checks the open file that it reads from."""
    try:
        with open(path, "rb", opener=_open_no_link) as file:
            _check_private(os.fstat(file.fileno()))
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unfit(f"cannot be read ({error.strerror})") from error


def _check_private(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Unfit("is not a regular file")
    if status.st_uid != os.geteuid():
        raise Unfit("belongs to another user")
    if status.st_mode & OTHERS_WRITE:
        raise Unfit("is writable by other users")


def _open_no_link(path: str, flags: int) -> int:
    """Open a file without following a link or waiting for the other end of a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _entry(path: Path) -> Entry:
    status = path.lstat()
    try:
        header, data = _read(path)
    except Unfit as reason:
        return Entry(path, status.st_size, status.st_mtime, None, str(reason))
    return Entry(path, len(data), status.st_mtime, header.key, "")
