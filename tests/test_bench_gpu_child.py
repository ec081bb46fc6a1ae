"""Parts of `nightbridge bench --gpu` in processes of their own, however those end."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest

from engines.nvidia.gpu import Gpu
from tests.command import ROOT
from tests.short_bench import shorten, together
from tools.benchmarks import gpu, gpu_child
from tools.benchmarks.gpu_child import Child, in_child
from tools.benchmarks.gpu_findings import Findings


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few repetitions of small pictures."""
    shorten(monkeypatch)


DEAD = """
import os, sys, threading
with open(sys.argv[5], "a") as found:
    found.write('{"first": 1}\\n{"second": 2}\\n{"thi')
"""
"""Has found two figures, and most of another one, before it ends."""
PART = """
import os, threading
from tools.benchmarks import gpu_child, gpu_parts

def part(time_left):
    yield {"first": 1}
    %s

gpu_parts.PARTS["times"] = part
gpu_child.main()
"""


def child_of(monkeypatch: pytest.MonkeyPatch, program: str) -> Child:
    monkeypatch.setattr(gpu_child, "COMMAND", (sys.executable, "-c", program))
    return Child("times", "times_torch", "times")


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("os.kill(os.getpid(), 11)", "it ended with signal 11: no reason given"),
        ("print('CUDA error 700', file=sys.stderr); os._exit(3)", "it ended with exit code 3: CUDA error 700"),
        ("os._exit(3)", "it ended with exit code 3: no reason given"),
        ("threading.Event().wait()", "it was killed after 15 s"),
    ],
)
def test_a_part_that_dies_or_is_killed_is_named_and_what_it_found_before_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str, reason: str
) -> None:
    monkeypatch.setattr(gpu_child, "LEAST_SECONDS", 0.0)
    child = child_of(monkeypatch, DEAD + end)
    findings = Findings(tmp_path / "found.json", 60)
    findings.measure("times", lambda: in_child(child, 15.0 if "killed" in reason else 60.0))
    findings.measure("relay", lambda: iter([{"fourth": 4}]))
    found = json.loads((tmp_path / "found.json").read_text())
    assert found.pop("times_seconds") >= 0
    assert found.pop("relay_seconds") >= 0
    assert found == {"first": 1, "second": 2, "times_torch_failed": reason, "fourth": 4}


def test_figures_are_kept_while_their_part_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    waiting = f"while not os.path.exists({str(go_on)!r}): threading.Event().wait(0.01)"
    for figures in in_child(child_of(monkeypatch, DEAD + waiting), 60.0):
        go_on.touch()
        assert "times_torch_failed" not in figures


def test_with_a_part_ends_all_that_it_began(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    begin = f"import subprocess; subprocess.Popen(['sh', '-c', 'exec sleep 600 > {pipe}'])"
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        wait = f"open({str(pipe)!r}, 'w').close(); os._exit(1)"
        told = together(in_child(child_of(monkeypatch, f"{DEAD}{begin}; {wait}"), 60.0))
        assert told["times_torch_failed"] == "it ended with exit code 1: no reason given"
        ended = select.poll()
        ended.register(reading, select.POLLHUP)
        assert ended.poll(30_000), "it is still there"
    finally:
        os.close(reading)


def test_a_part_that_hangs_tells_where_before_it_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_child, "LEAST_SECONDS", 0.0)
    program = "import faulthandler\n" + PART % "threading.Event().wait()"
    found = together(in_child(child_of(monkeypatch, program), 15.0))
    assert found.pop("first") == 1
    pattern = r'it ended after 1[45] s, still in File ".*/threading\.py", line \d+ in wait'
    assert re.fullmatch(pattern, str(found.pop("times_torch_failed")))
    assert not found


def test_a_part_that_a_library_kills_tells_where(monkeypatch: pytest.MonkeyPatch) -> None:
    found = together(in_child(child_of(monkeypatch, PART % "os.kill(os.getpid(), 11)"), 60.0))
    assert found == {"first": 1, "times_torch_failed": 'it ended with signal 11 in File "<string>", line 7 in part'}


def test_a_part_that_fails_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    found = together(in_child(child_of(monkeypatch, PART % "raise RuntimeError('out of memory')"), 60.0))
    assert found == {"first": 1, "times_torch_failed": "RuntimeError: out of memory"}


def test_how_a_library_ends_with_a_part_that_is_done_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    body = "import atexit; atexit.register(os.abort)"
    assert together(in_child(child_of(monkeypatch, PART % body), 60.0)) == {"first": 1}


def test_a_part_begins_nothing_more_near_its_end_or_when_nobody_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    body = """yield {"left": time_left()}
    os.getppid = lambda: 1
    yield {"alone": time_left()}"""
    found = together(in_child(child_of(monkeypatch, PART % body), 100.0))
    assert 0 < float(str(found["left"])) < 100 - 15
    assert found["alone"] == 0


def test_the_process_that_watches_them_loads_nothing_that_uses_cuda() -> None:
    program = "import sys, tools.benchmarks.gpu; print({'torch', 'pycuda', 'cuda', 'tensorrt_rtx'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")


@pytest.mark.usefixtures("short")
def test_a_runtime_that_kills_its_process_costs_the_other_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu, "find_gpu", lambda: Gpu("NVIDIA H200", "580"))
    monkeypatch.setattr(gpu, "ON_CUDA", ("tensorrt", "openvino"))
    monkeypatch.setattr(gpu, "why_not", lambda *_: None)
    monkeypatch.setattr(gpu, "shipped", lambda: ["field"])
    gpu.bench_gpu("field", 30, tmp_path / "gpu.json")
    found = json.loads((tmp_path / "gpu.json").read_text())
    failed = {key: value for key, value in found.items() if key.endswith("_failed") and key != "environment_failed"}
    assert failed.keys() == {
        f"{part}_failed" for part in ("checks_tensorrt_field", "times_tensorrt", "codecs_tensorrt")
    }
    for reason in failed.values():
        assert re.fullmatch(r'it ended with signal 11 in File ".*short_bench\.py", line \d+ in submit', reason)
    assert any(key.startswith("parity_openvino") for key in found)
    assert all(found[f"openvino_{size}_b{count}_door_ms"] > 0 for size in ("32x32", "48x32") for count in (1, 2))
    assert found["matrix_peak_tflops"] > 0
    assert found["relay_runtime"] == "openvino"
    assert found["relay_1_feeds_fps"] > 0
