from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
import torch

from engines.cards import NUMBERS
from engines.checkpoint import load_network
from engines.errors import EngineMismatch, EngineMissing
from engines.training import train as training
from engines.training.recipe import RECIPES, Recipe, learning_rate, read_recipe
from tests.training import CPU, recipe, sample


def test_the_shipped_recipe_is_the_default_one_made_steady() -> None:
    assert read_recipe("field") == Recipe(noise=3.0, twins=0.25, steady_weight=1.5)
    assert not {"steady"} & Recipe(steady_weight=1.5).weights().keys()


def test_every_shipped_recipe_can_be_read() -> None:
    networks = {path.stem: read_recipe(path.stem).network for path in RECIPES.glob("*.toml")}
    ours = {name for name in networks if name.startswith("field")}
    lite = {"field-lite", "field-lite-second", "field-lite-taught", "field-lite-wide", "field-lite-text"}
    lite.add("field-lite-still")
    assert ours == {
        "field",
        "field-second",
        "field-finish",
        "field-last",
        "field-even",
        "field-sharp",
        "field-sizes",
        "field-wide",
        "field-text",
        "field-still",
        *lite,
    }
    assert {networks.pop(name) for name in lite} == {"neid-lite"}
    assert {networks.pop(name) for name in ours - lite} == {"neid-live"}
    assert set(networks) >= {"paper", "paper-best", "table2-unet", "table2-le", "table2-le-dr", "table2-le-dr-ff"}
    assert set(networks.values()) == {"neid"}


def test_the_rows_of_table_2_differ_in_the_network_s_parts_alone() -> None:
    rows = [read_recipe(f"table2-{name}") for name in ("unet", "le", "le-dr", "le-dr-ff")]
    assert [len(row.parts) for row in rows] == [0, 1, 2, 3]
    assert len({msgspec.json.encode(msgspec.structs.replace(row, parts=())) for row in rows}) == 1
    assert [row.with_detail(0) for row in rows] == [False, False, True, True]


def test_the_paper_s_schedule_drops_at_a_quarter_and_at_half_of_121000_steps() -> None:
    paper = read_recipe("paper")
    rates = [learning_rate(paper, step, step / 121_000) for step in (0, 30_249, 30_250, 60_499, 60_500, 120_999)]
    assert rates == [1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6]
    assert (paper.steps, paper.batch, paper.crop) == (121_000, 8, (128, 128))
    assert paper.weights() == {"huber": 1.0, "colour": 0.1, "detail": 0.1}


@pytest.mark.parametrize("name", ["paper", "table2-unet", "table2-le", "table2-le-dr", "table2-le-dr-ff"])
def test_a_recipe_takes_steps_and_its_weights_are_stored(tmp_path: Path, name: str) -> None:
    small = msgspec.structs.replace(read_recipe(name), network="neid-live", batch=1, crop=(32, 32))
    told: list[dict[str, float]] = []
    pairs = ([sample()], [], [])
    network = training.train(
        small,
        pairs,
        training.Budget(steps=2),
        tmp_path / "c.pt",
        lambda _step, _share, parts: told.append(parts),
        device=CPU,
    )
    assert told[0].keys() == small.weights().keys()
    training.store(network, small, tmp_path / "mine", {})
    picture = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(load_network(tmp_path / "mine" / NUMBERS)(picture), network(picture), atol=1e-5)


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    learning = recipe(learning_rate=4e-4, warm_up_steps=100)
    rates = [learning_rate(learning, step, share) for step, share in ((0, 0), (49, 0), (99, 0), (999, 0.5), (1999, 1))]
    assert rates == pytest.approx([4e-6, 2e-4, 4e-4, 2.005e-4, 1e-6], rel=1e-6)


