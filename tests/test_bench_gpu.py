"""`nightbridge bench --gpu`, rehearsed without one: on a fake driver, on the processor, and with OpenVINO.

How large figures are is no test's business, but that they are there, and that what goes wrong is told.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from engines.cards import NUMBERS, find_weights
from engines.checkpoint import load_network
from engines.door import Door
from engines.errors import EngineError, EngineMismatch
from engines.gpu import Gpu, has_driver
from engines.picture import PictureGraph
from engines.runtime import EngineOptions, open_engine
from engines.runtime_torch import TorchEngine
from stream.wire import Status
from tests.fake_tensorrt import Arrays, Compute
from tests.test_check import nightbridge
from tests.test_runtime_tensorrt import bench, counting
from tools import bench_gpu, bench_gpu_checks, bench_gpu_matrix, bench_gpu_relay, bench_gpu_times
from tools.bench_gpu import shares, why_not
from tools.bench_gpu_checks import Reference, contract, difference, make_picture, parity
from tools.bench_gpu_findings import Findings, print_findings
from tools.bench_gpu_matrix import flop, matrix_peak, product_rate
from tools.bench_gpu_relay import Watched, relay_figures, step_figures, why_too_many
from tools.bench_gpu_times import hidden, memory_growth, times

SIZES = ((32, 32), (33, 21))
DOOR = {"door_ms", "latency_ms", "fps"}
ALONE = {"network_ms", "upload_ms", "download_ms", "door_ratio", "copies_hidden"}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few repetitions as can be, of small pictures."""
    monkeypatch.setattr(bench_gpu_times, "ROUNDS", 2)
    monkeypatch.setattr(bench_gpu_times, "TURN_SECONDS", 0)
    monkeypatch.setattr(bench_gpu_times, "SIZES", ((32, 32), (48, 32)))
    monkeypatch.setattr(bench_gpu_times, "BATCHES", (1, 2))
    monkeypatch.setattr(bench_gpu_matrix, "SIDES", (32,))
    monkeypatch.setattr(bench_gpu_relay, "COUNTS", (1,))
    monkeypatch.setattr(bench_gpu_relay, "TRIES", 1)
    monkeypatch.setattr(bench_gpu_relay, "SETTLE_SECONDS", 1.2)
    monkeypatch.setattr(bench_gpu_relay, "WATCH_SECONDS", 2.5)
    monkeypatch.setattr(bench_gpu_relay, "STEP_SECONDS", 0)
    monkeypatch.setattr(bench_gpu, "TAPE_SECONDS", 3)
    monkeypatch.setattr(bench_gpu, "TAPE_COPIES", 9)
    monkeypatch.setattr(bench_gpu_checks, "SIZES", SIZES)


