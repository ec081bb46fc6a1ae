"""What int8 holds in int8 and what it leaves in float, and that its ranges reach from night to day."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from openvino import opset13 as ops

from engines.cards import SHIPPED, Weights
from engines.data.lol import Picture
from engines.export import export_onnx, quiet
from engines.int8.quantise import export_int8, inputs_of, spell_out
from engines.int8.unbias import bias_additions, channel_means
from engines.network.config import CONFIGS
from engines.network.neid import Neid, initialise
from tests.command import ROOT
from tests.identity import SMALL

FLOAT_CONVOLUTIONS = 2 + 1 + 2
"""The first two, one of the decoder, and two of feature fusing."""


def picture(light: float, seed: int = 1) -> Picture:
    """RGB (48, 64, 3) uint8, its brightest value about `light` of 255."""
    return (np.random.default_rng(seed).integers(0, 256, (48, 64, 3)) * light).astype(np.uint8)


CALIBRATION = [*(picture(0.1, seed) for seed in range(9)), picture(1.0)]
"""Many pictures by night and one by day."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32.onnx of a small random network, and int8."""
    folder = tmp_path_factory.mktemp("quantise")
    network = Neid(SMALL).eval()
    initialise(network, torch.Generator().manual_seed(1))
    with torch.no_grad():
        network.light.subpixels.weight.mul_(10)  # a beginner's picture is nearly flat
        for name, numbers in network.named_parameters():
            if name.endswith("bias"):
                numbers.fill_(0.02)
    export_onnx(network, folder / "fp32.onnx")
    with quiet():
        export_int8(folder / "fp32.onnx", folder / "int8.xml", CALIBRATION, SMALL)
    return folder


@pytest.fixture(scope="module")
def int8(folder: Path) -> openvino.Model:
    return openvino.Core().read_model(folder / "int8.xml")


def convolutions(model: openvino.Model) -> list[openvino.Node]:
    """Of both directions, in the order in which they are computed."""
    return [node for node in model.get_ordered_ops() if "Convolution" in node.get_type_name()]


def above(node: openvino.Node, port: int) -> Iterator[openvino.Node]:
    """What an input is made from, back to the next operation that computes: stored weights or a FakeQuantize."""
    source = node.input_value(port).get_node()
    yield source
    if source.get_type_name() in ("Convert", "Multiply", "Subtract", "Reshape", "MaxPool", "Concat"):
        yield from above(source, 0)


def is_int8(convolution: openvino.Node) -> bool:
    """Whether both its activations and its weights have 256 levels; fails where only one has."""
    activations = any(
        node.get_type_name() == "FakeQuantize" or node.get_output_element_type(0) == openvino.Type.u8
        for node in above(convolution, 0)
    )
    weights = openvino.Type.i8 in [node.get_output_element_type(0) for node in above(convolution, 1)]
    assert activations == weights
    return weights


def before_the_second_transposed_one(both: list[openvino.Node]) -> openvino.Node:
    _, second = (place for place, node in enumerate(both) if node.get_type_name() != "Convolution")
    return both[second - 1]


def test_all_convolutions_but_the_first_two_a_sensitive_one_and_those_of_fusing_are_int8(int8: openvino.Model) -> None:
    both = convolutions(int8)
    forward = [node for node in both if node.get_type_name() == "Convolution"]
    quantised = [node for node in forward if is_int8(node)]
    assert len(forward) - len(quantised) == FLOAT_CONVOLUTIONS
    assert len(quantised) > len(forward) / 2
    kept = [node for node in both if not is_int8(node)]
    assert {forward[0], forward[1], before_the_second_transposed_one(both)} <= set(kept)
    assert is_int8(forward[-1])
    assert [node for node in both if list(node.input(1).get_shape())[2:] == [1, 1] and is_int8(node)] == []
    assert [node for node in both if node.get_type_name() != "Convolution" and is_int8(node)] == []


def transposed_sums(model: openvino.Model) -> list[openvino.Node]:
    """What transposed convolutions make, with their biases."""
    return [
        add for add in bias_additions(model).values() if "Backprop" in add.input_value(0).get_node().get_type_name()
    ]


def test_no_quantisation_stands_alone_behind_a_transposed_convolution(int8: openvino.Model) -> None:
    made = transposed_sums(int8)
    readers = [port.get_node().get_type_name() for add in made for port in add.output(0).get_target_inputs()]
    assert len(made) == len(SMALL.widths) - 1
    assert "FakeQuantize" not in readers


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.55), (0.0, 2.55), (-0.37, 0.1)])
def test_quantisation_spelled_out_makes_what_it_made(low: float, high: float) -> None:
    step = (high - low) / 255
    low = -round(-low / step) * step  # as NNCF tunes its ranges: zero is one of the levels
    high = low + 255 * step
    values = np.linspace(low - 0.3, high + 0.3, 1800, dtype=np.float32).reshape(1, 2, 30, 30)
    results = []
    for spelled in (False, True):
        given = ops.parameter([1, 2, 30, 30], np.float32)
        same = np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1)
        sums = ops.add(ops.convolution_backprop_data(given, same, [1, 1]), np.zeros((1, 2, 1, 1), np.float32))
        ends = [np.float32(end) for end in (low, high)]
        model = openvino.Model([ops.fake_quantize(sums, *ends, *ends, levels=256)], [given])
        if spelled:
            spell_out(model)
            assert "FakeQuantize" not in [node.get_type_name() for node in model.get_ops()]
        compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        results.append(compiled(values)[0])
    one, other = results
    assert len(np.unique(one)) == 256
    off = np.abs(other - one) > 1e-5  # a value between two levels may fall to either
    assert off.mean() < 0.01
    np.testing.assert_allclose(other, one, atol=1.01 * step)


