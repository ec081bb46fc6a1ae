from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engines.cards import NUMBERS, Card, Weights, write_card
from engines.checkpoint import load_network
from engines.errors import EngineMismatch
from engines.network.config import NEID_LIVE
from engines.network.neid import Neid
from engines.training import train as training
from engines.training.recipe import Recipe, read_recipe
from tests.training import CPU, recipe, sample


def test_stored_weights_build_their_own_network(tmp_path: Path) -> None:
    network = Neid(NEID_LIVE, with_reconstruction=True).eval()
    training.store(network, read_recipe("field"), tmp_path / "mine", {"held_out_psnr_db": 20.5})
    weights = Weights(tmp_path / "mine")
    assert weights.card.scores == {"held_out_psnr_db": 20.5}
    assert weights.card.recipe["network"] == "neid-live"
    picture = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(load_network(weights.file(NUMBERS))(picture), network(picture))


def test_a_run_can_begin_with_stored_weights(tmp_path: Path) -> None:
    network = Neid(NEID_LIVE, with_reconstruction=True).eval()
    training.store(network, Recipe(), tmp_path, {})
    begun = training.Run.begin(Recipe(seed=9), tmp_path / NUMBERS)
    for name, value in network.encoder.state_dict().items():
        assert torch.equal(value, begun.network.encoder.state_dict()[name])


@pytest.mark.parametrize(
    ("stored", "config", "reason"),
    [
        (None, None, "header too large"),
        ({"a": torch.zeros(1)}, None, "does not say which network it is for"),
        ({"a": torch.zeros(1)}, {}, "missing required field `name`"),
        ({"a": torch.zeros(1)}, asdict(NEID_LIVE), "Missing key"),
    ],
    ids=["text", "no network", "no dimensions", "no numbers"],
)
def test_a_file_that_holds_no_network_is_told_by_its_name(
    tmp_path: Path, stored: dict[str, torch.Tensor] | None, config: dict[str, object] | None, reason: str
) -> None:
    path = tmp_path / "numbers.safetensors"
    if stored is None:
        path.write_text("seed = 1\n")
    else:
        save_file(stored, path, None if config is None else {"config": json.dumps(config)})
    with pytest.raises(EngineMismatch, match=f"^{path} .*{reason}") as told:
        load_network(path)
    assert "\n" not in str(told.value)


def test_a_run_cannot_begin_with_the_numbers_of_another_network(tmp_path: Path) -> None:
    training.store(Neid(NEID_LIVE), Recipe(), tmp_path, {})
    with pytest.raises(EngineMismatch, match=r"safetensors holds a network neid-live; the recipe is for neid$"):
        training.Run.begin(Recipe(network="neid"), tmp_path / NUMBERS)


def test_a_narrower_network_begins_with_the_channels_of_a_wider_one(tmp_path: Path) -> None:
    training.store(Neid(NEID_LIVE), Recipe(), tmp_path, {})
    wide = load_network(tmp_path / NUMBERS).state_dict()["light.subpixels.bias"]
    run = training.Run.begin(Recipe(network="neid-lite"), tmp_path / NUMBERS)
    assert torch.equal(run.network.state_dict()["light.subpixels.bias"], wide)
    assert torch.equal(run.average["light.subpixels.bias"], wide)


