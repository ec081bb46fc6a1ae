from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from engines.cards import NUMBERS, SHIPPED, Card, Weights, find_weights, shipped, write_card
from engines.errors import EngineMismatch, EngineMissing, UnknownName
from tests.command import ROOT, nightbridge


@pytest.mark.parametrize("folder", sorted(SHIPPED.iterdir()), ids=lambda folder: folder.name)
def test_every_shipped_file_is_the_one_its_card_tells_of(folder: Path) -> None:
    weights = find_weights(folder.name)
    assert {path.name for path in folder.iterdir()} == {*weights.card.files, "card.json"}
    for name in weights.card.files:
        weights.file(name)
    assert weights.card.data
    assert weights.card.commit
    assert weights.card.recipe
    assert weights.card.scores
    assert weights.card.scored == weights.id
    assert weights.card.limits


def git(*words: str) -> str | None:
    """What git says of this project; None where it fails."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


@pytest.mark.parametrize("name", shipped())
def test_every_commit_of_a_stage_holds_the_recipe_that_the_stage_was_trained_by(name: str) -> None:
    card = find_weights(name).card
    stages = card.recipe["stages"]
    assert isinstance(stages, list)
    assert card.commit == stages[-1]["commit"]
    for stage in stages:
        if (commit := stage.get("commit")) is None:
            continue
        if not (ROOT / ".git").exists() or (files := git("ls-tree", "-r", "--name-only", commit)) is None:
            pytest.skip("the history is not here")
        (path,) = [file for file in files.splitlines() if file.endswith(f"/recipes/{stage['recipe']}.toml")]
        recipe = tomllib.loads(git("show", f"{commit}:{path}") or "")
        assert recipe
        assert {key: stage[key] for key in recipe} == recipe


def test_a_file_of_another_name_is_not_on_the_card(tmp_path: Path) -> None:
    for name in (NUMBERS, "fp16.onnx", "older.safetensors", "data.bin", "int8.xml.onnx"):
        (tmp_path / name).write_bytes(b"numbers")
    write_card(tmp_path, Card(name="mine", network="neid", files={}))
    assert [*Weights(tmp_path).card.files] == ["fp16.onnx", NUMBERS]


def test_a_card_holds_the_digests_of_its_files(tmp_path: Path) -> None:
    (tmp_path / NUMBERS).write_bytes(b"numbers")
    write_card(tmp_path, Card(name="mine", network="neid", files={}))
    assert Weights(tmp_path).id == "f3c7807d475073ba009bf4801b2d934e9f0126cb96dd19a27dbffcae23a7f5a3"


def test_a_missing_or_broken_card_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineMissing, match=r"it holds no card\.json"):
        Weights(tmp_path)
    (tmp_path / "card.json").write_text('{"name": "mine", "speed": 3}')
    with pytest.raises(EngineMismatch, match="speed"):
        Weights(tmp_path)
    (tmp_path / "card.json").write_bytes(b'{"name": "\xff"}')
    with pytest.raises(EngineMismatch, match=r"card\.json is not a valid card"):
        Weights(tmp_path)
    (tmp_path / "card.json").write_text('{"name": "mine", "network": "neid", "files": {}}')
    with pytest.raises(EngineMissing, match=r"card\.json lists no weights\.safetensors"):
        _ = Weights(tmp_path).id


def test_a_file_that_the_card_does_not_list_is_not_used(tmp_path: Path) -> None:
    (tmp_path / NUMBERS).write_bytes(b"numbers")
    write_card(tmp_path, Card(name="mine", network="neid", files={}))
    (tmp_path / "fp32.onnx").write_bytes(b"a stranger's")
    with pytest.raises(UnknownName, match=r"have no fp32\.onnx; they have weights\.safetensors"):
        Weights(tmp_path).file("fp32.onnx")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A folder that holds a file `in.png` and weights `mine` that were trained and not exported."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / NUMBERS).write_bytes(b"numbers")
    write_card(tmp_path / "mine", Card(name="mine", network="neid", files={}))
    Image.new("RGB", (8, 8)).save(tmp_path / "in.png")
    return tmp_path


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(
    ("engine", "told"),
    [
        (
            'weights = "paper"\nprecision = "int8"',
            f"weights paper ({SHIPPED / 'paper'}) have no int8.xml; they have fp16.onnx, weights.safetensors",
        ),
        (
            'weights = "./mine"',
            "weights mine ({folder}/mine) have no fp32.onnx; they have weights.safetensors; "
            "`nightbridge export {folder}/mine` makes it",
        ),
        (
            'weights = "./mine"\nruntime = "openvino"\nprecision = "int8"',
            "weights mine ({folder}/mine) have no int8.xml; they have weights.safetensors; "
            "`nightbridge export {folder}/mine --calibrate PICTURES` makes it",
        ),
    ],
)
def test_weights_without_the_file_of_the_precision_are_wrong_settings(
    trained: Path, command: str, engine: str, told: str
) -> None:
    (trained / "config.toml").write_text(f"[engine]\n{engine}\n")
    done = nightbridge(trained, command)
    line = told.format(folder=trained)
    assert (done.returncode, done.stderr) == (2, f"nightbridge: config.toml: [engine] {line}\n")


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize("precision", ["auto", "int8"])
def test_weights_without_a_file_that_their_card_tells_of_are_wrong_settings(
    tmp_path: Path, command: str, precision: str
) -> None:
    shutil.copytree(SHIPPED / "field-lite", tmp_path / "mine", ignore=shutil.ignore_patterns("int8.bin"))
    (tmp_path / "config.toml").write_text(
        f'[engine]\nruntime = "openvino"\nweights = "./mine"\nprecision = "{precision}"\n'
    )
    done = nightbridge(tmp_path, command)
    assert (done.returncode, done.stderr) == (
        2,
        f"nightbridge: config.toml: [engine] weights field-lite ({tmp_path}/mine) have no int8.bin: "
        "it is listed in card.json but missing from the folder\n",
    )


@pytest.mark.parametrize(
    ("runtime", "precision", "there", "lacking"),
    [
        ("torch", "auto", [NUMBERS], None),
        ("torch", "auto", ["fp32.onnx"], NUMBERS),
        ("tensorrt", "auto", ["fp16.onnx", "int8.xml"], None),
        ("tensorrt", "auto", ["fp32.onnx"], "fp16.onnx"),
        ("openvino", "bf16", ["fp16.onnx"], None),
        ("openvino", "auto", ["fp32.onnx", "int8.xml"], "int8.bin"),
        ("openvino", "fp32", ["fp32.onnx", "int8.xml"], None),
        ("auto", "auto", ["fp32.onnx"], None),
        ("auto", "auto", ["int8.bin", "int8.xml", "fp16.onnx"], None),
        ("auto", "int8", ["int8.bin", "int8.xml"], None),
        ("auto", "int8", ["fp32.onnx"], "int8.xml"),
    ],
)
def test_the_files_that_may_be_opened_are_required_and_no_others(
    tmp_path: Path, runtime: str, precision: str, there: list[str], lacking: str | None
) -> None:
    for name in there:
        (tmp_path / name).write_bytes(b"numbers")
    write_card(tmp_path, Card(name="mine", network="neid", files={}))
    weights = Weights(tmp_path)
    if lacking is not None:
        with pytest.raises(UnknownName, match=f"have no {lacking}; they have {', '.join(there)}"):
            weights.require(runtime, precision)
        return
    weights.require(runtime, precision)
    (tmp_path / there[0]).unlink()
    with pytest.raises(UnknownName, match=f"have no {there[0]}: it is listed in card.json but missing from the folder"):
        weights.require(runtime, precision)


def test_of_the_files_that_weights_have_only_those_are_told_that_are_there(tmp_path: Path) -> None:
    for name in (NUMBERS, "fp16.onnx"):
        (tmp_path / name).write_bytes(b"numbers")
    write_card(tmp_path, Card(name="mine", network="neid", files={}))
    (tmp_path / "fp16.onnx").unlink()
    with pytest.raises(UnknownName, match=r"have no int8\.xml; they have weights\.safetensors; "):
        Weights(tmp_path).require("auto", "int8")


def test_weights_that_were_not_exported_are_right_for_torch_and_wrong_use_elsewhere(trained: Path) -> None:
    (trained / "config.toml").write_text('[engine]\nweights = "./mine"\nruntime = "torch"\n')
    assert nightbridge(trained, "check").returncode == 0
    done = nightbridge(trained, "enhance", "in.png", "out.png", "--weights", "mine", "--runtime", "openvino")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        "nightbridge: weights mine (mine) have no fp16.onnx; they have weights.safetensors; "
        "`nightbridge export mine` makes it",
    )


def test_the_folder_where_one_is_can_be_named_by_a_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    write_card(folder, Card(name="mine", network="neid-live", files={}))
    monkeypatch.chdir(folder)
    assert find_weights(".").card.name == "mine"
