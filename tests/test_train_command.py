from __future__ import annotations

from pathlib import Path

from engines.cards import NUMBERS, Weights
from engines.network.config import NEID_LIVE
from engines.network.neid import Neid
from engines.training import train as training
from engines.training.recipe import Recipe
from tests.command import nightbridge
from tests.training import write_lol

MINE = """
network = "neid-live"
batch = 2
crop = [32, 32]
mix = [1.0, 0.0, 0.0]
"""


def test_the_command_trains_by_a_recipe_goes_on_and_stores_weights(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(MINE)
    lol = write_lol(tmp_path / "lol")
    command = ("train", "mine.toml", "--lol", str(lol), "--steps")
    first = nightbridge(tmp_path, *command, "2")
    assert (first.returncode, first.stdout) == (0, ""), first.stderr
    assert "raw PSNR" in first.stderr
    assert "1 pictures of held-out scenes" in first.stderr
    assert training.read_trials(tmp_path / "runs" / "mine" / "checkpoint.pt")[0] == 2
    weights = Weights(tmp_path / "runs" / "mine")
    assert weights.card.recipe["crop"] == [32, 32]
    assert weights.card.scored == weights.id
    again = nightbridge(tmp_path, *command, "3")
    assert again.returncode == 0, again.stderr
    steps, trials = training.read_trials(tmp_path / "runs" / "mine" / "checkpoint.pt")
    assert (steps, [step for step, _ in trials]) == (3, [2, 3])
    learned = Weights(tmp_path / "runs" / "mine").id
    assert learned != weights.id
    used_up = nightbridge(tmp_path, *command, "3", COLUMNS="200")
    assert used_up.returncode == 0, used_up.stderr
    assert "earlier runs have used up the budget, so nothing was trained: give a larger budget" in used_up.stderr
    assert "used up" not in again.stderr
    assert Weights(tmp_path / "runs" / "mine").id == learned


def test_the_steps_of_a_recipe_end_the_command_s_run(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(MINE + "steps = 3\n")
    done = nightbridge(tmp_path, "train", "mine.toml", "--lol", str(write_lol(tmp_path / "lol")))
    assert done.returncode == 0, done.stderr
    assert training.read_trials(tmp_path / "runs" / "mine" / "checkpoint.pt")[0] == 3


def test_the_command_scores_nothing_on_scenes_that_were_learned_before_and_takes_a_seed(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(MINE)
    training.store(Neid(NEID_LIVE, with_reconstruction=True), Recipe(hold_out=False), tmp_path / "all", {})
    lol = str(write_lol(tmp_path / "lol"))
    start = str(tmp_path / "all" / NUMBERS)
    done = nightbridge(
        tmp_path, "train", "mine.toml", "--lol", lol, "--steps", "1", "--start", start, "--seed", "7", COLUMNS="200"
    )
    assert done.returncode == 0, done.stderr
    assert "were trained on the held-out scenes" in done.stderr
    assert "pictures of held-out scenes" not in done.stderr
    card = Weights(tmp_path / "runs" / "mine").card
    assert (card.scores, card.scored, card.recipe["seed"]) == ({}, "", 7)


def test_the_command_says_what_it_misses(tmp_path: Path) -> None:
    lol = write_lol(tmp_path / "lol")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.toml").write_text(MINE)
    for more, code, told in (
        (("field",), 2, "needs daylight photos: give their folder"),
        (("field-lite-taught", "--photos", "empty"), 2, "has lessons (`taught`): give --teacher"),
        (("paper-best", "--teacher", "mine.toml"), 2, "has no lessons (`taught`)"),
        (("field", "--photos", "empty"), 1, "empty: no photo and no bright video of at least 448x288 pixels"),
        (("feild",), 2, "no recipe 'feild': give one of field"),
    ):
        done = nightbridge(tmp_path, "train", *more, "--lol", str(lol), COLUMNS="200")
        assert done.returncode == code, done.stderr
        assert told in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