@pytest.mark.parametrize(
    ("history", "learned"),
    [
        ({}, False),
        ({"hold_out": True}, False),
        ({"hold_out": False}, True),
        ({"stages": [{"hold_out": False}, {"hold_out": True}]}, True),
        ({"stages": [{"hold_out": True}]}, False),
    ],
)
def test_scores_on_scenes_that_the_numbers_to_begin_with_learned_are_known_as_such(
    history: dict[str, object], learned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training.store(Neid(NEID_LIVE, with_reconstruction=True), Recipe(), tmp_path, {})
    card = Weights(tmp_path).card
    card.recipe = history
    write_card(tmp_path, card)
    for start in (tmp_path / NUMBERS, None):  # the numbers need not be named again
        training.train(
            recipe(),
            ([sample()], [], []),
            training.Budget(steps=1),
            tmp_path / "c.pt",
            lambda *_: None,
            start,
            training.HeldOut([sample()]),
        )
        assert training.read_origin(tmp_path / "c.pt")["knows_all"] == learned
        assert ("were trained on the held-out scenes" in caplog.text) == learned
        caplog.clear()


def test_numbers_that_learned_all_scenes_are_known_as_such_stages_later(tmp_path: Path) -> None:
    network = Neid(NEID_LIVE, with_reconstruction=True)
    training.store(network, Recipe(hold_out=False), tmp_path, {})
    start = tmp_path / NUMBERS
    for stage in ("second", "third"):
        folder = tmp_path / stage
        folder.mkdir()
        samples = ([sample()], [], [])
        budget = training.Budget(steps=1)
        made = training.train(recipe(), samples, budget, folder / "c.pt", lambda *_: None, start)
        assert training.read_origin(folder / "c.pt")["knows_all"]
        training.store(made, recipe(), folder, {}, training.read_origin(folder / "c.pt"))
        start = folder / NUMBERS
    assert not Card(name="new", network="neid-live", files={}).learned_all()


def test_engine_files_of_older_numbers_are_gone_when_new_ones_are_stored(tmp_path: Path) -> None:
    for name in ("fp32.onnx", "int8.xml", "int8.bin"):
        (tmp_path / name).write_bytes(b"of older numbers")
    (tmp_path / "checkpoint.pt").write_bytes(b"kept")
    training.store(Neid(NEID_LIVE), Recipe(), tmp_path, {})
    assert Weights(tmp_path).card.files.keys() == {NUMBERS}
    assert {path.name for path in tmp_path.iterdir()} == {NUMBERS, "card.json", "checkpoint.pt"}


def test_files_that_are_nobody_s_engine_files_outlive_new_numbers(tmp_path: Path) -> None:
    foreign = {"start.safetensors": b"to begin with", "calibration.bin": b"one's own", "other.onnx": b"as well"}
    for name, content in foreign.items():
        (tmp_path / name).write_bytes(content)
    training.store(Neid(NEID_LIVE), Recipe(), tmp_path, {})
    assert {name: (tmp_path / name).read_bytes() for name in foreign} == foreign
    assert Weights(tmp_path).card.files.keys() == {NUMBERS}


def test_a_card_tells_the_commit_at_which_its_training_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, commit in enumerate(("0a" * 20, "0b" * 20), start=1):  # the second sitting is at a later one
        monkeypatch.setattr(training, "checked_out", lambda commit=commit: commit)
        budget = training.Budget(steps=number)
        training.train(recipe(), ([sample()], [], []), budget, tmp_path / "c.pt", lambda *_: None, device=CPU)
    training.store(Neid(NEID_LIVE), recipe(), tmp_path, {}, training.read_origin(tmp_path / "c.pt"))
    assert Weights(tmp_path).card.commit == "0a" * 20


def test_the_commit_that_is_checked_out_is_known_where_the_project_is_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ("git", "-C", str(tmp_path), *who, *words)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    (tmp_path / "project").mkdir()
    (tmp_path / "file").write_text("as it was")
    git("add", "file")
    git("commit", "-m", "first")
    git("tag", "-a", "v1", "-m", "v1")
    monkeypatch.setattr(training, "ROOT", tmp_path)
    assert training.checked_out() == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("changed")
    assert training.checked_out() == f"{git('rev-parse', 'HEAD')}-dirty"
    monkeypatch.setattr(training, "ROOT", tmp_path / "project")  # as installed into somebody else's checkout
    assert training.checked_out() == ""


def test_numbers_that_are_stored_already_cost_no_engine_file_and_no_card(tmp_path: Path) -> None:
    network = Neid(NEID_LIVE)
    training.store(network, Recipe(), tmp_path, {})
    (tmp_path / "fp32.onnx").write_bytes(b"of these numbers")
    card = Weights(tmp_path).card
    card.precision_loss_db = {"int8": 0.03}
    write_card(tmp_path, card)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    training.store(network, Recipe(), tmp_path, {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "card.json").write_text("no card")
    training.store(network, Recipe(), tmp_path, {})
    assert Weights(tmp_path).card.files.keys() == {NUMBERS}
