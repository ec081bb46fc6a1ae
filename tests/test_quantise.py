"""What int8 holds in int8 and what it leaves in float, and that its ranges reach from night to day."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch

from engines.data.lol import Picture
from engines.export import export_onnx, quiet
from engines.network.neid import Neid, initialise
from engines.quantise import export_int8, inputs_of
from tests.identity import SMALL

FLOAT_CONVOLUTIONS = 2 + 1 + 2
"""The first two, the last one and two of feature fusing."""


def picture(light: float, seed: int = 1) -> Picture:
    """RGB (48, 64, 3) uint8, its brightest value about `light` of 255."""
    return (np.random.default_rng(seed).integers(0, 256, (48, 64, 3)) * light).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32.onnx of a small random network, and int8 calibrated on many pictures by night and one by day."""
    folder = tmp_path_factory.mktemp("quantise")
    network = Neid(SMALL).eval()
    initialise(network, torch.Generator().manual_seed(1))
    with torch.no_grad():
        network.light.subpixels.weight.mul_(10)  # a beginner's picture is nearly flat
        for name, numbers in network.named_parameters():
            if name.endswith("bias"):
                numbers.fill_(0.02)  # NNCF corrects no zeros
    export_onnx(network, folder / "fp32.onnx")
    with quiet():
        night = [picture(0.1, seed) for seed in range(9)]
        export_int8(folder / "fp32.onnx", folder / "int8.xml", [*night, picture(1.0)])
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
    activations = "FakeQuantize" in [node.get_type_name() for node in above(convolution, 0)]
    weights = openvino.Type.i8 in [node.get_output_element_type(0) for node in above(convolution, 1)]
    assert activations == weights
    return weights


def test_all_convolutions_but_those_at_the_ends_and_of_fusing_are_int8(int8: openvino.Model) -> None:
    both = convolutions(int8)
    forward = [node for node in both if node.get_type_name() == "Convolution"]
    quantised = [node for node in forward if is_int8(node)]
    assert len(forward) - len(quantised) == FLOAT_CONVOLUTIONS
    assert len(quantised) > len(forward) / 2
    kept = [node for node in both if not is_int8(node)]
    assert {forward[0], forward[1], forward[-1]} <= set(kept)
    assert [node for node in both if list(node.input(1).get_shape())[2:] == [1, 1] and is_int8(node)] == []
    assert [node for node in both if node.get_type_name() != "Convolution" and is_int8(node)] == []


def test_weights_leave_room_for_processors_that_add_in_16_bits(int8: openvino.Model) -> None:
    stored = [
        source.get_data()
        for node in convolutions(int8)
        for source in above(node, 1)
        if source.get_output_element_type(0) == openvino.Type.i8
    ]
    assert 60 < max(int(np.abs(numbers.astype(int)).max()) for numbers in stored) <= 64


def biases(model: openvino.Model) -> list[np.ndarray[Any, Any]]:
    """What is added to every convolution, in the order in which they are computed."""
    after = [
        port.get_node()
        for node in convolutions(model)
        if node.get_type_name() == "Convolution"
        for port in node.output(0).get_target_inputs()
        if port.get_node().get_type_name() == "Add"
    ]
    return [node.input_value(1).get_node().get_data().ravel() for node in after]


def test_biases_are_corrected_for_what_rounding_adds(folder: Path, int8: openvino.Model) -> None:
    graph = openvino.convert_model(folder / "fp32.onnx")
    changed = [not np.array_equal(*both) for both in zip(biases(int8), biases(graph), strict=True)]
    quantised = [is_int8(node) for node in convolutions(int8) if node.get_type_name() == "Convolution"]
    assert changed == quantised


def test_colours_and_memory_stay_in_float(int8: openvino.Model) -> None:
    for node in int8.get_ordered_ops():
        if node.get_type_name() in ("MatMul", "ReduceMean", "Sigmoid"):
            assert "FakeQuantize" not in [source.get_node().get_type_name() for source in node.input_values()]


def test_int8_takes_and_gives_what_the_graph_does(folder: Path, int8: openvino.Model) -> None:
    graph = openvino.Core().read_model(folder / "fp32.onnx")

    def ends(model: openvino.Model) -> list[tuple[set[str], Any, str]]:
        return [
            (port.names, port.get_element_type(), str(port.get_partial_shape().rank))
            for port in (*model.inputs, *model.outputs)
        ]

    assert ends(int8) == ends(graph)


def test_inputs_beyond_the_picture_are_zeros_of_one_picture(int8: openvino.Model) -> None:
    values = inputs_of(int8, picture(1.0))
    assert set(values) == {name for port in int8.inputs for name in port.names}
    for name in set(values) - {"y", "uv", "colour"}:
        assert (len(values[name]), values[name].dtype.name, bool(values[name].any())) == (1, "float32", False)


@pytest.mark.parametrize("light", [0.1, 1.0], ids=["night", "day"])
def test_a_single_bright_picture_widens_the_ranges_to_daylight(folder: Path, light: float) -> None:
    core = openvino.Core()
    made = {}
    for name in ("fp32.onnx", "int8.xml"):
        model = core.read_model(folder / name)
        values = inputs_of(model, picture(light, seed=11))
        made[name] = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(values)["y_out"].astype(
            float
        )
    assert 0 < np.abs(made["int8.xml"] - made["fp32.onnx"]).mean() < 2
    assert made["fp32.onnx"].std() > 5, "not flat"


def test_calibrating_without_pictures_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pictures to calibrate int8 with"):
        export_int8(folder / "fp32.onnx", tmp_path / "int8.xml", [])
    assert not list(tmp_path.iterdir())
