"""What is kept is executed later, so whatever could have been touched by others is made again."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from engines import private_cache
from engines.errors import EngineError
from engines.private_cache import ABANDONED_SECONDS, PrivateCache
from tests.command import ROOT
from tests.waiting import DEADLINE

GENUINE, FAKE = b"made here\n" * 1000, b"somebody else's\n" * 1000


class Key(msgspec.Struct, frozen=True):
    name: str
    size: int = 1


KEY = Key("night")


@pytest.fixture
def cache(tmp_path: Path) -> PrivateCache:
    return PrivateCache(tmp_path / "private")


def keep(cache: PrivateCache, data: bytes, key: Key = KEY) -> Path:
    cache.store("plan", key, data)
    return cache.path("plan", key)


def change_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def cut_to_the_header(path: Path) -> None:
    os.truncate(path, 30)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def break_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'{"key"', b'{"\xff\xff', 1))


def name_another_format(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"cache 1", b"cache 2", 1))


def put_the_file_of_another_key(path: Path) -> None:
    keep(PrivateCache(path.parent), FAKE, Key("day")).replace(path)


def let_the_group_write(path: Path) -> None:
    path.chmod(0o620)


def let_all_write(path: Path) -> None:
    path.chmod(0o602)


def give_away(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 12345, -1)


def put_a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def put_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "spoil",
    [
        change_last_byte,
        cut_short,
        cut_to_the_header,
        empty,
        break_the_header,
        name_another_format,
        put_the_file_of_another_key,
        let_the_group_write,
        let_all_write,
        give_away,
        put_a_link,
        put_a_pipe,
    ],
)
def test_a_file_that_is_damaged_foreign_or_open_to_others_is_never_used(
    cache: PrivateCache, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    path = keep(cache, FAKE)
    spoil(path)
    caplog.clear()
    assert cache.load("plan", KEY) is None
    caplog.clear()

    first = cache.get("plan", KEY, lambda: GENUINE)
    assert (first.data, first.path, first.made) == (GENUINE, path, True)
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert str(path) in line.getMessage()

    again = cache.get("plan", KEY, lambda: pytest.fail("what is kept is not made again"))
    assert (again.data, again.made) == (GENUINE, False)


def test_a_folder_in_the_place_of_a_file_is_no_file_and_costs_only_the_keeping(
    cache: PrivateCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.path("plan", KEY).mkdir(parents=True, mode=0o700)
    cache.folder.chmod(0o700)
    kept = cache.get("plan", KEY, lambda: GENUINE)
    assert (kept.data, kept.path) == (GENUINE, None)
    assert "cannot be stored: Is a directory" in caplog.text
    assert [path.name for path in cache.folder.glob(".*.part")] == []


def test_what_is_kept_comes_back_byte_for_byte_whatever_it_holds(cache: PrivateCache) -> None:
    for data in (b"", b"\n", b"\n\nnightbridge cache 1\n", bytes(range(256))):
        assert cache.get("plan", Key("all", len(data)), lambda data=data: data).made
        assert cache.load("plan", Key("all", len(data))) == data


def test_kinds_do_not_mix(cache: PrivateCache) -> None:
    cache.store("plan", KEY, GENUINE)
    assert cache.load("runtime", KEY) is None


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_can_look_into_the_folder_or_its_files(
    cache: PrivateCache, open_umask: None, caplog: pytest.LogCaptureFixture
) -> None:
    cache.get("plan", KEY, lambda: GENUINE)
    assert caplog.messages == [], "it was never open"
    assert mode(cache.folder) == 0o700
    assert {path.suffix: mode(path) for path in cache.folder.iterdir()} == {".plan": 0o600, "": 0o600}


@pytest.mark.parametrize("open_to", [0o770, 0o707])
def test_a_folder_that_others_may_write_to_is_closed_to_them(
    cache: PrivateCache, caplog: pytest.LogCaptureFixture, open_to: int
) -> None:
    cache.folder.mkdir()
    cache.folder.chmod(open_to)
    assert cache.load("plan", KEY) is None
    assert mode(cache.folder) == 0o700
    assert "was writable by other users; permissions corrected" in caplog.text


def test_a_folder_of_another_user_is_refused(cache: PrivateCache, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(cache, FAKE)
    monkeypatch.setattr(os, "geteuid", lambda: cache.folder.stat().st_uid + 1)
    for call in (
        lambda: cache.load("plan", KEY),
        lambda: cache.get("plan", KEY, lambda: GENUINE),
        lambda: cache.store("plan", KEY, GENUINE),
        lambda: cache.entries("plan"),
    ):
        with pytest.raises(EngineError, match=f"{cache.folder} belongs to another user"):
            call()


def test_a_full_disk_costs_the_keeping_not_the_bytes(
    cache: PrivateCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    kept = cache.get("plan", KEY, lambda: GENUINE)
    assert (kept.data, kept.path, kept.made) == (GENUINE, None, True)
    assert "cannot be stored: No space left on device" in caplog.text
    assert [path.name for path in cache.folder.iterdir()] == ["lock"]


def test_where_there_can_be_no_folder_all_is_made_anew_and_the_log_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    cache = PrivateCache(tmp_path / "file" / "private")
    for _ in range(2):
        kept = cache.get("plan", KEY, lambda: GENUINE)
        assert (kept.data, kept.path, kept.made) == (GENUINE, None, True)
        assert not cache.store("plan", KEY, GENUINE)
        assert cache.load("plan", KEY) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"cache folder {cache.folder} cannot be used; nothing is cached: Not a directory"
    ]


def test_a_folder_that_cannot_be_written_to_is_read_and_costs_only_the_keeping(
    cache: PrivateCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keep(cache, GENUINE)
    open_file = os.open

    def open_to_read(path: str, flags: int, *mode: int, **where: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(30, "Read-only file system")
        return open_file(path, flags, *mode, **where)

    monkeypatch.setattr(os, "open", open_to_read)
    assert cache.get("plan", KEY, lambda: pytest.fail("what is kept is not made again")).data == GENUINE
    kept = cache.get("plan", Key("day"), lambda: GENUINE)
    assert (kept.data, kept.path, kept.made) == (GENUINE, None, True)
    (line,) = caplog.records
    assert "cannot be stored: Read-only file system" in line.getMessage()


def test_what_fails_to_be_made_leaves_nothing_and_blocks_nobody(cache: PrivateCache) -> None:
    def fail() -> bytes:
        raise EngineError("no such layer")

    with pytest.raises(EngineError, match="no such layer"):
        cache.get("plan", KEY, fail)
    assert cache.get("plan", KEY, lambda: GENUINE).made


MAKER = """
import logging, os, sys
from pathlib import Path
from engines.private_cache import PrivateCache
from tests.test_private_cache import KEY
logging.basicConfig(level="INFO", format="%(message)s")