def test_a_wrong_recipe_is_told_by_key(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("batsch = 4\n")
    with pytest.raises(EngineMismatch, match="batsch"):
        read_recipe(str(file))
    file.write_text('network = "neit"\n')
    with pytest.raises(EngineMismatch, match="'neit'; it must be one of neid, neid-live, neid-lite"):
        read_recipe(str(file))
    file.write_text('parts = ["subpixels", "fusing"]\n')
    with pytest.raises(EngineMismatch, match="fusing without detail"):
        read_recipe(str(file))
    file.write_text('select = "best"\nhold_out = false\n')
    with pytest.raises(EngineMismatch, match="needs held-out scenes"):
        read_recipe(str(file))
    file.write_text("exposure_free = 1.5\n")
    with pytest.raises(EngineMismatch, match="exposure_free is 1"):
        read_recipe(str(file))
    for text, told in (
        ("twins = -0.1", "twins is -0.1; it must be from 0 to 1"),
        ("evened = [0.0, 1.5]", "evened is [0.0, 1.5]; all must be from 0 to 1"),
        ("taught = [0.5, -0.5, 0.0]", "taught is [0.5, -0.5, 0.0]; all must be from 0 to 1"),
        ("evened_nearby = 2.0", "evened_nearby is 2.0; it must be from 0 to 1"),
        ("noise = -1.0", "noise is -1.0; it must be a finite number, 0 or more"),
        ("twin_noise = -1.0", "twin_noise is -1.0; it must be a finite number, 0 or more"),
        ("steady_weight = nan", "steady_weight is nan"),
        ("twins = 0.5\nbatch = 3", "batch is 3; with twins it must be even"),
        ("mix = [0.7, 0.2, 0.2]", "mix is [0.7, 0.2, 0.2]; its shares must be 0 or more, and add up to 1"),
        ("mix = [1.5, -0.5, 0.0]", "mix is [1.5, -0.5, 0.0]; its shares"),
        ("batch = 0", "batch is 0; it must be a finite number, 1 or more"),
        ("steps = -5", "steps is -5; it must be a finite number, 1 or more"),
        ("gain = 0.5", "gain is 0.5; it must be a finite number, 1 or more"),
        ("seed = -1", "seed is -1; it must be a finite number, 0 or more"),
        ("learning_rate = nan", "learning_rate is nan; it must be a finite number, 0 or more"),
        ("weight_decay = -1.0", "weight_decay is -1.0; it must be a finite number, 0 or more"),
        ("ssim_weight = -1.0", "ssim_weight is -1.0; it must be a finite number, 0 or more"),
        ("ema = 2.0", "ema is 2.0; it must be from 0 to 1"),
        (
            "drops = [[0.5, 1e-6], [0.25, 1e-5]]",
            "drops has the shares [0.5, 0.25]; they must be from 0 to 1, and ascend",
        ),
        ("drops = [[25.0, 1e-5]]", "drops has the shares [25.0]; they must be from 0 to 1"),
        ("drops = [[0.25, -1e-3]]", "drops has the rates [-0.001]; all must be finite numbers, 0 or more"),
        ("drops = [[0.25, nan]]", "drops has the rates [nan]; all must be finite numbers, 0 or more"),
        ("clip = -1.0", "clip is -1.0; it must be above 0"),
        ("wide = 1.5", "wide is 1.5; it must be from 0 to 1"),
        ("wide = 0.5\ncrop = [208, 304]", "crop is [208, 304]; with wide it must be [192, 304] at most"),
        ("crop = [32, 8]", "crop is [32, 8]; both sides must be 16 or more"),
        ("crop = [32, 16]\nbatch = 2\ntwins = 0.5", "crop is [32, 16]; both sides must be 24 or more"),
        ("huber_weight = 0.0\nssim_weight = 0.0\nchroma_weight = 0.0", "chroma_weight are all 0; at least one must"),
    ):
        file.write_text(text)
        with pytest.raises(EngineMismatch, match=re.escape(told)):
            read_recipe(str(file))
    file.write_bytes(b"network = \xff")
    with pytest.raises(EngineMismatch, match=f"^{file}: "):
        read_recipe(str(file))
    with pytest.raises(EngineMissing, match="give one of field"):
        read_recipe("feild")
