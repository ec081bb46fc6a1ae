"""A network that doubles as an ONNX file, and the GPU that plans are built for, for tests."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from engines.cards import NUMBERS, Card, Weights, write_card
from engines.nvidia import plans
from engines.nvidia.gpu import Gpu

REMEMBERS = 4
H200 = Gpu("NVIDIA H200", "580.95.05")
DOCUMENTED = onnx.ModelProto(doc_string="changed").SerializeToString()
"""Behind an ONNX file it changes the bytes and not the graph."""


def doubling() -> bytes:
    """A tiny ONNX file with the doors of the exported graph, which makes every pixel four."""
    floats = [("colour", ("N", 2, 3, 4)), ("memory", ("N", REMEMBERS)), ("keep", ("N", 1))]
    planes = [("y", ("N", 1, "H", "W")), ("uv", ("N", 2, "h", "w"))]
    inputs = [helper.make_tensor_value_info(name, TensorProto.UINT8, shape) for name, shape in planes]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in floats]
    pasts = [("past_y", ("N", "P", 16)), ("past_uv", ("N", "P", 8))]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name, shape in pasts]
    outputs = [
        helper.make_tensor_value_info("y_out", TensorProto.UINT8, ("N", 1, "2H", "2W")),
        helper.make_tensor_value_info("uv_out", TensorProto.UINT8, ("N", 2, "2h", "2w")),
        helper.make_tensor_value_info("memory_out", TensorProto.FLOAT, ("N", REMEMBERS)),
        *(helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT16, shape) for name, shape in pasts),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["colour", "axes"], ["mean"], keepdims=1),
        helper.make_node("Reshape", ["mean", "column"], ["tint"]),
        helper.make_node("Mul", ["memory", "keep"], ["kept"]),
        helper.make_node("Add", ["kept", "tint"], ["memory_out"]),
        *(helper.make_node("Identity", [name], [f"{name}_out"]) for name, _ in pasts),
    ]
    for name in ("y", "uv"):
        nodes += [
            helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT),
            helper.make_node("Resize", [f"{name}_float", "", "scales"], [f"{name}_double"]),
            helper.make_node("Cast", [f"{name}_double"], [f"{name}_out"], to=TensorProto.UINT8),
        ]
    numbers = [
        helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
        helper.make_tensor("column", TensorProto.INT64, [2], [-1, 1]),
        helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, 2, 2]),
    ]
    graph = helper.make_graph(nodes, "doubling", inputs, outputs, numbers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def store_doubling(folder: Path, onnx_file: bytes | None = None) -> Weights:
    """A weights folder with such a file in both precisions."""
    folder.mkdir(exist_ok=True)
    (folder / NUMBERS).write_bytes(b"numbers")
    for name in plans.FILES.values():
        (folder / name).write_bytes(onnx_file or doubling())
    write_card(folder, Card(name="doubling", network="neid-live", files={}))
    return Weights(folder)
