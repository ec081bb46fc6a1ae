"""`nightbridge bench --gpu`, rehearsed without one: on a fake driver, on the processor, and with OpenVINO.

How large figures are is no test's business, but that they are there, and that what goes wrong is told.
"""

from __future__ import annotations

import json
import math
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from engines.cards import NUMBERS, find_weights
from engines.checkpoint import load_network
from engines.door import Door, Slot
from engines.errors import EngineError, EngineMismatch
from engines.gpu import Gpu, has_driver
from engines.picture import PictureGraph
from engines.runtime import EngineOptions, open_engine
from engines.runtime_torch import TorchEngine
from stream.settings import EngineSettings
from stream.wire import Status
from tests.doubling import DoublingEngine
from tests.fake_tensorrt import Arrays, Compute
from tests.short_bench import SHORT, SIZES
from tests.test_check import ROOT, nightbridge
from tests.test_runtime_tensorrt import bench, counting
from tools import (
    bench_gpu,
    bench_gpu_child,
    bench_gpu_findings,
    bench_gpu_matrix,
    bench_gpu_parts,
    bench_gpu_relay,
    bench_gpu_times,
    bench_stream,
)
from tools.bench_gpu import shares, why_not
from tools.bench_gpu_checks import Reference, contract, difference, make_picture, parity
from tools.bench_gpu_child import Child, in_child
from tools.bench_gpu_findings import NO_TIME, Findings, print_findings
from tools.bench_gpu_matrix import flop, matrix_peak, product_rate
from tools.bench_gpu_relay import Watched, relay_figures, step_figures, why_too_many
from tools.bench_gpu_times import hidden, memory_growth, times

DOOR = {"door_ms", "latency_ms", "fps"}
ALONE = {"network_ms", "upload_ms", "download_ms", "door_ratio", "copies_hidden"}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few repetitions as can be, of small pictures, here and in the processes of all parts, with time for each."""
    for module, name, value in SHORT:
        monkeypatch.setattr(module, name, value)
    for name, value in list(vars(bench_gpu).items()):
        if isinstance(value, bench_gpu.Limit):
            monkeypatch.setattr(bench_gpu, name, value._replace(each=math.inf))
    monkeypatch.setattr(bench_gpu_child, "COMMAND", (sys.executable, "-m", "tests.short_bench"))


def network(weights: str = "field") -> Compute:
    """What a plan of these weights computes, in fp32."""
    graph = PictureGraph(load_network(find_weights(weights).file(NUMBERS))).eval()

    def compute(inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            made = graph(*(torch.from_numpy(inputs[name]) for name in ("y", "uv", "colour", "memory", "keep")))
        return dict(zip(("y_out", "uv_out", "memory_out"), (part.numpy() for part in made), strict=True))

    return compute


def together(parts: Iterator[Mapping[str, object]]) -> dict[str, object]:
    """All figures of a part."""
    return {key: value for figures in parts for key, value in figures.items()}


# The command


@pytest.mark.skipif(has_driver(), reason="here is a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path: Path) -> None:
    done = nightbridge(tmp_path, "bench", "--gpu", "--json", "gpu.json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "nightbridge: bench --gpu needs an NVIDIA GPU and its driver; here is none\n"
    assert not (tmp_path / "gpu.json").exists()


def test_a_runtime_without_a_gpu_is_not_measured_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_gpu, "find_gpu", lambda: Gpu("NVIDIA H200", "580"))
    with pytest.raises(EngineMismatch, match="runtime 'openvino': bench --gpu measures one of auto, tensorrt, torch"):
        bench_gpu.bench_gpu("field", 1, None, "openvino")


@pytest.mark.usefixtures("short")
def test_a_whole_run_fills_the_file_and_prints_each_figure_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(bench_gpu, "find_gpu", lambda: Gpu("NVIDIA H200", "580"))
    monkeypatch.setattr(bench_gpu, "ON_CUDA", ("tensorrt", "openvino"))
    monkeypatch.setattr(bench_gpu, "why_not", lambda runtime, *_: "refused" if runtime == "tensorrt" else None)
    monkeypatch.setattr(bench_gpu, "shipped", lambda: ["field"])
    bench_gpu.bench_gpu("field", 30, tmp_path / "gpu.json")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert (found["gpu"], found["driver"]) == ("NVIDIA H200", "580")
    assert found["weights_id_field"] == find_weights("field").id
    assert (found["tensorrt_works"], found["tensorrt_missing"]) == (False, "refused")
    assert found["openvino_works"] is True
    (label,) = {key.removesuffix("_doubles") for key in found if key.endswith("_doubles")}
    assert all(value for key, value in found.items() if key.startswith(label) and not key.endswith("difference_max"))
    assert found[f"{label.replace('contract', 'parity')}_psnr_db"] > 30
    for size in ("32x32", "48x32"):
        assert found[f"gflop_{size}"] > 0
        for count in (1, 2):
            assert all(found[f"openvino_{size}_b{count}_{name}"] > 0 for name in DOOR)
    assert found["matrix_peak_side"] == 32
    assert found["relay_decode_ms"] > 0
    assert found["relay_encode_ms"] > 0
    assert found["relay_1_feeds_fps"] > 0
    assert found["relay_1_feeds_cpu_ms"] > found["relay_1_feeds_cpu_beside_codecs_ms"]
    assert found["relay_1_feeds_age_p50_ms"] <= found["relay_1_feeds_age_p95_ms"]
    assert found["relay_feeds"] in (0, 1)
    assert found["relay_limit"]
    failed = {key for key in found if key.endswith("_failed")}
    assert failed <= {"environment_failed"}, {key: found[key] for key in failed}  # where torch finds no CUDA
    for part in ("environment", "runtimes", "openvino_checks", "times", "efficiency", "relay"):
        assert found[f"{part}_seconds"] >= 0
    printed = capsys.readouterr().out
    assert "openvino_48x32_b2" in printed
    assert "relay_1_feeds" in printed
    assert "openvino_48x32_b2_door_ms" not in printed


def test_where_no_runtime_works_the_file_says_why_of_each_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: None
) -> None:
    monkeypatch.setattr(bench_gpu, "find_gpu", lambda: Gpu("NVIDIA H200", "580"))
    monkeypatch.setattr(bench_gpu, "why_not", lambda *_: "refused")
    bench_gpu.bench_gpu("field", 30, tmp_path / "gpu.json")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["tensorrt_missing"] == found["torch_missing"] == "refused"
    assert found["relay_failed"] == "EngineMissing: no runtime works on this GPU"
    assert found["gflop_32x32"] > 0


def test_a_part_that_fails_keeps_what_it_found_and_stops_no_other(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    findings = Findings(path, 60)

    def failing() -> Iterator[Mapping[str, object]]:
        yield {"first": 1}
        assert json.loads(path.read_text()) == {"first": 1}
        raise RuntimeError("out of memory")

    findings.measure("times", failing)
    findings.measure("relay", lambda: iter([{"second": 2}]))
    found = json.loads(path.read_text())
    assert (found["first"], found["second"]) == (1, 2)
    assert found["times_failed"] == "RuntimeError: out of memory"
    assert "relay_failed" not in found


def test_who_stops_the_command_keeps_what_was_measured(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "found.json", 60)

    def stopped() -> Iterator[Mapping[str, object]]:
        yield {"first": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        findings.measure("times", stopped)
    assert json.loads((tmp_path / "found.json").read_text()) == {"first": 1}


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("pass", None),
        ("import sys; print('a note', file=sys.stderr); sys.exit('EngineMissing: no GPU')", "EngineMissing: no GPU"),
        ("import os; os.kill(os.getpid(), 9)", "it ended with signal 9: it does not say why"),
        ("import threading; threading.Event().wait()", "no picture within 1 s"),
    ],
)
def test_a_runtime_that_cannot_be_used_is_told_however_it_ends(
    monkeypatch: pytest.MonkeyPatch, program: str, reason: str | None
) -> None:
    monkeypatch.setattr(bench_gpu, "TRY", program)
    monkeypatch.setattr(bench_gpu, "TRY_SECONDS", 1.0 if reason and reason.startswith("no picture") else 30.0)
    assert why_not("torch", "field") == reason


def test_a_runtime_that_hangs_is_told_with_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = """
import faulthandler, threading
faulthandler.dump_traceback_later(0.2, exit=True)
threading.Thread(target=threading.Event().wait, daemon=True).start()
threading.Event().wait()
"""
    monkeypatch.setattr(bench_gpu, "TRY", hanging)
    reason = why_not("torch", "field")
    assert reason is not None
    assert re.fullmatch(r'no picture within 90 s: it hangs in File ".*/threading\.py", line \d+ in wait', reason)


def test_a_runtime_is_tried_with_a_picture() -> None:
    assert why_not("openvino", "field") is None


# Parts in processes of their own

DEAD = """
import os, sys, threading
with open(sys.argv[5], "a") as found:
    found.write('{"first": 1}\\n{"second": 2}\\n{"thi')
