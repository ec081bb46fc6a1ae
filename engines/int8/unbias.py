"""Bias correction: makes the mean output of every quantised layer equal to that in float.

Rounding shifts the mean output of each convolution, layer after layer, which shows as a change of brightness. Empirical
bias correction (Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019) adds
the missing mean to each bias. It goes from the first convolution to the last, so that each is measured after the
earlier ones have been corrected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as ops

Inputs = Mapping[str, NDArray[Any]]
"""A graph's inputs for one picture, by name."""
CHANNELS = 1
"""The channel axis of (N, C, H, W)."""


def unbias(quantised: openvino.Model, exact: openvino.Model, pictures: Sequence[Inputs]) -> None:
    """Change the biases of `quantised` so that every channel has the mean that it has in `exact`, on `pictures`.

    The means are measured with this processor's int8. Raises `ValueError` without pictures, and if the names of the two
    graphs' convolutions differ.
    """
    if not pictures:
        raise ValueError("no pictures to measure the layers' means with; at least one is needed")
    wanted, found = bias_additions(exact), bias_additions(quantised)
    if wanted.keys() != found.keys():
        raise ValueError(f"not the same convolutions: {', '.join(sorted(wanted.keys() ^ found.keys()))}")
    targets = dict(zip(wanted, channel_means(exact, list(wanted.values()), pictures), strict=True))
    for name, add in found.items():
        (mean,) = channel_means(quantised, [add], pictures)
        move_bias(add, targets[name] - mean)


def bias_additions(model: openvino.Model) -> dict[str, openvino.Node]:
    """The bias additions, by the names of their convolutions, in the order of computation."""
    return {
        node.get_friendly_name(): port.get_node()
        for node in model.get_ordered_ops()
        if node.get_type_name() in ("Convolution", "ConvolutionBackpropData")
        for port in node.output(0).get_target_inputs()
        if port.get_node().get_type_name() == "Add" and is_constant(port.get_node().input_value(1))
    }


def is_constant(source: openvino.Output) -> bool:
    """Whether an input is stored in the graph."""
    return bool(source.get_node().get_type_name() == "Constant")


def channel_means(
    model: openvino.Model, nodes: Sequence[openvino.Node], pictures: Sequence[Inputs]
) -> list[NDArray[np.float64]]:
    """The means (C,) of each node's output (1, C, H, W) over all pictures, which count equally."""
    means = [ops.reduce_mean(node, np.array([0, 2, 3]), keep_dims=False) for node in nodes]
    part = openvino.Model([ops.result(mean) for mean in means], model.get_parameters())
    compiled = openvino.Core().compile_model(part, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    sums = [np.zeros(node.get_output_partial_shape(0)[CHANNELS].get_length()) for node in nodes]
    for picture in pictures:
        made = compiled(picture)
        for total, port in zip(sums, compiled.outputs, strict=True):
            total += made[port]
    return [total / len(pictures) for total in sums]


def move_bias(add: openvino.Node, by: NDArray[np.float64]) -> None:
    """Add `by` (C,) to the stored bias of an addition."""
    stored = add.input_value(1).get_node()
    moved = (stored.get_data() + by.reshape(stored.get_data().shape)).astype(np.float32)
    add.input(1).replace_source_output(ops.constant(moved, name=stored.get_friendly_name()).output(0))
