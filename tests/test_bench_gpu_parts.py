"""What `bench --gpu` measures of engines, by a fake driver and the processor: contract, parity, times, arithmetic."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engines import cards
from engines.cards import NUMBERS, SHIPPED, find_weights
from engines.checkpoint import load_network
from engines.door import Door
from engines.errors import EngineError
from engines.picture import INPUTS, OUTPUTS, PictureGraph
from engines.runtime import EngineOptions, open_engine
from engines.runtime_torch import TorchEngine
from tests.doubling import DoublingEngine
from tests.fake_tensorrt import Arrays, Compute
from tests.short_bench import DOOR, SIZES, shorten, together
from tests.tensorrt_bench import bench, counting
from tools.benchmarks import gpu, gpu_matrix, gpu_parts, gpu_times
from tools.benchmarks.gpu import shares
from tools.benchmarks.gpu_checks import Reference, contract, difference, make_picture, parity
from tools.benchmarks.gpu_child import in_child
from tools.benchmarks.gpu_matrix import flop, matrix_peak, product_rate
from tools.benchmarks.gpu_times import hidden, memory_growth, times

ALONE = {"network_ms", "upload_ms", "download_ms", "door_ratio", "copies_hidden"}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few repetitions of small pictures."""
    shorten(monkeypatch)


def network(weights: str = "field") -> Compute:
    """What a plan of these weights computes, in fp32."""
    graph = PictureGraph(load_network(find_weights(weights).file(NUMBERS))).eval()

    def compute(inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            made = graph(*(torch.from_numpy(inputs[name]) for name in INPUTS))
        return dict(zip(OUTPUTS, (part.numpy() for part in made), strict=True))

    return compute


# Contract and parity


def test_an_engine_that_keeps_the_contract_and_equals_the_reference_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(monkeypatch, memory_size=256) as b:
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
    with bench(monkeypatch, memory_size=256) as b:
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
        found = together(gpu_parts.times_of_size(engines, (32, 32), (1,), lambda: 1.0))
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

    monkeypatch.setattr(gpu_parts, "open_engine", openvino)
    found: dict[str, object] = {}
    for runtime in ("tensorrt", "torch"):
        found |= together(gpu_parts.times_of_others(runtime, "field", [1, 2], lambda: 1.0))
    assert found.pop("times_tensorrt_field_failed") == "refused"
    assert found.keys() == {f"torch_field_32x32_b{count}_{name}" for count in (1, 2) for name in DOOR}
    assert [options.batch for options in opened] == [1, 2], "made ready for more than is timed"
    assert all(options.trial_first and options.cuda_only for options in opened)


@pytest.mark.parametrize("name", ["field", "field-lite", "paper"])
def test_weights_that_cannot_be_opened_are_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(*_: object) -> Door:
        raise EngineError("refused")

    monkeypatch.setattr(gpu_parts, "open_engine", refuse)
    found = list(gpu_parts.checks("torch", name, None, lambda: 1.0))
    assert found == [{f"checks_torch_{name}_failed": "refused"}]


def test_parity_is_left_out_where_the_contract_took_all_time(monkeypatch: pytest.MonkeyPatch, short: None) -> None:
    monkeypatch.setattr(gpu_parts, "open_engine", lambda *_: DoublingEngine())
    found = together(gpu_parts.checks("torch", "field", 1, lambda: 0.0))
    assert found.pop("parity_torch_uint8_field_left_out") == "no time was left"
    assert found["contract_torch_uint8_field_doubles"] is True
    assert found["contract_torch_uint8_field_sizes"] == "32x32"
    assert not any(key.startswith("parity") for key in found)


def test_other_weights_are_left_out_where_there_is_no_time_for_them() -> None:
    assert list(gpu_parts.times_of_others("torch", "field", [8], lambda: 0.0)) == [
        {"times_torch_field_left_out": "no time was left"}
    ]
    checks = gpu.checks("torch", "field", "field", None)
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
    monkeypatch.setattr(gpu_times, "BATCHES", ((1,), (2,)))
    monkeypatch.setattr(gpu_parts, "used_mb", lambda: 100.0)
    with DoublingEngine() as engine:
        engine.set_limits(24, 1)
        found = {
            count: together(gpu_parts.times_of_size({"torch": engine}, (32, 32), [count], lambda: 1.0))
            for count in (1, 2)
        }
    assert "torch_32x32_gpu_memory_mb" not in found[1]
    assert found[2]["torch_32x32_gpu_memory_mb"] == 0.0


def test_batches_for_which_no_time_is_left_are_told() -> None:
    engines = {"torch": DoublingEngine()}
    found = together(gpu_parts.times_of_size(engines, (32, 32), (1, 2), lambda: -1.0))
    assert found == {f"times_torch_32x32_b{count}_left_out": "no time was left" for count in (1, 2)}


def test_a_size_that_is_timed_gives_its_memory_back(
    monkeypatch: pytest.MonkeyPatch, short: None, tmp_path: Path
) -> None:
    opened: list[Door] = []

    def openvino(_: str, weights: str, options: EngineOptions) -> Door:
        opened.append(open_engine("openvino", weights, EngineOptions(cache=tmp_path, slots=options.slots)))
        return opened[-1]

    monkeypatch.setattr(gpu_parts, "open_engine", openvino)
    for figures in gpu_parts.times("tensorrt", "field", 0, None, lambda: 1.0):
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
            torch.zeros(1, 1280, 16),
            torch.zeros(1, 1280, 8),
        )
    folded = (64 + 16) // 2 * ((48 + 16) // 2)  # the margin of 8 on every side belongs to it
    assert flop(weights, (64, 48)) == counted + 2 * folded * 48 * 24


def test_the_peak_is_the_best_of_the_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert product_rate("cpu", torch.float32, 16) > 0
    rates = {16: 1e9, 64: 3e9, 128: 2e9}
    monkeypatch.setattr(gpu_matrix, "product_rate", lambda _device, _kind, side: rates[side])
    assert matrix_peak("cpu", torch.float32, (16, 64, 128)) == (3e9, 64)


def test_weights_whose_numbers_are_missing_cost_the_peak_and_other_weights_nothing(
    monkeypatch: pytest.MonkeyPatch, short: None, tmp_path: Path
) -> None:
    for name in ("field", "field-lite", "paper"):
        (tmp_path / name).mkdir()
        for file in ("card.json", NUMBERS):
            (tmp_path / name / file).symlink_to(SHIPPED / name / file)
    (tmp_path / "field-lite" / NUMBERS).unlink()
    monkeypatch.setattr(cards, "SHIPPED", tmp_path)
    monkeypatch.setattr(gpu_matrix, "matrix_peak", lambda: (800e12, 8192))
    found = together(gpu_parts.efficiency("field", lambda: 99.0))
    assert NUMBERS in str(found.pop("efficiency_field-lite_failed"))
    assert (found.pop("matrix_peak_tflops"), found.pop("matrix_peak_side")) == (800.0, 8192)
    assert found.keys() == {"gflop_32x32", "gflop_48x32", "gflop_paper_32x32"}


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
