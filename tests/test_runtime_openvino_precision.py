"""Which precision OpenVINO takes, by the processor and the card of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

from engines import runtime_openvino
from engines.cards import NUMBERS, Card, Weights, write_card
from engines.checkpoint import save_network
from engines.colour import Colour
from engines.errors import EngineMismatch, UnknownName
from engines.export import export_onnx
from engines.runtime import EngineOptions, open_engine
from engines.runtime_openvino import choose_precision
from tests.identity import identity_network

PLAIN = ("FP32", "INT8", "BIN")
WITH_BF16 = ("FP32", "INT8", "BIN", "BF16")


@dataclass
class Processor:
    """An OpenVINO core that tells of another machine's processor."""

    capabilities: tuple[str, ...]

    def get_property(self, device: str, name: str) -> list[str]:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return list(self.capabilities)


def chosen(weights: Weights, capabilities: tuple[str, ...], asked: str = "auto") -> str:
    return choose_precision(weights, cast("openvino.Core", Processor(capabilities)), asked)


def weights_with(folder: Path, losses: dict[str, float], int8: bool) -> Weights:
    folder.mkdir()
    for name in ("weights.safetensors", "fp32.onnx", *(("int8.xml", "int8.bin") if int8 else ())):
        (folder / name).write_bytes(b"")
    write_card(folder, Card(name="mine", network="neid-live", files={}, precision_loss_db=losses))
    return Weights(folder)


@pytest.mark.parametrize(
    ("losses", "int8", "capabilities", "expected"),
    [
        ({"int8": 0.15}, True, PLAIN, "int8"),
        ({"int8": 0.16}, True, PLAIN, "fp32"),
        ({}, True, PLAIN, "fp32"),
        ({"int8": 0.0}, False, PLAIN, "fp32"),
        ({"bf16": 0.0}, True, PLAIN, "fp32"),
        ({}, False, WITH_BF16, "bf16"),
        ({"bf16": 0.15}, False, WITH_BF16, "bf16"),
        ({"bf16": 0.16}, False, WITH_BF16, "fp32"),
        ({"int8": 0.1}, True, WITH_BF16, "int8"),
        ({"int8": 0.2}, True, WITH_BF16, "bf16"),
        ({"bf16": 0.16, "int8": 0.2}, True, WITH_BF16, "fp32"),
    ],
)
def test_auto_takes_a_faster_precision_only_where_the_processor_has_it_and_the_card_says_it_keeps_the_picture(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    losses: dict[str, float],
    int8: bool,
    capabilities: tuple[str, ...],
    expected: str,
) -> None:
    monkeypatch.setattr(runtime_openvino, "CPU_INFO", Path("/dev/null"))
    assert chosen(weights_with(tmp_path / "weights", losses, int8), capabilities) == expected


@pytest.mark.parametrize(
    ("flags", "losses", "expected"),
    [
        ("avx512_bf16 amx_bf16 amx_tile", {"int8": 0.0}, "bf16"),
        ("avx512_bf16 amx_bf16 amx_tile", {"bf16": 0.16, "int8": 0.0}, "int8"),
        ("avx512_bf16 avx512_vnni", {"int8": 0.0}, "int8"),
    ],
)
def test_auto_takes_bf16_rather_than_int8_where_the_processor_multiplies_both_in_its_matrix_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, losses: dict[str, float], expected: str
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n")
    monkeypatch.setattr(runtime_openvino, "CPU_INFO", info)
    assert chosen(weights_with(tmp_path / "weights", losses, int8=True), WITH_BF16) == expected


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_precision_that_is_asked_for_is_taken_whatever_it_loses(tmp_path: Path, precision: str) -> None:
    weights = weights_with(tmp_path / "weights", {"int8": 3.0}, int8=True)
    assert chosen(weights, PLAIN, precision) == precision


def test_bf16_is_refused_where_the_processor_lacks_it(tmp_path: Path) -> None:
    weights = weights_with(tmp_path / "weights", {}, int8=True)
    assert chosen(weights, WITH_BF16, "bf16") == "bf16"
    with pytest.raises(UnknownName, match="no bfloat16; it must be one of auto, fp32, int8"):
        chosen(weights, PLAIN, "bf16")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_without_fp32_are_read_from_fp16(tmp_path: Path, precision: str) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    save_network(identity_network(), folder / NUMBERS)
    export_onnx(identity_network(), folder / "fp16.onnx", half=True)
    write_card(folder, Card(name="large", network="neid-live", files={}))
    options = EngineOptions(precision=precision, cache=tmp_path / "cache")
    y, uv = np.full((48, 64), 90, np.uint8), np.full((2, 24, 32), 120, np.uint8)
    try:
        engine = open_engine("openvino", str(folder), options)
    except EngineMismatch as error:
        pytest.skip(str(error))
    with engine:
        made, chroma = engine.enhance(y, uv, Colour())
    assert np.abs(made.astype(int) - 90).max() <= 1
    assert np.abs(chroma.astype(int) - 120).max() <= 1


def test_files_of_an_earlier_version_are_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = ops.parameter([1, 4], np.float32, name="memory")
    memory.output(0).set_names({"memory"})
    earlier = openvino.Model([ops.result(memory)], [memory])
    monkeypatch.setattr(runtime_openvino, "read_model", lambda *_: earlier)
    engine = open_engine("openvino", "field", EngineOptions(precision="fp32", cache=tmp_path))
    with (
        pytest.raises(EngineMismatch, match=r"exported by an earlier version.*run `nightbridge export .*field`"),
        engine,
    ):
        pass