"""
"""Has found two figures, and most of another one, before it ends."""
PART = """
import os, threading
from tools import bench_gpu_child, bench_gpu_parts

def part(time_left):
    yield {"first": 1}
    %s

bench_gpu_parts.PARTS["times"] = part
bench_gpu_child.main()
"""


def child_of(monkeypatch: pytest.MonkeyPatch, program: str) -> Child:
    monkeypatch.setattr(bench_gpu_child, "COMMAND", (sys.executable, "-c", program))
    return Child("times", "times_torch", "times")


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("os.kill(os.getpid(), 11)", "it ended with signal 11: it does not say why"),
        ("print('CUDA error 700', file=sys.stderr); os._exit(3)", "it ended with exit code 3: CUDA error 700"),
        ("os._exit(3)", "it ended with exit code 3: it does not say why"),
        ("threading.Event().wait()", "it was killed after 3 s"),
    ],
)
def test_a_part_that_dies_or_is_killed_is_named_and_what_it_found_before_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str, reason: str
) -> None:
    monkeypatch.setattr(bench_gpu_child, "LEAST_SECONDS", 0.0)
    child = child_of(monkeypatch, DEAD + end)
    findings = Findings(tmp_path / "found.json", 60)
    findings.measure("times", lambda: in_child(child, 3.0 if "killed" in reason else 60.0))
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
        assert told["times_torch_failed"] == "it ended with exit code 1: it does not say why"
        ended = select.poll()
        ended.register(reading, select.POLLHUP)
        assert ended.poll(30_000), "it is still there"
    finally:
        os.close(reading)


def test_a_part_that_hangs_tells_where_before_it_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_gpu_child, "LEAST_SECONDS", 0.0)
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
    program = "import sys, tools.bench_gpu; print({'torch', 'pycuda', 'cuda', 'tensorrt_rtx'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")


@pytest.mark.usefixtures("short")
def test_a_runtime_that_kills_its_process_costs_the_other_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(bench_gpu, "find_gpu", lambda: Gpu("NVIDIA H200", "580"))
    monkeypatch.setattr(bench_gpu, "ON_CUDA", ("tensorrt", "openvino"))
    monkeypatch.setattr(bench_gpu, "why_not", lambda *_: None)
    monkeypatch.setattr(bench_gpu, "shipped", lambda: ["field"])
    bench_gpu.bench_gpu("field", 30, tmp_path / "gpu.json")
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


# The order and the time of the parts


@dataclass
class Rehearsal:
    """Stands for the processes of all parts, on a clock of its own."""

    figures: dict[str, dict[str, object]]
    """By name, what they find."""
    slow: bool = False
    """Whether each takes all the time that it gets, else a second."""
    now: float = 0.0
    begun: dict[str, float] = field(default_factory=dict)
    """By name in their order: the seconds that the last one of that name got."""
    arguments: dict[str, tuple[object, ...]] = field(default_factory=dict)

    def in_child(self, child: Child, seconds: float) -> Iterator[Mapping[str, object]]:
        if seconds < bench_gpu_child.LEAST_SECONDS:
            yield {f"{child.name}_left_out": NO_TIME}
            return
        name = f"{child.name} again" if child.name in self.begun else child.name
        self.begun[name], self.arguments[name] = seconds, child.arguments
        self.now += seconds + bench_gpu_child.KILL_SECONDS if self.slow else 1.0
        yield self.figures.get(child.name, {})

    def why_not(self, _runtime: str, _weights: str, seconds: float) -> None:
        self.now += min(seconds, bench_gpu.TRY_SECONDS) + bench_gpu_child.KILL_SECONDS if self.slow else 1.0

    def run(self, monkeypatch: pytest.MonkeyPatch, minutes: float = 10, weights: str = "field") -> dict[str, object]:
        """The report."""
        kept: list[Findings] = []
        monkeypatch.setattr(bench_gpu_findings, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(bench_gpu, "find_gpu", lambda: Gpu("NVIDIA H200", "580"))
        monkeypatch.setattr(bench_gpu, "why_not", self.why_not)
        monkeypatch.setattr(bench_gpu, "in_child", self.in_child)
        monkeypatch.setattr(bench_gpu, "Findings", lambda *words: kept.append(Findings(*words)) or kept[0])
        bench_gpu.bench_gpu(weights, minutes, None)
        return kept[0].figures


CARRIED = {"relay_runtime": "tensorrt", "relay_32_feeds_fps": 800.0, "relay_feeds": 32}
SILENT = {"relay_runtime": "tensorrt", "relay_32_feeds_tries": 1, "relay_feeds": 0, "relay_limit": "32 feeds: none"}


def test_what_is_worth_most_is_measured_first(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsal = Rehearsal({"relay_tensorrt": CARRIED})
    found = rehearsal.run(monkeypatch)
    assert list(rehearsal.begun) == [
        "environment",
        "checks_tensorrt_field",
        "checks_torch_field",
        "times_tensorrt",
        "times_torch",
        "times_tensorrt_paper",
        "times_torch_paper",
        "efficiency",
        "codecs_tensorrt",
        "relay_tensorrt",
        "times_tensorrt again",
        "times_torch again",
        "checks_tensorrt_field again",
        "checks_torch_field again",
        "checks_tensorrt_paper",
        "checks_torch_paper",
        "times_tensorrt_paper again",
        "times_torch_paper again",
        "checks_tensorrt_field-lite",
        "checks_torch_field-lite",
        "times_tensorrt_field-lite",
        "times_torch_field-lite",
    ]
    arguments = rehearsal.arguments
    assert arguments["checks_torch_field"] == ("torch", "field", 1)
    assert arguments["checks_torch_field again"] == ("torch", "field", None)
    assert bench_gpu_times.cells()[0] == ((640, 360), (8, 1, 2, 4))
    assert [arguments[name][2:] for name in ("times_torch", "times_torch again")] == [(0, 1), (1, None)]
    assert arguments["times_torch_paper"] == ("torch", "paper", [8])
    assert arguments["times_torch_paper again"] == ("torch", "paper", [32])
    assert arguments["times_torch_field-lite"] == ("torch", "field-lite", [8, 32])
    assert found["times_seconds"] == 4.0, "both stretches of both runtimes"


@pytest.mark.parametrize("minutes", [7, 10])
def test_however_long_each_part_takes_there_is_time_for_all_that_counts_and_the_end_is_kept(
    monkeypatch: pytest.MonkeyPatch, minutes: float
) -> None:
    rehearsal = Rehearsal({"relay_tensorrt": CARRIED}, slow=True)
    rehearsal.run(monkeypatch, minutes)
    assert rehearsal.now <= 60 * minutes
    for part in ("checks_{}_field", "times_{}", "times_{}_paper"):
        tensorrt, torch_ = rehearsal.begun[part.format("tensorrt")], rehearsal.begun[part.format("torch")]
        assert tensorrt == pytest.approx(torch_), "one runtime takes the time of the other"
        assert tensorrt >= 12
    assert rehearsal.begun["codecs_tensorrt"] >= 13
    assert rehearsal.begun["relay_tensorrt"] >= 60


def test_where_all_goes_quickly_no_part_gets_more_than_its_own_time_and_the_relay_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rehearsal = Rehearsal({"relay_tensorrt": CARRIED})
    rehearsal.run(monkeypatch)
    parts = ("environment", "checks_torch_field", "times_torch", "times_torch_paper", "efficiency", "codecs_tensorrt")
    assert [rehearsal.begun[name] for name in parts] == [42, 72, 87, 57, 42, 72]
    assert rehearsal.begun["relay_tensorrt"] > 500


def test_the_page_tells_the_time_of_each_step() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    told = re.findall(r"(?m)^\| .* \| (\d+|what is left) \| (\d+) % \|$", page)
    limits = [value for value in vars(bench_gpu).values() if isinstance(value, bench_gpu.Limit)]
    seconds = [f"{limit.each:.0f}" if limit.each < math.inf else "what is left" for limit in limits]
    assert told == list(zip(seconds, [f"{100 * limit.until:.0f}" for limit in limits], strict=True))


def test_where_a_relay_sends_nothing_the_next_runtime_is_relayed_and_the_file_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silent = SILENT | {"relay_tensorrt_failed": "32 feeds: none"}
    rehearsal = Rehearsal({"relay_tensorrt": silent, "relay_torch": CARRIED | {"relay_runtime": "torch"}})
    found = rehearsal.run(monkeypatch)
    begun = [name for name in rehearsal.begun if name.startswith(("codecs", "relay"))]
    assert begun == ["codecs_tensorrt", "relay_tensorrt", "codecs_torch", "relay_torch"]
    assert [rehearsal.arguments[name][4] for name in ("relay_tensorrt", "relay_torch")] == [False, True]
    assert found["relay_tensorrt_failed"] == "32 feeds: none"
    assert (found["relay_runtime"], found["relay_feeds"]) == ("torch", 32)


def test_a_runtime_that_cannot_be_made_ready_for_the_relay_is_relayed_only_where_there_is_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed = {f"codecs_{name}": {f"codecs_{name}_failed": "signal 11"} for name in ("tensorrt", "torch")}
    rehearsal = Rehearsal(failed)
    rehearsal.run(monkeypatch)
    begun = [name for name in rehearsal.begun if name.startswith(("codecs", "relay"))]
    assert begun == ["codecs_tensorrt", "codecs_torch", "relay_torch"]
    assert rehearsal.arguments["relay_torch"][3] is None, "the codecs' time is not known"


def test_the_relay_is_told_what_codecs_cost_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {"relay_decode_ms": 0.25, "relay_encode_ms": 3.0}
    rehearsal = Rehearsal({"codecs_tensorrt": costs, "relay_tensorrt": CARRIED})
    rehearsal.run(monkeypatch)
    assert rehearsal.arguments["relay_tensorrt"][3] == 3.25


def test_a_network_that_is_timed_after_the_peak_gets_its_share_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"matrix_peak_tflops": 800.0, "gflop_paper_640x360": 100.0}
    before, after = {"torch_paper_640x360_b8_network_ms": 2.0}, {"tensorrt_paper_640x360_b8_network_ms": 4.0}
    kinds = {"times_torch_paper": before, "efficiency": known, "relay_tensorrt": CARRIED | after}
    found = Rehearsal(kinds).run(monkeypatch)
    assert found["torch_paper_640x360_b8_matrix_share"] == pytest.approx(0.5)
    assert found["tensorrt_paper_640x360_b8_matrix_share"] == pytest.approx(0.25)


def test_batches_and_relays_are_rows_of_tables_and_all_else_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {
        "gpu": "NVIDIA H200",
        "torch_352x288_b8_door_ms": 1.25,
        "torch_352x288_b8_fps": 6400.0,
        "torch_352x288_b8_other": 3,
        "relay_4_feeds_cpu_ms": 4.5,
        "relay_4_feeds_dropped": 0,
    }
    print_findings(Console(width=200), figures)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:2]] == [["gpu", "NVIDIA", "H200"], ["torch_352x288_b8_other", "3"]]
    assert [line for line in lines if "torch_352x288_b8 " in line and "1.25" in line and "6400" in line]
    assert [line for line in lines if "relay_4_feeds " in line and "4.5" in line and " 0 " in line]


# Contract and parity


def test_an_engine_that_keeps_the_contract_and_equals_the_reference_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(monkeypatch, remembers=256) as b:
        b.library.compute = network()
        found = contract(b.engine, SIZES)
        assert found.pop("batch_difference_max") in (0, 1)
        assert set(found.values()) == {True}
        figures = parity(b.engine, Reference(find_weights("field")), SIZES)
    assert figures["max"] <= 1
    assert figures["mean"] < 0.01
    assert min(figures["psnr_db"], figures["film_psnr_db"]) > 55


def forgetful(inputs: Arrays) -> Arrays:
    return counting(inputs | {"memory": np.zeros_like(inputs["memory"])})


def leaking(inputs: Arrays) -> Arrays:
    made = counting(inputs)
    made["y_out"] = made["y_out"] + 5 * np.arange(len(inputs["y"]), dtype=np.uint8)[:, None, None, None]
    return made


def flat(inputs: Arrays) -> Arrays:
    made = counting(inputs)
    return made | {"y_out": np.zeros_like(made["y_out"])}


@pytest.mark.parametrize(
    ("compute", "broken"),
    [
        (counting, {"grey_stays_grey", "cut_followed"}),
        (forgetful, {"grey_stays_grey", "memory_carried"}),
        (leaking, {"grey_stays_grey", "cut_followed", "batch_equals_singles"}),
        (flat, {"grey_stays_grey", "doubles", "memory_carried"}),
    ],
)
def test_what_an_engine_does_wrong_is_named(
    monkeypatch: pytest.MonkeyPatch, compute: Compute, broken: set[str]
) -> None:
    with bench(monkeypatch) as b:
        b.library.compute = compute
        found = contract(b.engine, SIZES)
    assert {name for name, kept in found.items() if kept is False} == broken


def test_a_memory_that_is_not_used_shows_at_the_end_of_the_film_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    right = network()
    with bench(monkeypatch, remembers=256) as b:
        b.library.compute = lambda inputs: right(inputs | {"keep": np.zeros_like(inputs["keep"])})
        figures = parity(b.engine, Reference(find_weights("field")), SIZES)
        b.library.compute = right
        expected = parity(b.engine, Reference(find_weights("field")), SIZES)
    assert figures["psnr_db"] == expected["psnr_db"]
    assert figures["film_psnr_db"] < expected["film_psnr_db"] - 3


def test_differences_are_over_all_planes() -> None:
    y, uv = np.zeros((2, 2), np.uint8), np.zeros((2, 1, 1), np.uint8)
    apart = difference((y, uv), (y, uv + 3)) + difference((y + 1, uv), (y, uv))
    assert (apart.largest, apart.samples) == (3, 12)
    assert apart.mean == pytest.approx(10 / 12)
    assert apart.psnr == pytest.approx(10 * math.log10(255**2 * 12 / 22))
    assert difference((y,), (y,)).psnr == math.inf


# Times


def test_engines_take_turns_and_those_on_a_gpu_also_tell_their_parts(
    monkeypatch: pytest.MonkeyPatch, short: None
) -> None:
    with bench(monkeypatch) as b, TorchEngine(find_weights("field"), EngineOptions()) as other:
        found = times({"tensorrt": b.engine, "torch": other}, (32, 32), 2)
        assert b.driver.copied_pageable == 0
        assert [b.engine.acquire(32, 32, timeout=0) for _ in range(24)], "slots were kept"
    assert found["tensorrt"].keys() == DOOR | ALONE
    assert found["torch"].keys() == DOOR
    for figures in found.values():
        assert all(isinstance(value, float) and math.isfinite(value) for value in figures.values())
    cell = found["tensorrt"]
    assert cell["fps"] == pytest.approx(2 / (float(cell["door_ms"]) / 1000))
    assert 0 <= float(cell["copies_hidden"]) <= 1


def test_an_engine_that_fails_is_told_and_the_others_are_timed(monkeypatch: pytest.MonkeyPatch, short: None) -> None:
    with bench(monkeypatch) as b, TorchEngine(find_weights("field"), EngineOptions()) as other:
        b.library.without_memory = True
        engines = {"tensorrt": b.engine, "torch": other}
        found = together(bench_gpu_parts.times_of_size(engines, (32, 32), (1,), lambda: 1.0))
    assert "too little GPU memory" in str(found["tensorrt_32x32_b1_failed"])
    assert isinstance(found["torch_32x32_b1_door_ms"], float)


def test_a_runner_that_fails_between_its_turns_ends_no_other(monkeypatch: pytest.MonkeyPatch, short: None) -> None:
    with bench(monkeypatch) as good, bench(monkeypatch) as bad:
        started = 0

        def compute(inputs: Arrays) -> Arrays:
            nonlocal started
            if len(inputs["y"]) == 2:
                started += 1
                if started > 12:
                    raise MemoryError("no memory is left")
            return counting(inputs)

        bad.library.compute = compute
        found = times({"bad": bad.engine, "good": good.engine}, (32, 32), 2)
        bad.library.compute = counting
    assert "no memory is left" in str(found["bad"]["failed"])
    assert found["good"].keys() == DOOR | ALONE


def test_other_weights_are_timed_at_one_size(monkeypatch: pytest.MonkeyPatch, short: None, tmp_path: Path) -> None:
    opened: list[EngineOptions] = []

    def openvino(runtime: str, weights: str, options: EngineOptions) -> Door:
        if runtime == "tensorrt":
            raise EngineError("refused")
        opened.append(options)
        return open_engine("openvino", weights, EngineOptions(cache=tmp_path, slots=options.slots))

    monkeypatch.setattr(bench_gpu_parts, "open_engine", openvino)
    found: dict[str, object] = {}
    for runtime in ("tensorrt", "torch"):
        found |= together(bench_gpu_parts.times_of_others(runtime, "field", [1, 2], lambda: 1.0))
    assert found.pop("times_tensorrt_field_failed") == "refused"
    assert found.keys() == {f"torch_field_32x32_b{count}_{name}" for count in (1, 2) for name in DOOR}
    assert [options.batch for options in opened] == [1, 2], "made ready for more than is timed"
    assert all(options.tried and options.cuda_only for options in opened)


@pytest.mark.parametrize("name", ["field", "field-lite", "paper"])
def test_weights_that_cannot_be_opened_are_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(*_: object) -> Door:
        raise EngineError("refused")

    monkeypatch.setattr(bench_gpu_parts, "open_engine", refuse)
    found = list(bench_gpu_parts.checks("torch", name, None, lambda: 1.0))
    assert found == [{f"checks_torch_{name}_failed": "refused"}]


def test_parity_is_left_out_where_the_contract_took_all_time(monkeypatch: pytest.MonkeyPatch, short: None) -> None:
    monkeypatch.setattr(bench_gpu_parts, "open_engine", lambda *_: DoublingEngine())
    found = together(bench_gpu_parts.checks("torch", "field", 1, lambda: 0.0))
    assert found.pop("parity_torch_uint8_field_left_out") == "no time was left"
    assert found["contract_torch_uint8_field_doubles"] is True
    assert found["contract_torch_uint8_field_sizes"] == "32x32"
    assert not any(key.startswith("parity") for key in found)


def test_other_weights_are_left_out_where_there_is_no_time_for_them() -> None:
    assert list(bench_gpu_parts.times_of_others("torch", "field", [8], lambda: 0.0)) == [
        {"times_torch_field_left_out": "no time was left"}
    ]
    checks = bench_gpu.checks("torch", "field", "field", None)
    assert list(in_child(checks, 0.0)) == [{"checks_torch_field_left_out": "no time was left"}]


def test_a_batch_that_fails_gives_its_slots_back(monkeypatch: pytest.MonkeyPatch, short: None) -> None:
    with bench(monkeypatch, slots=4) as b:
        b.engine.prepare(32, 32)

        def refuse(*_: object) -> None:
            raise EngineError("refused")

        with monkeypatch.context() as broken:
            broken.setattr(b.engine, "submit", refuse)
            assert times({"tensorrt": b.engine}, (32, 32), 4) == {"tensorrt": {"failed": "refused"}}
        assert len([b.engine.acquire(32, 32, timeout=0) for _ in range(4)]) == 4


def test_the_parts_of_a_batch_alone_run_as_often_as_asked_and_the_pictures_are_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = []

    def compute(inputs: Arrays) -> Arrays:
        runs.append(len(inputs["y"]))
        return counting(inputs)

    with bench(monkeypatch) as b:
        slots = [b.engine.acquire(32, 32) for _ in range(3)]
        b.library.compute = compute
        for level, slot in enumerate(slots, 10):
            slot.y[:], slot.uv[:] = level, 128
        seconds = b.engine.seconds_alone(slots, times=4)
        assert seconds.keys() == {"upload", "network", "download"}
        assert all(value > 0 for value in seconds.values())
        assert runs == [3] * 5
        for level, slot in enumerate(slots, 10):
            assert (slot.y_out == level).all()


@pytest.mark.parametrize(("visible", "share"), [(0.0, 1.0), (1.0, 0.5), (2.0, 0.0), (9.0, 0.0), (-1.0, 1.0)])
def test_the_share_of_the_copies_that_is_hidden_is_bounded(visible: float, share: float) -> None:
    assert hidden(visible, 2.0) == share


@pytest.mark.parametrize(("used", "growth"), [([100.0, 350.0], 250.0), ([None, None], None)])
def test_the_memory_of_a_size_is_what_making_ready_for_it_takes(
    monkeypatch: pytest.MonkeyPatch, short: None, used: list[float | None], growth: float | None
) -> None:
    values = iter(used)
    with bench(monkeypatch) as b:
        assert memory_growth(b.engine, (32, 32), 2, lambda: next(values)) == growth
        assert b.engine.is_ready(32, 32)


def test_the_memory_of_a_size_is_that_of_the_largest_batches(monkeypatch: pytest.MonkeyPatch, short: None) -> None:
    monkeypatch.setattr(bench_gpu_times, "BATCHES", ((1,), (2,)))
    monkeypatch.setattr(bench_gpu_parts, "used_mb", lambda: 100.0)
    with DoublingEngine() as engine:
        engine.allow(24, 1)
        found = {
            count: together(bench_gpu_parts.times_of_size({"torch": engine}, (32, 32), [count], lambda: 1.0))
            for count in (1, 2)
        }
    assert "torch_32x32_gpu_memory_mb" not in found[1]
    assert found[2]["torch_32x32_gpu_memory_mb"] == 0.0


def test_batches_for_which_no_time_is_left_are_told() -> None:
    engines = {"torch": DoublingEngine()}
    found = together(bench_gpu_parts.times_of_size(engines, (32, 32), (1, 2), lambda: -1.0))
    assert found == {f"times_torch_32x32_b{count}_left_out": "no time was left" for count in (1, 2)}


def test_a_size_that_is_timed_gives_its_memory_back(
    monkeypatch: pytest.MonkeyPatch, short: None, tmp_path: Path
) -> None:
    opened: list[Door] = []

    def openvino(_: str, weights: str, options: EngineOptions) -> Door:
        opened.append(open_engine("openvino", weights, EngineOptions(cache=tmp_path, slots=options.slots)))
        return opened[-1]

    monkeypatch.setattr(bench_gpu_parts, "open_engine", openvino)
    for figures in bench_gpu_parts.times("tensorrt", "field", 0, None, lambda: 1.0):
        if any("48x32_b" in key for key in figures):
            assert opened[-1].is_ready(48, 32)
            assert not any(engine.is_ready(32, 32) for engine in opened)


# Efficiency


def test_operations_are_those_of_all_convolutions_and_of_the_way_back_to_planes() -> None:
    weights = find_weights("field")
    graph = PictureGraph(load_network(weights.file(NUMBERS))).eval()
    counted = 0

    def count(layer: nn.Module, given: tuple[torch.Tensor], made: torch.Tensor) -> None:
        nonlocal counted
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        rows = made if isinstance(layer, nn.Conv2d) else given[0]
        counted += 2 * rows.numel() * layer.weight[0].numel()

    for layer in graph.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(count)
    y, uv = make_picture("dusk", (64, 48)).y, make_picture("dusk", (64, 48)).uv
    with torch.inference_mode():
        graph(
            torch.from_numpy(y)[None, None],
            torch.from_numpy(uv)[None],
            torch.zeros(1, 2, 3, 4),
            torch.zeros(1, 256),
            torch.zeros(1, 1),
        )
    folded = (64 + 16) // 2 * ((48 + 16) // 2)  # the margin of 8 on every side belongs to it
    assert flop(weights, (64, 48)) == counted + 2 * folded * 48 * 24


def test_the_peak_is_the_best_of_the_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert product_rate("cpu", torch.float32, 16) > 0
    rates = {16: 1e9, 64: 3e9, 128: 2e9}
    monkeypatch.setattr(bench_gpu_matrix, "product_rate", lambda _device, _kind, side: rates[side])
    assert matrix_peak("cpu", torch.float32, (16, 64, 128)) == (3e9, 64)


def test_the_share_of_the_peak_is_by_network_time_and_batch() -> None:
    figures = {"tensorrt_64x48_b8_network_ms": 2.0, "tensorrt_64x48_b8_door_ms": 3.0, "torch_64x48_b8_door_ms": 1.0}
    found = shares(figures, {"64x48": 10**9}, peak=8e12)
    assert found == {
        "tensorrt_64x48_b8_tflops": pytest.approx(4.0),
        "tensorrt_64x48_b8_matrix_share": pytest.approx(0.5),
    }


def test_a_network_whose_operations_are_not_known_has_no_share() -> None:
    assert shares({"torch_64x48_b8_network_ms": 2.0}, {"640x360": 1e9}, peak=1e13) == {}


def test_the_share_of_other_weights_is_by_their_own_operations() -> None:
    figures = {"torch_64x48_b8_network_ms": 2.0, "torch_paper_64x48_b8_network_ms": 4.0}
    found = shares(figures, {"64x48": 10**9, "paper_64x48": 5 * 10**9}, peak=1e13)
    assert found["torch_64x48_b8_tflops"] == pytest.approx(4.0)
    assert found["torch_paper_64x48_b8_tflops"] == pytest.approx(10.0)
    assert found["torch_paper_64x48_b8_matrix_share"] == pytest.approx(1.0)


# Relay


def test_without_time_no_relay_is_begun(tmp_path: Path) -> None:
    found = list(relay_figures(tmp_path, tmp_path, {}, 1.0, lambda: 1.0, lambda: None, (1, 4)))
    assert found == [{"relay_feeds": 0, "relay_limit": "no time was left"}]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """How long relays that send nothing are listened to, in seconds."""
    waited: list[float] = []

    def listen(_viewer: object, _seen: Watched, _relay: object, seconds: float, **_: object) -> None:
        waited.append(seconds)

    monkeypatch.setattr(bench_gpu_relay, "running_relay", lambda *_: nullcontext((None, f"ipc://{tmp_path}/wire")))
    monkeypatch.setattr(bench_gpu_relay, "listen", listen)
    return waited


@pytest.mark.parametrize(
    ("left", "waited", "told"),
    [
        (300.0, 120.0, "0 of them had a picture within 120 s"),
        (30.0, 18.0, "0 of them had a picture within 18 s, then no time was left"),
    ],
)
def test_a_relay_gets_no_more_time_to_start_than_is_left_beside_its_watch(
    tmp_path: Path, waits: list[float], left: float, waited: float, told: str
) -> None:
    *_, last = relay_figures(tmp_path, tmp_path, {}, 1.0, lambda: left, lambda: None, (4,))
    assert waits == [waited] * 2
    assert last["relay_limit"] == f"4 feeds: {told}"


@pytest.mark.skipif(has_driver(), reason="here is a GPU")
def test_a_relay_that_ends_is_told(tmp_path: Path) -> None:
    settings = {"runtime": "tensorrt"}
    found = list(relay_figures(tmp_path, tmp_path, settings, 1.0, lambda: 99.0, lambda: None, (1,)))
    limit = "1 feeds: the relay ended with exit code 1"
    assert found == [{"relay_1_feeds_tries": tries} for tries in (1, 2)] + [{"relay_feeds": 0, "relay_limit": limit}]


@pytest.mark.parametrize(
    ("carries", "slips", "tried", "limit"),
    [
        (1000, 0, [32, 64, 128], "the most that is tried"),
        (90, 0, [32, 64, 128, 128, 80, 96, 96], "96 feeds: too many"),
        (70, 0, [32, 64, 128, 128, 80, 80], "80 feeds: too many"),
        (10, 0, [32, 32, 16, 16, 8], "16 feeds: too many"),
        (0, 0, [32, 32, 16, 16, 8, 8], "8 feeds: too many"),
        (70, 1, [32, 32, 64, 128, 128, 80, 80], "80 feeds: too many"),
    ],
    ids=["all", "many", "some", "few", "none", "one slip"],
)
def test_relays_are_tried_from_the_middle_up_or_down_and_a_slip_is_forgiven(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, carries: int, slips: int, tried: list[int], limit: str
) -> None:
    begun: list[int] = []

    def one_relay(_feed: Path, _folder: Path, count: int, *_: object) -> tuple[bench_gpu_relay.Figures, str]:
        begun.append(count)
        return {"fps": 1.0}, "" if count <= carries and len(begun) > slips else "too many"

    monkeypatch.setattr(bench_gpu_relay, "one_relay", one_relay)
    *_, last = relay_figures(tmp_path, tmp_path, {}, 1.0, lambda: 99.0, lambda: None, (8, 16, 32, 64, 80, 96, 128))
    assert begun == tried
    assert last == {"relay_feeds": max((count for count in tried if count <= carries), default=0), "relay_limit": limit}


@pytest.mark.parametrize(
    ("alone", "shown", "tried"),
    [(True, 0, [32, 32]), (False, 0, [32]), (True, 20, [32, 32, 16, 16, 8, 8]), (False, 20, [32, 32, 16, 16, 8, 8])],
    ids=["alone and silent", "silent", "alone and slow", "slow"],
)
def test_fewer_feeds_are_tried_only_where_the_first_relay_sends_pictures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, alone: bool, shown: int, tried: list[int]
) -> None:
    begun: list[int] = []

    def one_relay(_feed: Path, _folder: Path, count: int, *_: object) -> tuple[bench_gpu_relay.Figures, str]:
        begun.append(count)
        return ({"started": shown} if shown else {}), "not all had a picture"

    monkeypatch.setattr(bench_gpu_relay, "one_relay", one_relay)
    *_, last = relay_figures(tmp_path, tmp_path, {}, 1.0, lambda: 99.0, lambda: None, (8, 16, 32), alone)
    assert begun == tried
    assert last == {"relay_feeds": 0, "relay_limit": f"{tried[-1]} feeds: not all had a picture"}


def test_a_first_relay_that_is_not_alone_leaves_half_of_the_time_to_the_next_runtime(
    tmp_path: Path, waits: list[float]
) -> None:
    list(relay_figures(tmp_path, tmp_path, {}, 1.0, lambda: 100.0, lambda: None, (4,), alone=False))
    assert waits == [38.0]


@pytest.mark.parametrize(("ended", "figures"), [(None, {"started": 2}), (1, {})])
def test_of_a_relay_whose_feeds_do_not_all_begin_it_is_told_how_many_did(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ended: int | None, figures: dict[str, int]
) -> None:
    def listen(_viewer: object, seen: Watched, *_: object, **__: object) -> None:
        seen.first |= {"bench0": 1, "bench1": 1}

    relay = SimpleNamespace(poll=lambda: ended)
    monkeypatch.setattr(bench_gpu_relay, "running_relay", lambda *_: nullcontext((relay, f"ipc://{tmp_path}/wire")))
    monkeypatch.setattr(bench_gpu_relay, "listen", listen)
    told = bench_gpu_relay.one_relay(tmp_path, tmp_path, 4, {}, 1.0, lambda: 300.0, lambda: None)
    assert told == (figures, "2 of them had a picture within 120 s")


def test_the_most_feeds_so_far_are_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench_gpu_relay, "one_relay", lambda *_: ({"fps": 1.0}, ""))
    found = relay_figures(tmp_path, tmp_path, {}, 1.0, lambda: 99.0, lambda: None, (32, 64))
    assert [part["relay_feeds"] for part in found if "relay_feeds" in part] == [32, 64, 64]


@pytest.mark.parametrize(("fps", "told"), [({}, ["32 feeds: none"]), ({"relay_32_feeds_fps": 1.0}, [])])
def test_a_runtime_whose_relay_sends_nothing_has_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fps: dict[str, float], told: list[str]
) -> None:
    monkeypatch.setattr(bench_gpu_relay, "relay_figures", lambda *_: iter([{"relay_32_feeds_tries": 1} | fps, SILENT]))
    monkeypatch.setattr(bench_gpu_parts, "night", lambda folder: folder)
    monkeypatch.setattr(bench_stream, "repeated", lambda *_: tmp_path)
    found = list(bench_gpu_parts.relay("torch", "field", str(tmp_path), None, False, lambda: 99.0))
    assert [part["relay_torch_failed"] for part in found if "relay_torch_failed" in part] == told


@pytest.mark.parametrize(("chosen", "batch"), [(None, EngineSettings().batch), ("5", 5)])
def test_before_the_relay_a_runtime_is_made_ready_for_it_with_the_relays_own_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, short: None, chosen: str | None, batch: int
) -> None:
    """What it builds and compiles then is what the relay needs, which holds for one size of batches only."""
    opened: list[EngineOptions] = []
    prepared: list[tuple[int, int]] = []

    class Prepared(DoublingEngine):
        def prepare(self, width: int, height: int) -> None:
            prepared.append((width, height))
            super().prepare(width, height)

        def submit(self, slots: Sequence[Slot]) -> None:
            assert prepared == [bench_gpu_relay.SIZE]
            super().submit(slots)

    def open_prepared(_runtime: str, _weights: str, options: EngineOptions) -> Door:
        opened.append(options)
        return Prepared()

    monkeypatch.setattr(bench_gpu_parts, "open_engine", open_prepared)
    monkeypatch.setattr(bench_gpu_parts, "TAPE_SECONDS", 1)
    if chosen:
        monkeypatch.setenv("NIGHTBRIDGE__ENGINE__BATCH", chosen)
    found = together(bench_gpu_parts.codecs("torch", "field", str(tmp_path), lambda: 99.0))
    assert found.keys() == {"relay_decode_ms", "relay_encode_ms"}
    assert prepared == [bench_gpu_relay.SIZE]
    assert [options.batch for options in opened] == [batch]


def test_the_recording_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench_stream, "make_feed", lambda _clip, feed, *_: feed.touch())
    feed = bench_gpu_parts.night(tmp_path)
    feed.write_text("kept")
    assert bench_gpu_parts.night(tmp_path).read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["night.ts"]


def a_status(**counts: int) -> Status:
    return Status(state="live", received=0, published=0, under_way=0, dropped={"late": counts["late"]}, lost={})


def test_figures_of_a_relay_are_of_the_time_in_which_it_was_watched() -> None:
    seen = Watched(ages_ms=[10.0, 20.0, 30.0], seconds=2.0, cpu_seconds=1.0)
    seen.first, seen.latest = {"a": 100, "b": 50}, {"a": 149, "b": 99}
    seen.before, seen.after = {"a": a_status(late=7)}, {"a": a_status(late=9)}
    figures = step_figures(seen, codecs_ms=4.0)
    assert (figures["fps"], figures["dropped"], figures["lost"], figures["cores"]) == (50.0, 2, 0, 0.5)
    assert (figures["cpu_ms"], figures["cpu_beside_codecs_ms"], figures["age_p50_ms"]) == (10.0, 6.0, 20.0)
    assert step_figures(seen, codecs_ms=None)["cpu_beside_codecs_ms"] is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"dropped": 3}, "3 pictures were dropped and 0 lost"),
        ({"lost": 1}, "0 pictures were dropped and 1 lost"),
        ({"age_p95_ms": 151.0}, "age_p95_ms is above 150"),
        ({"age_p95_ms": None}, "age_p95_ms is above 150"),
        ({"fps": 97.0}, "of 100 pictures a second fewer came out"),
    ],
)
def test_what_is_too_much_for_a_relay_is_said(change: bench_gpu_relay.Figures, reason: str | None) -> None:
    figures: bench_gpu_relay.Figures = {"dropped": 0, "lost": 0, "age_p95_ms": 149.0, "fps": 99.0}
    assert why_too_many(figures | change, 4) == reason
