"""What the correction of biases asks for; what it does is proved with the whole of int8 in test_quantise.py."""

from __future__ import annotations

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

from engines.int8.unbias import bias_additions, channel_means, unbias


def graph(weight: float, bias: float, name: str = "only") -> openvino.Model:
    """One convolution of one channel, 1x1, of `x` (1, 1, 2, 2)."""
    x = ops.parameter([1, 1, 2, 2], np.float32, name="x")
    made = ops.convolution(x, np.full((1, 1, 1, 1), weight, np.float32), [1, 1], [0, 0], [0, 0], [1, 1], name=name)
    added = ops.add(made, np.full((1, 1, 1, 1), bias, np.float32))
    x.output(0).set_names({"x"})
    return openvino.Model([ops.result(added)], [x])


def shown(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array(values, np.float32).reshape(1, 1, 2, 2)}


def test_the_bias_takes_the_mean_that_is_missing() -> None:
    pictures = [shown(1, 2, 3, 4), shown(0, 0, 0, 2)]  # means 2.5 and 0.5
    wrong, right = graph(weight=1.0, bias=0.5), graph(weight=2.0, bias=0.0)
    unbias(wrong, right, pictures)
    ((mean,),) = channel_means(wrong, list(bias_additions(wrong).values()), pictures)
    assert mean == pytest.approx(2 * 1.5)
    compiled = openvino.Core().compile_model(wrong, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert compiled(shown(0, 0, 0, 0))[0].max() == pytest.approx(3.0 - 1.5)


def test_no_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="no pictures"):
        unbias(graph(1, 0), graph(1, 0), [])


def test_graphs_of_other_convolutions_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="not the same convolutions: one, other"):
        unbias(graph(1, 0, "one"), graph(1, 0, "other"), [shown(1, 1, 1, 1)])
