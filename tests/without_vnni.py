"""What shipped weights make in int8: `python -m tests.without_vnni FILE` writes each picture's luma to FILE (.npz).

Prints JSON: `kernels` of the convolutions in int8. With ONEDNN_MAX_CPU_ISA=AVX2 in its environment OpenVINO takes those
of a processor without VNNI, which adds products in 16 bits, on any.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import numpy as np
import openvino
from numpy.typing import NDArray

from engines.cards import find_weights
from engines.quantise import inputs_of

HEIGHT, WIDTH = 96, 128
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}


def pictures() -> dict[str, NDArray[np.uint8]]:
    """RGB (H, W, 3) uint8: what makes the largest sums, and a dark noise."""
    noise = np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH, 3))
    squares = np.indices((HEIGHT, WIDTH)).sum(0)[..., None] // 8 % 2
    made = {"white": np.full_like(noise, 255), "noise": noise, "red": noise * [1, 0, 0], "night": noise // 8}
    return {name: values.astype(np.uint8) for name, values in {**made, "squares": squares * [255, 255, 255]}.items()}


def convolution_kernels(compiled: openvino.CompiledModel) -> Iterator[str]:
    """Names of the code that computes each convolution; they end in the type that is multiplied."""
    for node in compiled.get_runtime_model().get_ops():
        if node.get_rt_info()["layerType"].value == "Convolution":
            yield node.get_rt_info()["primitiveType"].value


def main() -> None:
    """See above."""
    core = openvino.Core()
    model = core.read_model(find_weights("field").file("int8.xml"))
    compiled = core.compile_model(model, "CPU", FLOAT32)
    made = {name: compiled(inputs_of(model, picture))["y_out"] for name, picture in pictures().items()}
    np.savez(sys.argv[1], **made)
    print(json.dumps({"kernels": sorted({kernel for kernel in convolution_kernels(compiled) if "I8" in kernel})}))


if __name__ == "__main__":
    main()
