"""`nightbridge bench --gpu` as a whole, rehearsed without a GPU: the report, and the order and the time of its parts.

How large figures are is no test's business, but that they are there, and that what goes wrong is told.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from engines.cards import find_weights
from engines.errors import EngineMismatch
from engines.nvidia.gpu import Gpu, has_driver
from tests.command import ROOT, nightbridge
from tests.short_bench import DOOR, shorten
from tools.benchmarks import gpu, gpu_child, gpu_findings, gpu_relay, gpu_times
from tools.benchmarks.gpu import why_not
from tools.benchmarks.gpu_child import Child
from tools.benchmarks.gpu_findings import NO_TIME, Findings, print_findings
from tools.benchmarks.gpu_relay import relay_figures


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few repetitions of small pictures."""
    shorten(monkeypatch)


# The command


@pytest.mark.skipif(has_driver(), reason="here is a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path: Path) -> None:
    done = nightbridge(tmp_path, "bench", "--gpu", "--json", "gpu.json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "nightbridge: bench --gpu needs an NVIDIA GPU and its driver, and none was found\n"
    assert not (tmp_path / "gpu.json").exists()


def test_a_runtime_without_a_gpu_is_not_measured_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_gpu", lambda: Gpu("NVIDIA H200", "580"))
    with pytest.raises(EngineMismatch, match="runtime 'openvino': bench --gpu measures one of auto, tensorrt, torch"):
        gpu.bench_gpu("field", 1, None, "openvino")


@pytest.mark.usefixtures("short")
def test_a_whole_run_fills_the_file_and_prints_each_figure_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu, "find_gpu", lambda: Gpu("NVIDIA H200", "580"))
    monkeypatch.setattr(gpu, "ON_CUDA", ("tensorrt", "openvino"))
    monkeypatch.setattr(gpu, "why_not", lambda runtime, *_: "refused" if runtime == "tensorrt" else None)
    monkeypatch.setattr(gpu, "shipped", lambda: ["field"])
    gpu.bench_gpu("field", 30, tmp_path / "gpu.json")
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
    monkeypatch.setattr(gpu, "find_gpu", lambda: Gpu("NVIDIA H200", "580"))
    monkeypatch.setattr(gpu, "why_not", lambda *_: "refused")
    gpu.bench_gpu("field", 30, tmp_path / "gpu.json")
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
        ("import os; os.kill(os.getpid(), 9)", "it ended with signal 9: no reason given"),
        ("import threading; threading.Event().wait()", "no picture within 1 s"),
    ],
)
def test_a_runtime_that_cannot_be_used_is_told_however_it_ends(
    monkeypatch: pytest.MonkeyPatch, program: str, reason: str | None
) -> None:
    monkeypatch.setattr(gpu, "TRY", program)
    monkeypatch.setattr(gpu, "TRY_SECONDS", 1.0 if reason and reason.startswith("no picture") else 30.0)
    assert why_not("torch", "field") == reason


def test_a_runtime_that_hangs_is_told_with_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = """
import faulthandler, threading
faulthandler.dump_traceback_later(2.0, exit=True)
threading.Thread(target=threading.Event().wait, daemon=True).start()
threading.Event().wait()
"""
    monkeypatch.setattr(gpu, "TRY", hanging)
    reason = why_not("torch", "field")
    assert reason is not None
    assert re.fullmatch(r'no picture within 90 s: it hangs in File ".*/threading\.py", line \d+ in wait', reason)


def test_a_runtime_is_tried_with_a_picture() -> None:
    assert why_not("openvino", "field") is None


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
        if seconds < gpu_child.LEAST_SECONDS:
            yield {f"{child.name}_left_out": NO_TIME}
            return
        name = f"{child.name} again" if child.name in self.begun else child.name
        self.begun[name], self.arguments[name] = seconds, child.arguments
        self.now += seconds + gpu_child.KILL_SECONDS if self.slow else 1.0
        yield self.figures.get(child.name, {})

    def why_not(self, _runtime: str, _weights: str, seconds: float) -> None:
        self.now += min(seconds, gpu.TRY_SECONDS) + gpu_child.KILL_SECONDS if self.slow else 1.0

    def run(self, monkeypatch: pytest.MonkeyPatch, minutes: float = 10, weights: str = "field") -> dict[str, object]:
        """The report."""
        kept: list[Findings] = []
        monkeypatch.setattr(gpu_findings, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(gpu, "find_gpu", lambda: Gpu("NVIDIA H200", "580"))
        monkeypatch.setattr(gpu, "why_not", self.why_not)
        monkeypatch.setattr(gpu, "in_child", self.in_child)
        monkeypatch.setattr(gpu, "Findings", lambda *words: kept.append(Findings(*words)) or kept[0])
        gpu.bench_gpu(weights, minutes, None)
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
    assert gpu_times.cells()[0] == ((640, 360), (8, 1, 2, 4))
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


def test_nine_minutes_are_enough_to_try_64_feeds_twice_however_long_each_part_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rehearsal = Rehearsal({"relay_tensorrt": CARRIED}, slow=True)
    rehearsal.run(monkeypatch, 9)
    seconds, begun = rehearsal.begun["relay_tensorrt"], list[int]()
    left = seconds - min(gpu_child.SPARE_SHARE * seconds, gpu_child.SPARE_MOST)

    def one_relay(_feed: Path, _folder: Path, count: int, *_: object) -> tuple[gpu_relay.Figures, str]:
        begun.append(count)
        return {"fps": 1.0}, "too many"

    def time_left() -> float:
        return left - len(begun) * gpu_relay.STEP_SECONDS

    monkeypatch.setattr(gpu_relay, "one_relay", one_relay)
    list(relay_figures(tmp_path, tmp_path, {}, 1.0, time_left, lambda: None, gpu_relay.COUNTS, is_last_runtime=False))
    assert begun == [64, 64]


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
    limits = [value for value in vars(gpu).values() if isinstance(value, gpu.Limit)]
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
