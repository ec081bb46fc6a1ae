from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from engines import train as training
from engines.cards import NUMBERS, Weights
from engines.checkpoint import load_network
from engines.errors import EngineMismatch, EngineMissing
from engines.network.config import NEID_LIVE
from engines.network.neid import Neid
from engines.pairs import Sample, batch, day_samples, night_samples, subsample_chroma


def scene(height: int = 64, width: int = 96) -> np.ndarray:
    """(H, W, 3) uint8: soft gradients with a bright and a coloured patch."""
    rows, columns = np.mgrid[0:height, 0:width]
    picture = np.stack((120 + 60 * np.sin(columns / 15), 100 + rows, 140 - rows), axis=2)
    picture[10:30, 20:50] = (220, 60, 40)
    return np.clip(picture, 0, 255).astype(np.uint8)


def sample() -> Sample:
    bright = scene()
    dark = (bright // 8).astype(np.uint8)
    return Sample(small=np.asarray(Image.fromarray(dark).reduce(2)), large=bright, dark=dark)


def recipe(**changes: object) -> training.Recipe:
    return training.Recipe(batch=1, crop=(32, 48), warm_up_steps=1, mix=(1.0, 0.0, 0.0), **changes)  # type: ignore[arg-type]


def test_one_tiny_pair_is_learned(tmp_path: Path) -> None:
    losses: list[float] = []
    network = training.train(
        recipe(whole=0.0, ema=0.8, learning_rate=1e-3),
        ([sample()], [], []),
        training.Budget(steps=60),
        tmp_path / "checkpoint.pt",
        lambda _step, _share, parts: losses.append(parts["huber"]),
    )
    assert losses[-1] < losses[0] / 4
    assert training.validate(network, [sample()]) > 16


def test_an_interrupted_run_gives_the_same_network_as_an_uninterrupted_one(tmp_path: Path) -> None:
    def run(checkpoint: str, until: int) -> tuple[Neid, list[int]]:
        steps: list[int] = []

        def report(step: int, _share: float, _parts: dict[str, float]) -> None:
            steps.append(step)
            if step == until:
                raise KeyboardInterrupt

        budget = training.Budget(steps=6)
        return training.train(recipe(), ([sample()], [], []), budget, tmp_path / checkpoint, report), steps

    with mock.patch.object(training, "SAVE_EVERY", 2):
        whole, _ = run("whole.pt", 99)
        with pytest.raises(KeyboardInterrupt):
            run("cut.pt", 5)
        resumed, steps = run("cut.pt", 99)
    assert steps == [5, 6]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_stored_weights_build_their_own_network(tmp_path: Path) -> None:
    network = Neid(NEID_LIVE, with_reconstruction=True).eval()
    training.store(network, training.read_recipe("field"), tmp_path / "mine", {"held_out_psnr_db": 20.5})
    weights = Weights(tmp_path / "mine")
    assert weights.card.scores == {"held_out_psnr_db": 20.5}
    assert weights.card.recipe["network"] == "neid-live"
    picture = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(load_network(weights.file(NUMBERS))(picture), network(picture))


def test_the_shipped_recipe_is_the_default_one() -> None:
    assert training.read_recipe("field") == training.Recipe()


def test_every_shipped_recipe_can_be_read() -> None:
    assert [training.read_recipe(path.stem).network for path in training.RECIPES.glob("*.toml")] == ["neid-live"] * 2


def test_a_run_can_begin_with_stored_weights(tmp_path: Path) -> None:
    network = Neid(NEID_LIVE, with_reconstruction=True).eval()
    training.store(network, training.Recipe(), tmp_path, {})
    begun = training.Run.begin(training.Recipe(seed=9), tmp_path / NUMBERS)
    for name, value in network.encoder.state_dict().items():
        assert torch.equal(value, begun.network.encoder.state_dict()[name])


def test_exposure_changes_by_the_gain_at_most_and_picture_by_picture() -> None:
    grey = torch.full((64, 3, 2, 2), 0.2)
    exposed = training.expose(grey, 1.5, np.random.default_rng(1))[:, 0, 0, 0]
    assert 0.2 / 1.5 <= exposed.min() < 0.16
    assert 0.25 < exposed.max() <= 0.2 * 1.5
    assert torch.equal(training.expose(grey, 1.0, np.random.default_rng(1)), grey)


def test_a_wrong_recipe_is_told_by_key(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("batsch = 4\n")
    with pytest.raises(EngineMismatch, match="batsch"):
        training.read_recipe(str(file))
    file.write_text('network = "neit"\n')
    with pytest.raises(EngineMismatch, match="'neit'; it must be one of neid, neid-live"):
        training.read_recipe(str(file))
    with pytest.raises(EngineMissing, match="give one of field"):
        training.read_recipe("feild")


def test_crops_of_a_pair_show_the_same_place() -> None:
    large = scene(128, 192)
    whole = Sample(small=np.asarray(Image.fromarray(large).reduce(2)), large=large, dark=large)
    small, big, dark = batch([whole], (32, 48), 4, np.random.default_rng(2))
    assert small.shape[-2:] in ((32, 48), (48, 32))
    assert torch.nn.functional.avg_pool2d(big, 2).sub(small).abs().max() < 0.01
    assert torch.equal(big, dark)


def test_night_samples_are_dark_and_day_samples_are_not() -> None:
    photo = scene(64, 96)
    (night,), (day,) = night_samples([photo], 1, seed=1), day_samples([photo], 1, seed=1)
    assert night.small.shape == day.small.shape == (32, 48, 3)
    assert night.small.mean() < 0.6 * photo.mean()
    assert day.small.mean() == pytest.approx(photo.mean(), rel=0.05)
    assert (night.large == photo).all()


def test_chroma_of_training_pictures_is_that_of_a_video() -> None:
    grey = torch.full((1, 3, 4, 4), 0.5)
    assert subsample_chroma(grey).sub(grey).abs().max() < 0.01
    stripes = torch.zeros(1, 3, 4, 4)
    stripes[:, 0, :, ::2] = 1
    spread = subsample_chroma(stripes)
    assert spread[0, 0, 0, 0] < 0.9
    assert spread[0, 0, 0, 1] > 0.1