def say(word):
    print(word, flush=True)

def make():
    say("making")
    sys.stdin.readline()
    return sys.argv[2].encode()

if "stuck" in sys.argv:
    os.fsync = lambda handle: (say("writing"), sys.stdin.readline())
kept = PrivateCache(Path(sys.argv[1])).get("plan", KEY, make)
say(f"{kept.made} {kept.data.decode()}")
"""


@pytest.fixture
def start(cache: PrivateCache) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process that makes the bytes it is told, after a line of input; it has until the deadline."""
    started: list[tuple[subprocess.Popen[str], threading.Timer]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", MAKER, str(cache.folder), *words],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = threading.Timer(DEADLINE, process.kill)
        deadline.start()
        started.append((process, deadline))
        return process

    yield start
    for process, deadline in started:
        deadline.cancel()
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_of_two_processes_one_makes_and_the_other_waits_for_it(start: Callable[..., subprocess.Popen[str]]) -> None:
    first = start("ours")
    assert said(first) == "making"
    second = start("theirs")
    assert second.stderr is not None
    assert "waiting for another build, of this process or another one, to finish" in second.stderr.readline()
    assert first.communicate("go\n")[0] == "True ours\n"
    assert second.communicate("go\n") == ("False ours\n", "")


def test_a_process_that_is_killed_while_it_makes_blocks_nobody(
    start: Callable[..., subprocess.Popen[str]], cache: PrivateCache
) -> None:
    killed = start("killed")
    assert said(killed) == "making"
    waiting = start("alive")
    assert waiting.stderr is not None
    assert "waiting" in waiting.stderr.readline()
    killed.kill()
    assert said(waiting) == "making"
    assert waiting.communicate("go\n")[0] == "True alive\n"
    assert cache.load("plan", KEY) == b"alive"


def test_a_process_that_is_killed_while_it_writes_leaves_nothing_that_is_used(
    start: Callable[..., subprocess.Popen[str]], cache: PrivateCache
) -> None:
    killed = start("killed", "stuck")
    assert said(killed) == "making"
    assert killed.stdin is not None
    killed.stdin.write("go\n")
    killed.stdin.flush()
    assert said(killed) == "writing"
    killed.kill()
    killed.wait()
    (part,) = cache.folder.glob(".*.part")
    assert not cache.path("plan", KEY).exists()

    assert cache.get("plan", KEY, lambda: GENUINE).made
    assert part.exists(), "it may belong to a process that is writing"
    long_ago = time.time() - ABANDONED_SECONDS - 1
    os.utime(part, (long_ago, long_ago))
    cache.store("plan", KEY, GENUINE)
    assert not part.exists()


def test_the_newest_file_is_listed_first_and_an_unfit_one_with_its_reason(cache: PrivateCache) -> None:
    assert cache.entries("plan") == []
    assert not cache.folder.exists(), "looking makes nothing"
    old, new, broken = (keep(cache, GENUINE, Key(name)) for name in ("old", "new", "broken"))
    change_last_byte(broken)
    for age, path in enumerate((broken, new, old)):
        os.utime(path, (1e9 - age, 1e9 - age))
    entries = cache.entries("plan")
    assert [entry.path for entry in entries] == [broken, new, old]
    assert [entry.unfit for entry in entries] == ["is damaged", "", ""]
    assert [entry.key for entry in entries] == [None, {"name": "new", "size": 1}, {"name": "old", "size": 1}]
    assert (entries[1].bytes, entries[1].made) == (len(GENUINE), 1e9 - 1)


def test_what_was_not_used_for_the_longest_time_makes_room_for_the_new(
    cache: PrivateCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, used, fresh = (Key(name) for name in ("old", "used", "fresh"))
    for age, key in ((20, used), (10, old)):
        made = time.time_ns() - age * 10**9
        os.utime(keep(cache, GENUINE, key), ns=(made, made))
    room = 2 * cache.path("plan", old).stat().st_size + 100
    monkeypatch.setattr(private_cache, "LARGEST_BYTES", room)
    assert cache.load("plan", used) == GENUINE, "made before the other, and used after it"
    (cache.folder / "lock").touch()
    keep(cache, GENUINE, fresh)
    assert [cache.load("plan", key) for key in (old, used, fresh)] == [None, GENUINE, GENUINE]
    monkeypatch.setattr(private_cache, "LARGEST_BYTES", 10)
    keep(cache, FAKE, old)
    assert [cache.load("plan", key) for key in (old, used, fresh)] == [FAKE, None, None], "what is too large is kept"
    assert (cache.folder / "lock").exists()


def test_using_a_file_does_not_make_it_newer(cache: PrivateCache) -> None:
    path = keep(cache, GENUINE)
    os.utime(path, ns=(10**18, 10**18))
    assert cache.load("plan", KEY) == GENUINE
    assert path.stat().st_mtime_ns == 10**18
    assert path.stat().st_atime_ns > 10**18


def test_bytes_are_on_the_disk_before_they_have_their_name(
    cache: PrivateCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def replaced(self: Path, target: Path) -> Path:
        steps.append("name")
        return replace(self, target)

    monkeypatch.setattr(private_cache.os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    cache.store("plan", KEY, GENUINE)
    assert steps == ["file", "name", "folder"]
