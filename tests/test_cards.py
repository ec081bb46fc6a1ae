from __future__ import annotations

from pathlib import Path

import pytest

from engines.cards import NUMBERS, SHIPPED, Card, Weights, find_weights, write_card
from engines.errors import EngineMismatch, EngineMissing


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
    with pytest.raises(EngineMismatch, match=r"card\.json is no card"):
        Weights(tmp_path)
    (tmp_path / "card.json").write_text('{"name": "mine", "network": "neid", "files": {}}')
    with pytest.raises(EngineMissing, match=r"card\.json tells of no weights\.safetensors"):
        _ = Weights(tmp_path).id


def test_a_file_that_the_card_does_not_list_is_not_used(tmp_path: Path) -> None:
    (tmp_path / NUMBERS).write_bytes(b"numbers")
    write_card(tmp_path, Card(name="mine", network="neid", files={}))
    (tmp_path / "fp32.onnx").write_bytes(b"a stranger's")
    with pytest.raises(EngineMissing, match=r"have no fp32\.onnx; they have weights\.safetensors"):
        Weights(tmp_path).file("fp32.onnx")


def test_the_folder_where_one_is_can_be_named_by_a_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    write_card(folder, Card(name="mine", network="neid-live", files={}))
    monkeypatch.chdir(folder)
    assert find_weights(".").card.name == "mine"
