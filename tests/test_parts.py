from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from stream.errors import StreamError
from stream.files.parts import Job, Layout, Part, Parts
from tests.command import ROOT

JOB = Job(source="a.mp4", size=100, mtime_ns=1, model="field fp32", encoder="libx264")
QUARTER_TURN = (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
LAYOUT = Layout(width=320, height=240, matrix="bt601", full_range=False, display_matrix=QUARTER_TURN)


@dataclass
class Work:
    folder: Path

    def parts(self, job: Job = JOB) -> Parts:
        return Parts(self.folder, job)

    def do(self, amount: int) -> None:
        with self.parts() as parts:
            if parts.layout is None:
                parts.begin(LAYOUT)
            for _ in range(amount):
                add(parts)


def add(parts: Parts) -> None:
    """The next part, one byte longer than the one before."""
    size = len(parts.done) + 1
    parts.growing.write_bytes(b"x" * size)
    end = 10 * size
    parts.add(Part(pictures=10, size=size, unit=end - 1, key=end - 10, placed=end, last=end, jump=0, jumps=[]))


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / ".part-out.mp4")


def test_what_is_done_is_there_again(work: Work) -> None:
    work.do(2)
    work.do(1)
    with work.parts() as parts:
        assert (parts.pictures, parts.layout, [part.unit for part in parts.done]) == (30, LAYOUT, [9, 19, 29])
        assert [path.read_bytes() for path in parts.paths()] == [b"x", b"xx", b"xxx"]


def test_a_layout_from_before_rotations_were_kept_is_taken_as_upright(work: Work) -> None:
    work.do(2)
    journal = work.folder / "journal"
    told = b',"display_matrix":' + msgspec.json.encode(QUARTER_TURN)
    assert told in journal.read_bytes()
    journal.write_bytes(journal.read_bytes().replace(told, b""))
    with work.parts() as parts:
        assert (parts.pictures, parts.layout) == (20, msgspec.structs.replace(LAYOUT, display_matrix=()))


def test_a_line_that_a_kill_has_torn_costs_its_part_alone(work: Work) -> None:
    work.do(3)
    journal = work.folder / "journal"
    journal.write_bytes(journal.read_bytes()[:-5])
    with work.parts() as parts:
        assert parts.pictures == 20
        add(parts)
    with work.parts() as parts:
        assert parts.pictures == 30


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_parts_from_the_first_damaged_one_on_are_made_again(work: Work, damage: str) -> None:
    work.do(3)
    second = work.folder / "000001.nut"
    second.unlink() if damage == "missing" else second.write_bytes(b"x")
    with work.parts() as parts:
        assert parts.pictures == 10
        add(parts)
    with work.parts() as parts:
        assert parts.pictures == 20


@pytest.mark.parametrize(
    "job",
    [
        msgspec.structs.replace(JOB, size=101),
        msgspec.structs.replace(JOB, mtime_ns=2),
        msgspec.structs.replace(JOB, model="paper fp32"),
        msgspec.structs.replace(JOB, encoder="libx265"),
    ],
    ids=["size", "time", "weights", "encoder"],
)
def test_work_of_another_job_is_told_and_begun_anew(work: Work, job: Job, caplog: pytest.LogCaptureFixture) -> None:
    work.do(2)
    with work.parts(job) as parts:
        assert (parts.pictures, parts.layout) == (0, None)
    assert "starting over" in caplog.text


@pytest.mark.parametrize("text", [b"", b"\xff\xfe\n", b"[1, 2]\n", b'{"type":"part"}\n', b"{}\n{}\n"])
def test_a_journal_that_says_nothing_is_begun_anew(work: Work, text: bytes) -> None:
    work.folder.mkdir()
    (work.folder / "journal").write_bytes(text)
    with work.parts() as parts:
        assert parts.pictures == 0
    work.do(1)
    with work.parts() as parts:
        assert parts.pictures == 10


def test_a_folder_goes_again_where_its_journal_cannot_be_written_and_stays_where_work_is_in_it(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr("stream.files.parts.os.fsync", full)
        with pytest.raises(OSError, match="No space left"), work.parts():
            pass
    assert not work.folder.exists()
    work.do(1)
    monkeypatch.setattr("stream.files.parts.os.fsync", full)
    with pytest.raises(OSError, match="No space left"), work.parts(msgspec.structs.replace(JOB, size=1)):
        pass
    assert work.folder.exists()


def test_no_two_processes_work_on_one_file(work: Work) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.test_parts import JOB, Parts\n"
        "with Parts(Path(sys.argv[1]), JOB): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(work.folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(StreamError, match="another process is working in this folder"), work.parts():
            pass
        other.kill()
    with work.parts() as parts:
        assert parts.pictures == 0
