"""From numbers to the files that runtimes open; `nightbridge export` runs once, and the tests look at what it made."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from engines import export
from engines.cards import NUMBERS, Card, Weights, sha256, write_card
from engines.checkpoint import load_network, save_network
from engines.colour import Colour
from engines.evaluation.scores import psnr
from engines.network.config import NetworkConfig
from engines.network.neid import Neid, initialise
from engines.padding import past_shapes
from engines.picture import PictureGraph
from engines.runtime import EngineOptions, open_engine
from tests.command import ROOT, nightbridge
from tests.identity import SMALL
from tests.test_runtimes import day, dusk

ONNX = ("fp32.onnx", "fp16.onnx")
MADE = ("fp16.onnx", "fp32.onnx", "int8.bin", "int8.xml", "weights.safetensors")
COLOURS = [Colour("bt601"), Colour("bt709", full_range=True), Colour(grey=True)]
Batch = tuple[np.ndarray, ...]


@dataclass
class Exported:
    """A weights folder, and what the command said when it wrote it."""

    weights: Weights
    said: subprocess.CompletedProcess[str]


def numbers_only(folder: Path) -> Path:
    """Weights as training leaves them: the numbers of a small network, and a card."""
    network = Neid(SMALL)
    initialise(network, torch.Generator().manual_seed(1))
    with torch.no_grad():
        network.light.subpixels.weight.mul_(10)  # a beginner's picture is nearly flat
    folder.mkdir()
    save_network(network, folder / NUMBERS)
    write_card(folder, Card(name="small", network=SMALL.name, files={}))
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    place = tmp_path_factory.mktemp("export")
    folder = numbers_only(place / "small")
    (place / "night").mkdir()
    for seed, light in enumerate((0.1, 1.0)):
        picture = np.random.default_rng(seed).integers(0, 256, (48, 64, 3)) * light
        Image.fromarray(picture.astype(np.uint8)).save(place / "night" / f"{seed}.png")
    (place / "night" / "notes.txt").write_text("no picture")
    said = nightbridge(place, "export", "small", "--calibrate", "night")
    return Exported(Weights(folder), said)


@pytest.fixture(scope="module")
def graph(exported: Exported) -> PictureGraph:
    return PictureGraph(load_network(exported.weights.file(NUMBERS))).eval()


@pytest.fixture(scope="module", params=ONNX)
def session(request: pytest.FixtureRequest, exported: Exported) -> tuple[onnxruntime.InferenceSession, int]:
    """An exported file in ONNX Runtime, and by how many code values it may differ from torch in float32."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    file = exported.weights.file(request.param)
    return onnxruntime.InferenceSession(str(file), options), {"fp32.onnx": 1, "fp16.onnx": 3}[request.param]


def batch(width: int, height: int, count: int) -> Batch:
    """Dark and bright scenes in turn, each with colours of its own."""
    planes = [dusk(width, height, seed) if seed % 2 == 0 else day(width, height) for seed in range(count)]
    coefficients = np.stack([colour.coefficients() for colour in COLOURS[:count]])
    memory = np.random.default_rng(count).uniform(0.4, 0.6, (count, SMALL.memory_size)).astype(np.float32)
    keep = np.full((count, 1), 0.9, np.float32)
    past = [np.full((count, *shape), 90, np.float16) for shape in past_shapes(SMALL, width, height).values()]
    return np.stack([y[None] for y, _ in planes]), np.stack([uv for _, uv in planes]), coefficients, memory, keep, *past


def test_the_command_tells_the_files_that_it_made_and_nothing_else(exported: Exported) -> None:
    assert (exported.said.returncode, exported.said.stderr) == (0, "")
    folder = exported.weights.folder
    assert sorted(path.name for path in folder.iterdir()) == sorted([*MADE, "card.json"])
    assert exported.said.stdout.splitlines() == [f"{sha256(folder / name)}  small/{name}" for name in MADE]
    assert exported.weights.card.files == {name: sha256(folder / name) for name in MADE}
    assert exported.weights.card.name == "small"


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("size", [(64, 48), (51, 37)], ids=str)
def test_one_file_does_every_size_and_batch_as_torch_does(
    session: tuple[onnxruntime.InferenceSession, int], graph: PictureGraph, size: tuple[int, int], count: int
) -> None:
    runner, tolerance = session
    planes = batch(*size, count)
    with torch.inference_mode():
        expected = [plane.numpy() for plane in graph(*map(torch.from_numpy, planes))]
    made = runner.run(None, dict(zip(export.INPUTS, planes, strict=True)))
    width, height = size
    *made, remembered, past_y, past_uv = made
    *expected, memory, last_y, last_uv = expected
    assert [plane.shape for plane in made] == [(count, 1, 2 * height, 2 * width), (count, 2, height, width)]
    np.testing.assert_allclose(remembered, memory, atol=2e-3)
    np.testing.assert_allclose(past_y.astype(float), last_y, atol=tolerance)
    np.testing.assert_allclose(past_uv.astype(float), last_uv, atol=tolerance)
    for plane, reference in zip(made, expected, strict=True):
        assert plane.dtype == np.uint8
        assert np.abs(plane.astype(int) - reference).max() <= tolerance
    assert expected[0].std() > 10, "a flat picture would prove nothing"


