"""The picture graph in int8 for OpenVINO, calibrated on pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engines.colour import Colour, to_planes
from engines.data.lol import Picture
from engines.door import no_past
from engines.int8.unbias import Inputs, bias_additions, unbias
from engines.network.config import NetworkConfig
from engines.padding import past_shapes

if TYPE_CHECKING:
    import openvino
    from nncf.quantization.range_estimator import RangeEstimatorParameters

QUANTISED = ("Convolution", "PRelu", "MaxPool", "Concat")
"""Operations between which numbers may be int8. All others stay in float: the colour conversion, feature fusing and its
memory, the transposed convolutions and the temporal filter."""
LEVELS = 256
"""Levels of an activation."""
CLIPPED = 0.001
"""Share of a picture's values that may lie below an activation's range, and share that may lie above it."""


def export_int8(onnx_file: Path, xml_file: Path, pictures: Sequence[Picture], config: NetworkConfig) -> None:
    """Write the graph of `onnx_file` quantised with NNCF: int8 weights, and activations with 256 levels a tensor.

    `pictures`, RGB (H, W, 3) uint8, must include the darkest and the brightest that will come. Raises `ValueError`
    without any. The graph should be that of `engines.int8.equalise.equalised`.

    Light differs tenfold between night and day, yet a tensor has one range. The loss of raw PSNR against fp32, on 36
    scenes of LOL with earlier weights `field`, is 0.94 dB with full ranges; 0.22 dB if each picture's `CLIPPED`
    extremes are left out and the most sensitive convolutions stay in float; and 0.00 to 0.14 dB, depending on the
    pictures, if the channels are equalised too. Ranges averaged over pictures would be as good by night, but clip
    daylight to 19 dB against fp32; here it keeps 43 dB or more. 83 % of the multiply-accumulates are int8.

    By night, the second convolution of the decoder's coarsest level reads a quarter to two fifths of the range that the
    brightest pictures need. In int8 it would cost 0.06 dB on those scenes, and on dark gradients, as of sky and sea,
    4 dB against fp32 (39 instead of 43); in bfloat16 it costs 3 % of the time. Putting the network's second convolution
    and the transposed ones into int8 would save 6 % of the time and lose 0.04 dB, or 0.07 dB after scaling.

    Weights use all of their 256 levels, and `unbias` corrects the means. A processor without VNNI adds two products in
    16 bits, which such weights sometimes overflow; that costs less than halving the levels would.
    """
    import nncf
    import openvino

    if not pictures:
        raise ValueError("no pictures to calibrate int8 with; at least one is needed")
    model = openvino.convert_model(onnx_file)  # NNCF finds biases in a simplified graph only
    quantised = nncf.quantize(
        model,
        nncf.Dataset(list(pictures), lambda picture: inputs_of(picture, config)),
        subset_size=len(pictures),
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(names=kept_convolutions(model), types=kept_types(model)),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.DISABLE,
            disable_bias_correction=True,
            activations_range_estimator_params=ranges(),
        ),
    )
    spell_out(quantised)
    unbias(quantised, model, [inputs_of(picture, config) for picture in pictures])
    openvino.save_model(quantised, xml_file, compress_to_fp16=False)


def spell_out(model: openvino.Model) -> None:
    """Replace the FakeQuantize after each transposed convolution by arithmetic that gives the same bytes.

    OpenVINO fuses a FakeQuantize into a convolution, but not into a transposed one in float. On its own it wants
    another memory layout, so it and both sides of the concatenation that follows are reordered there and back. Without
    those copies a picture takes 3 % less time, and 20 to 24 % less on two cores that share no cache
    (docs/benchmarks.md).
    """
    from openvino import opset13 as ops

    transposed = [add for add in bias_additions(model).values() if type_above(add) == "ConvolutionBackpropData"]
    for node in [port.get_node() for add in transposed for port in add.output(0).get_target_inputs()]:
        if node.get_type_name() != "FakeQuantize":
            continue
        low, high = (node.input_value(port).get_node().get_data() for port in (1, 2))
        step = ((high - low) / np.float32(LEVELS - 1)).astype(np.float32)
        zero = np.round(-low / step)
        levels = ops.round(ops.add(ops.multiply(node.input_value(0), 1 / step), zero), "half_to_even")
        stored = ops.convert(ops.clamp(levels, 0, LEVELS - 1), "u8")
        restored = ops.multiply(ops.subtract(ops.convert(stored, "f32"), zero), step)
        node.output(0).replace(restored.output(0))


def inputs_of(picture: Picture, config: NetworkConfig) -> Inputs:
    """The graph's inputs for one picture without a past."""
    y, uv = to_planes(picture, Colour())
    height, width = y.shape
    return {
        "y": y[None, None],
        "uv": uv[None],
        "colour": Colour().coefficients()[None],
        "memory": np.zeros((1, config.memory_size), np.float32),
        "keep": np.zeros((1, 1), np.float32),
        **no_past(past_shapes(config, width, height)),
    }


def kept_types(model: openvino.Model) -> list[str]:
    """The types of all operations that stay in float."""
    types = {node.get_type_name() for node in model.get_ordered_ops()}
    return sorted(types - {*QUANTISED, "Parameter", "Constant", "Result"})


def kept_convolutions(model: openvino.Model) -> list[str]:
    """Names of convolutions that stay in float: the first two, those of feature fusing (1x1), and the second one of the
    decoder's coarsest level, the last before the second transposed convolution."""
    nodes = model.get_ordered_ops()
    convolutions = [node for node in nodes if node.get_type_name() == "Convolution"]
    transposed = [node for node in nodes if node.get_type_name() == "ConvolutionBackpropData"]
    fusing = [node for node in convolutions if list(node.input(1).get_shape())[2:] == [1, 1]]
    coarsest = [maker(node) for node in transposed[1:2]]
    return sorted({node.get_friendly_name() for node in (*convolutions[:2], *fusing, *coarsest)})


def maker(node: openvino.Node) -> openvino.Node:
    """The convolution that makes a node's first input."""
    source = node.input_value(0).get_node()
    return source if source.get_type_name() == "Convolution" else maker(source)


def type_above(node: openvino.Node) -> str:
    """The operation that makes a node's first input."""
    return str(node.input_value(0).get_node().get_type_name())


def ranges() -> RangeEstimatorParameters:
    """How activation ranges are estimated: over the darkest and the brightest picture, without the extremes of each."""
    from nncf.quantization.range_estimator import (
        AggregatorType,
        RangeEstimatorParameters,
        StatisticsCollectorParameters,
        StatisticsType,
    )

    lowest, highest = (
        StatisticsCollectorParameters(StatisticsType.QUANTILE, aggregator, quantile_outlier_prob=CLIPPED)
        for aggregator in (AggregatorType.MIN, AggregatorType.MAX)
    )
    return RangeEstimatorParameters(min=lowest, max=highest)
