"""int8 and fp32 of shipped weights on a processor that adds products in 16 bits: `python -m tests.without_vnni`.

Prints JSON: `kernels` of the convolutions in int8, and `psnr_db`, of each picture's luma in int8 against fp32. With
ONEDNN_MAX_CPU_ISA=AVX2 in its environment OpenVINO takes such a processor's kernels on any.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from engines.cards import find_weights
from engines.evaluation.scores import psnr
from engines.int8.quantise import inputs_of
from engines.network.config import CONFIGS

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
    weights = find_weights("field")
    config = CONFIGS[weights.card.network]
    made: dict[str, dict[str, NDArray[Any]]] = {}
    kernels: set[str] = set()
    for file in ("fp32.onnx", "int8.xml"):
        model = core.read_model(weights.file(file))
        compiled = core.compile_model(model, "CPU", FLOAT32)
        made[file] = {name: compiled(inputs_of(picture, config))["y_out"] for name, picture in pictures().items()}
        kernels = set(convolution_kernels(compiled))
    fidelity = {name: psnr(plane, made["fp32.onnx"][name]) for name, plane in made["int8.xml"].items()}
    print(json.dumps({"kernels": sorted(kernel for kernel in kernels if "I8" in kernel), "psnr_db": fidelity}))


if __name__ == "__main__":
    main()