def test_both_files_have_the_same_doors_and_one_holds_its_numbers_in_half_the_bytes(exported: Exported) -> None:
    fp32, fp16 = (onnx.load(exported.weights.file(name)) for name in ONNX)
    for model in (fp32, fp16):
        doors = [
            (door.name, onnx.TensorProto.DataType.Name(door.type.tensor_type.elem_type))
            for door in (*model.graph.input, *model.graph.output)
        ]
        inputs = [("y", "UINT8"), ("uv", "UINT8"), ("colour", "FLOAT"), ("memory", "FLOAT"), ("keep", "FLOAT")]
        inputs += [("past_y", "FLOAT16"), ("past_uv", "FLOAT16")]
        outputs = [("y_out", "UINT8"), ("uv_out", "UINT8"), ("memory_out", "FLOAT")]
        outputs += [("past_y_out", "FLOAT16"), ("past_uv_out", "FLOAT16")]
        assert doors == [*inputs, *outputs]
    numbers = [bytes_by_type(model) for model in (fp32, fp16)]
    assert numbers[0].get("FLOAT16", 0) == 0
    assert numbers[1]["FLOAT16"] == pytest.approx(numbers[0]["FLOAT"] / 2, rel=0.02)
    assert numbers[1].get("FLOAT", 0) < 0.02 * numbers[0]["FLOAT"]


def bytes_by_type(model: onnx.ModelProto) -> dict[str, int]:
    """How many bytes of stored numbers there are of each type."""
    total: dict[str, int] = {}
    for tensor in model.graph.initializer:
        name = onnx.TensorProto.DataType.Name(tensor.data_type)
        total[name] = total.get(name, 0) + len(tensor.raw_data)
    return total


@pytest.mark.parametrize("name", [*ONNX, "int8.xml"])
def test_a_file_tells_nothing_of_where_it_was_made(exported: Exported, name: str) -> None:
    data = exported.weights.file(name).read_bytes()
    for word in (str(ROOT), str(exported.weights.folder), "site-packages", ".py"):
        assert word.encode() not in data


def test_int8_runs_in_openvino_and_is_near_fp32(exported: Exported, tmp_path: Path) -> None:
    made = {}
    for precision in ("fp32", "int8"):
        options = EngineOptions(precision=precision, threads=1, cache=tmp_path)
        with open_engine("openvino", str(exported.weights.folder), options) as engine:
            made[precision] = engine.enhance(*dusk(64, 48), Colour("bt709"))
    for plane, reference in zip(made["int8"], made["fp32"], strict=True):
        assert 30 < psnr(plane, reference) < 80, "near, but not the same computation"


@pytest.fixture
def without_the_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of these tests needs no real ONNX file, which takes seconds to make."""

    def write(_: Neid, path: Path, *, half: bool = False) -> None:
        path.write_bytes(b"half" if half else b"whole")

    monkeypatch.setattr(export, "export_onnx", write)


def test_an_old_int8_is_removed_where_there_is_nothing_to_calibrate_with(
    tmp_path: Path, without_the_exporter: None
) -> None:
    folder = numbers_only(tmp_path / "small")
    for name in ("int8.xml", "int8.bin"):
        (folder / name).write_bytes(b"of other numbers")
    export.export_all(Weights(folder), [])
    assert set(Weights(folder).card.files) == {"fp32.onnx", "fp16.onnx", NUMBERS}
    assert not list(folder.glob("int8*"))


def test_an_int8_that_the_card_answers_for_stays_where_there_is_nothing_to_calibrate_with(
    tmp_path: Path, without_the_exporter: None
) -> None:
    folder = numbers_only(tmp_path / "small")
    for name in ("int8.xml", "int8.bin"):
        (folder / name).write_bytes(b"of these numbers")
    card = Weights(folder).card
    card.precision_loss_db = {"int8": 0.02}
    write_card(folder, card)
    export.export_all(Weights(folder), [])
    left = Weights(folder)
    assert set(left.card.files) == {"fp32.onnx", "fp16.onnx", "int8.xml", "int8.bin", NUMBERS}
    assert (folder / "int8.bin").read_bytes() == b"of these numbers"
    assert left.card.precision_loss_db == {"int8": 0.02}


def test_what_was_measured_of_another_int8_is_told_no_more(
    tmp_path: Path, without_the_exporter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quantise(_: Path, xml: Path, pictures: list[np.ndarray], config: NetworkConfig) -> None:
        assert config == SMALL
        for name in ("int8.xml", "int8.bin"):
            (xml.parent / name).write_bytes(b"made from %d pictures" % len(pictures))

    monkeypatch.setattr(export, "export_int8", quantise)
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(tmp_path / "night.png")
    folder = numbers_only(tmp_path / "small")
    for name in ("int8.xml", "int8.bin"):
        (folder / name).write_bytes(b"measured")
    card = Weights(folder).card
    card.precision_loss_db = {"bf16": 0.01, "int8": 0.02}
    card.scores = {"bf16": {"psnr_db": 20.0}, "int8": {"psnr_db": 19.98}}
    write_card(folder, card)
    export.export_all(Weights(folder), [tmp_path / "night.png"])
    left = Weights(folder).card
    assert (folder / "int8.bin").read_bytes() == b"made from 1 pictures"
    assert left.precision_loss_db == {"bf16": 0.01}
    assert left.scores == {"bf16": {"psnr_db": 20.0}}


def test_a_calibration_picture_that_cannot_be_read_leaves_the_folder_as_it_was(
    tmp_path: Path, without_the_exporter: None
) -> None:
    folder = numbers_only(tmp_path / "small")
    (folder / "int8.xml").write_bytes(b"old")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(OSError, match=r"broken\.png: not a picture"):
        export.export_all(Weights(folder), [tmp_path / "broken.png"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_without_pictures_calibrates_nothing_and_is_refused(tmp_path: Path) -> None:
    numbers_only(tmp_path / "small")
    (tmp_path / "night").mkdir()
    done = nightbridge(tmp_path, "export", "small", "--calibrate", "night", COLUMNS="200")
    assert (done.returncode, done.stdout) == (2, "")
    assert "night holds no pictures" in done.stderr