def network(weights: str = "field") -> Compute:
    """What a plan of these weights computes, in fp32."""
    graph = PictureGraph(load_network(find_weights(weights).file(NUMBERS))).eval()

    def compute(inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            made = graph(*(torch.from_numpy(inputs[name]) for name in ("y", "uv", "colour", "memory", "keep")))
        return dict(zip(("y_out", "uv_out", "memory_out"), (part.numpy() for part in made), strict=True))

    return compute


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
    monkeypatch.setattr(bench_gpu, "why_not", lambda runtime, _: "refused" if runtime == "tensorrt" else None)
    monkeypatch.setattr(bench_gpu_matrix, "matrix_peak", lambda: matrix_peak("cpu", torch.float32, (32,)))
    monkeypatch.setattr(bench_gpu, "shipped", lambda: ["field"])
    bench_gpu.bench_gpu("field", 5, tmp_path / "gpu.json")
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
    bench_gpu.bench_gpu("field", 1, tmp_path / "gpu.json")
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
        found = dict(
            item for part in bench_gpu.times_of_size(engines, (32, 32), (1,), lambda: 1.0) for item in part.items()
        )
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
    monkeypatch.setattr(bench_gpu_times, "OTHERS_SIZE", (32, 32))
    monkeypatch.setattr(bench_gpu_times, "OTHERS_BATCHES", (1, 2))

    def openvino(runtime: str, weights: str, options: EngineOptions) -> Door:
        if runtime == "tensorrt":
            raise EngineError("refused")
        return open_engine("openvino", weights, EngineOptions(cache=tmp_path, slots=options.slots))

    monkeypatch.setattr(bench_gpu, "open_engine", openvino)
    found: dict[str, object] = {}
    for figures in bench_gpu.times_of_others(["tensorrt", "torch"], "field", lambda: 1.0):
        found |= figures
    assert found.pop("times_tensorrt_field_failed") == "refused"
    assert found.keys() == {f"torch_field_32x32_b{count}_{name}" for count in (1, 2) for name in DOOR}


def test_weights_that_cannot_be_opened_are_told_and_the_others_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Door:
        raise EngineError("refused")

    monkeypatch.setattr(bench_gpu, "open_engine", refuse)
    found = list(bench_gpu.checks("torch", "field", lambda: 1.0))
    assert found == [{f"checks_torch_{name}_failed": "refused"} for name in ("field", "field-lite", "paper")]


def test_other_weights_are_left_out_where_there_is_no_time_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Door:
        raise EngineError("refused")

    monkeypatch.setattr(bench_gpu, "open_engine", refuse)
    assert list(bench_gpu.checks("torch", "paper", lambda: 0.0)) == [
        {"checks_torch_paper_failed": "refused"},
        {"checks_torch_field_left_out": "no time was left"},
        {"checks_torch_field-lite_left_out": "no time was left"},
    ]
    assert list(bench_gpu.times_of_others(["torch"], "field", lambda: 0.0)) == [
        {"times_torch_field_left_out": "no time was left"}
    ]


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


def test_batches_for_which_no_time_is_left_are_told() -> None:
    found = dict(item for part in bench_gpu.times_of_size({}, (32, 32), (1, 2), lambda: -1.0) for item in part.items())
    assert found == {f"times_32x32_b{count}_left_out": "no time was left" for count in (1, 2)}


def test_a_size_that_is_timed_gives_its_memory_back(
    monkeypatch: pytest.MonkeyPatch, short: None, tmp_path: Path
) -> None:
    opened = []

    def openvino(_: str, weights: str, options: EngineOptions) -> Door:
        opened.append(open_engine("openvino", weights, EngineOptions(cache=tmp_path, slots=options.slots)))
        return opened[-1]

    monkeypatch.setattr(bench_gpu, "open_engine", openvino)
    for figures in bench_gpu.times(["tensorrt"], "field", lambda: 1.0):
        if any("48x32_b" in key for key in figures):
            assert opened[0].is_ready(48, 32)
            assert not opened[0].is_ready(32, 32)


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


@pytest.mark.parametrize(
    ("left", "waited", "told"),
    [
        (300.0, 120.0, "0 of them had a picture within 120 s"),
        (30.0, 18.0, "0 of them had a picture within 18 s, then no time was left"),
    ],
)
def test_a_relay_gets_no_more_time_to_start_than_is_left_beside_its_watch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, left: float, waited: float, told: str
) -> None:
    waits: list[float] = []

    def listen(_viewer: object, _seen: Watched, _relay: object, seconds: float, **_: object) -> None:
        waits.append(seconds)

    monkeypatch.setattr(bench_gpu_relay, "running_relay", lambda *_: nullcontext((None, f"ipc://{tmp_path}/wire")))
    monkeypatch.setattr(bench_gpu_relay, "listen", listen)
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


def a_status(**counts: int) -> Status:
    return Status(state="live", received=0, published=0, under_way=0, dropped={"late": counts["late"]}, lost={})


def test_figures_of_a_relay_are_of_the_time_in_which_it_was_watched() -> None:
    seen = Watched(ages_ms=[10.0, 20.0, 30.0], seconds=2.0, cpu_seconds=1.0)
    seen.first, seen.latest = {"a": 100, "b": 50}, {"a": 149, "b": 99}
    seen.before, seen.after = {"a": a_status(late=7)}, {"a": a_status(late=9)}
    figures = step_figures(seen, codecs_ms=4.0)
    assert (figures["fps"], figures["dropped"], figures["lost"], figures["cores"]) == (50.0, 2, 0, 0.5)
    assert (figures["cpu_ms"], figures["cpu_beside_codecs_ms"], figures["age_p50_ms"]) == (10.0, 6.0, 20.0)


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
