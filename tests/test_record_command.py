import os
import re
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path

import av
import pytest

from stream.frame import plane_view
from tests.published import Camera, relay
from tests.recorded import played, recording_program, units
from tests.waiting import DEADLINE, wait_until


@pytest.mark.parametrize(("codec", "groups_lost"), [("h264", 1), ("hevc", 1), ("av1", 2)])
def test_after_kill_9_all_but_the_last_groups_play(codec: str, groups_lost: int, tmp_path: Path) -> None:
    with (
        relay() as publisher,
        closing(Camera(publisher, codec=codec)) as camera,
        recording_program(publisher, "pier", tmp_path) as program,
    ):
        camera.wait_for_viewer()
        camera.show(53)  # five whole groups of ten and three pictures more
        whole = (6 - groups_lost) * 10

        def arrived() -> bool:
            return any(count_packets(path) >= whole for path in tmp_path.iterdir())

        wait_until(arrived, "writing the groups that have ended")
        os.kill(program.pid, signal.SIGKILL)
        assert program.wait(DEADLINE) == -signal.SIGKILL
    [path] = tmp_path.iterdir()
    frames = played(path)
    assert len(frames) >= whole
    for number, frame in enumerate(frames):
        assert plane_view(frame.planes[0]).mean() == pytest.approx(Camera.luma(number), abs=3)


def count_packets(path: Path) -> int:
    """Of a file that may have just begun."""
    try:
        return len(units(path, "video"))
    except (av.FFmpegError, IndexError):
        return 0


def test_the_command_finishes_its_file_when_it_is_asked_to_stop(tmp_path: Path) -> None:
    with relay() as publisher, recording_program(publisher, "pier", tmp_path) as program:
        camera = Camera(publisher)
        camera.wait_for_viewer()
        camera.show(31)  # the last one begins the fourth group, and so ends the third
        wait_until(lambda: any(count_packets(path) >= 30 for path in tmp_path.iterdir()), "writing three groups")
        program.terminate()
        output, _ = program.communicate(timeout=DEADLINE)
    assert program.returncode == 0
    assert len(played(next(tmp_path.iterdir()))) == 31
    assert "pier-" in output
    assert "31 pictures" in output


def test_the_command_names_also_the_file_that_begins_as_it_ends(tmp_path: Path) -> None:
    with relay() as publisher, recording_program(publisher, "pier", tmp_path, "--segment", "1ms") as program:
        camera = Camera(publisher)
        camera.wait_for_viewer()
        camera.show(15)  # the last five belong into a file of their own, which does not begin before their group ends
        wait_until(lambda: any(count_packets(path) >= 10 for path in tmp_path.iterdir()), "writing the first group")
        program.terminate()
        output, _ = program.communicate(timeout=DEADLINE)
    assert output.splitlines()[1:-1] == sorted(str(path) for path in tmp_path.iterdir())
    assert "15 pictures and 0 data packets in 2 files" in output


def test_a_log_on_a_full_disk_ends_no_recording(tmp_path: Path) -> None:
    with (
        relay() as publisher,
        closing(Camera(publisher)) as camera,
        Path("/dev/full").open("w") as log,
        recording_program(publisher, "pier", tmp_path, stdout=log, stderr=subprocess.DEVNULL) as program,
    ):
        camera.wait_for_viewer()
        camera.show(31)
        wait_until(lambda: any(count_packets(path) >= 30 for path in tmp_path.iterdir()), "a file")
        program.terminate()
        program.wait(DEADLINE)
    assert len(played(next(tmp_path.iterdir()))) == 31


ON_A_SMALL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from tools.app import main
main()
"""
"""The command where files have room for 4096 bytes."""


def test_a_full_disk_leaves_no_file_that_the_command_has_not_named_and_summed_up(tmp_path: Path) -> None:
    small = ("-B", "-c", ON_A_SMALL_DISK)
    with (
        relay() as publisher,
        closing(Camera(publisher)) as camera,
        recording_program(publisher, "pier", tmp_path, command=small, stderr=subprocess.PIPE) as program,
    ):
        camera.wait_for_viewer()
        camera.show(60)
        output, errors = program.communicate(timeout=DEADLINE)
    _, *named, summed_up = output.splitlines()
    assert named == [str(path) for path in tmp_path.iterdir()]
    assert len(named) == 1
    assert re.fullmatch(r"\d+ pictures and 0 data packets in 1 files", summed_up)
    assert (program.returncode, errors) == (1, f"nightbridge: cannot record into {tmp_path}: File too large\n")


def test_a_recorder_that_stood_still_records_what_was_kept_for_it_however_old(tmp_path: Path) -> None:
    with (
        relay() as publisher,
        closing(Camera(publisher)) as camera,
        recording_program(publisher, "pier", tmp_path) as program,
    ):
        camera.wait_for_viewer()
        camera.show(25)
        wait_until(lambda: any(count_packets(path) >= 10 for path in tmp_path.iterdir()), "a file")
        program.send_signal(signal.SIGSTOP)
        camera.show(50)
        time.sleep(1.5)
        program.send_signal(signal.SIGCONT)
        camera.show(6)  # the last one begins the ninth group, and so ends the eighth
        wait_until(lambda: any(count_packets(path) >= 80 for path in tmp_path.iterdir()), "the rest")
        program.terminate()
        output, _ = program.communicate(timeout=DEADLINE)
    assert "81 pictures" in output
    assert "dropped" not in output
    assert len(played(next(tmp_path.iterdir()))) == 81