def test_weights_take_all_of_their_256_levels(int8: openvino.Model) -> None:
    stored = [
        source.get_data()
        for node in convolutions(int8)
        for source in above(node, 1)
        if source.get_output_element_type(0) == openvino.Type.i8
    ]
    assert min(int(np.abs(numbers.astype(int)).max()) for numbers in stored) >= 127


def test_every_layer_has_the_means_that_it_has_in_float(folder: Path, int8: openvino.Model) -> None:
    """Without the correction they are up to 0.009 off."""
    graph = openvino.convert_model(folder / "fp32.onnx")
    values = [inputs_of(shown, SMALL) for shown in CALIBRATION]
    wanted = channel_means(graph, list(bias_additions(graph).values()), values)
    assert len(wanted) > 10
    for add, target in zip(bias_additions(int8).values(), wanted, strict=True):  # in one order, if not by one name
        [mean] = channel_means(int8, [add], values)
        np.testing.assert_allclose(mean, target, atol=1e-5)


def test_colours_memory_and_the_temporal_filter_stay_in_float(int8: openvino.Model) -> None:
    for node in int8.get_ordered_ops():
        if node.get_type_name() in ("MatMul", "ReduceMean", "Sigmoid", "AvgPool", "Power"):
            assert "FakeQuantize" not in [source.get_node().get_type_name() for source in node.input_values()]


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*/int8.xml")), ids=lambda file: file.parent.name)
def test_shipped_int8_files_keep_of_the_last_picture_what_fp32_keeps(file: Path) -> None:
    config = CONFIGS[Weights(file.parent).card.network]
    first = inputs_of(np.full((48, 64, 3), 90, np.uint8), config)
    kept = []
    for path in (file, file.with_name("fp32.onnx")):
        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        alone = compiled(first)["past_y_out"].astype(float)
        past = {name: (compiled(first)[f"{name}_out"] - 1).astype(np.float16) for name in ("past_y", "past_uv")}
        made = compiled({**first, **past, "keep": np.full((1, 1), 0.905, np.float32)})
        kept.append((alone - made["past_y_out"]).mean())
    np.testing.assert_allclose(kept, 0.756, atol=0.02)


def test_int8_takes_and_gives_what_the_graph_does(folder: Path, int8: openvino.Model) -> None:
    graph = openvino.Core().read_model(folder / "fp32.onnx")

    def ends(model: openvino.Model) -> list[tuple[set[str], Any, str]]:
        return [
            (port.names, port.get_element_type(), str(port.get_partial_shape().rank))
            for port in (*model.inputs, *model.outputs)
        ]

    assert ends(int8) == ends(graph)


def test_inputs_beyond_the_picture_are_those_of_one_without_a_past(int8: openvino.Model) -> None:
    values = inputs_of(picture(1.0), SMALL)
    assert set(values) == {name for port in int8.inputs for name in port.names}
    for name in ("memory", "keep"):
        assert (len(values[name]), values[name].dtype.name, bool(values[name].any())) == (1, "float32", False)
    for name in ("past_y", "past_uv"):
        assert (len(values[name]), values[name].dtype.name, float(values[name].max())) == (1, "float16", -1000)


@pytest.mark.parametrize("light", [0.1, 1.0], ids=["night", "day"])
def test_a_single_bright_picture_widens_the_ranges_to_daylight(folder: Path, light: float) -> None:
    core = openvino.Core()
    made = {}
    for name in ("fp32.onnx", "int8.xml"):
        model = core.read_model(folder / name)
        values = inputs_of(picture(light, seed=11), SMALL)
        made[name] = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(values)["y_out"].astype(
            float
        )
    assert 0 < np.abs(made["int8.xml"] - made["fp32.onnx"]).mean() < 2
    assert made["fp32.onnx"].std() > 5, "not flat"


def test_calibrating_without_pictures_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pictures to calibrate int8 with"):
        export_int8(folder / "fp32.onnx", tmp_path / "int8.xml", [], SMALL)
    assert not list(tmp_path.iterdir())


def test_shipped_weights_bear_sums_that_overflow_16_bits_on_processors_without_vnni() -> None:
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-m", "tests.without_vnni"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=120)
    told = json.loads(done.stdout)
    assert told["kernels"], "some convolutions compute in int8"
    assert [kernel for kernel in told["kernels"] if "avx2" not in kernel] == []
    assert len(told["psnr_db"]) == 5
    assert min(told["psnr_db"].values()) > 34, told
