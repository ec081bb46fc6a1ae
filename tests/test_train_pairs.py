from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from engines.data.pairs import Sample, batch
from engines.training import train as training
from engines.training.recipe import Recipe
from engines.training.steps import Lesson, Steps
from tests.training import CPU, recipe, sample


@pytest.mark.parametrize(
    ("changes", "ratios"),
    [
        ({"evened": (0.0, 0.5)}, (4.0, 2.0)),
        ({"evened": (0.5, 0.0)}, (2.0, 4.0)),
        ({"evened_nearby": 0.5}, (2.0, 4.0)),
    ],
)
def test_lol_and_nights_are_each_learned_at_an_evened_brightness_and_days_as_they_are(
    changes: dict[str, object], ratios: tuple[float, float], tmp_path: Path
) -> None:
    """By half of the way on a scale of ratios: a quarter of the brightness becomes a half."""
    bright, levels = sample(), []
    dim = replace(bright, large=(bright.large // 4).astype(np.uint8))

    def spy(
        plan: Recipe, run: training.Run, samples: Sequence[Sequence[Sample]], taught: Sequence[Lesson | None]
    ) -> Steps:
        levels.extend([pair.large.mean() for pair in kind] for kind in samples)
        return training_steps(plan, run, samples, taught)

    training_steps = training.open_steps
    with mock.patch.object(training, "open_steps", spy):
        pairs, budget = ([bright, dim],) * 3, training.Budget(steps=1)
        training.train(recipe(**changes), pairs, budget, tmp_path / "c.pt", lambda *_: None, device=CPU)
    lol, night, day = levels
    assert (lol[0] / lol[1], night[0] / night[1]) == pytest.approx(ratios, rel=0.03)
    assert day == [bright.large.mean(), dim.large.mean()]


def test_nights_and_days_have_crops_of_two_sizes_large_ones_from_what_is_shown_large() -> None:
    small, large = (160, 240), (192, 304)
    learning = recipe(mix=(0.0, 0.5, 0.5), crop=(192, 288), batch=4)
    sizes = [[], [small, large, small], [large, small]]
    drawn = [training.choose(learning, sizes, 0.0, np.random.default_rng(seed)) for seed in range(60)]
    assert {chosen.size for _, chosen in drawn} == {(144, 224), (192, 288)}
    for kind, chosen in drawn:
        shown = {sizes[kind][place] for place in chosen.places[:, 0].tolist()}
        assert shown == {large} if chosen.size == (192, 288) else shown <= {small, large}
    assert {small, large} == {
        sizes[kind][place]
        for kind, chosen in drawn
        if chosen.size == (144, 224)
        for place in chosen.places[:, 0].tolist()
    }


def test_some_batches_of_nights_and_days_are_wide_and_the_others_show_nothing_of_wide_pairs() -> None:
    usual, wide = (192, 304), (384, 608)
    learning = recipe(mix=(0.2, 0.4, 0.4), crop=(192, 288), batch=4, wide=0.4, twins=0.5)
    sizes = [[(200, 300)], [usual, wide], [wide, usual]]
    drawn = [training.choose(learning, sizes, 0.0, np.random.default_rng(seed)) for seed in range(200)]
    widths = [chosen.size for kind, chosen in drawn if kind]
    assert 0.3 < np.mean([size == (384, 576) for size in widths]) < 0.5
    for kind, chosen in drawn:
        shown = {sizes[kind][place] for place in chosen.places[:, 0].tolist()}
        if kind and chosen.size == (384, 576):
            assert (shown, len(chosen.places), chosen.twins) == ({wide}, 1, False)
        elif kind:
            assert (shown, len(chosen.places)) == ({usual}, 4)
    assert any(chosen.twins for kind, chosen in drawn if kind)


def test_pairs_of_lol_are_learned_in_phases_where_the_recipe_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heights: set[int] = set()

    def watched(samples: Sequence[Sample], *args: object) -> list[torch.Tensor]:
        heights.update(pair.small.shape[0] for pair in samples)
        return batch(samples, *args)  # type: ignore[arg-type]

    monkeypatch.setattr("engines.training.steps.batch", watched)
    for phases, expected in ((False, {32}), (True, {32, 30})):
        heights.clear()
        training.train(
            recipe(phases=phases),
            ([sample()], [], []),
            training.Budget(steps=1),
            tmp_path / f"{phases}",
            lambda *_: None,
        )
        assert heights == expected


def test_whole_pictures_come_at_the_end_and_crops_before() -> None:
    sizes = [[(100, 150)], [], []]
    learning = recipe(whole=0.25)
    sides = [training.choose(learning, sizes, share, np.random.default_rng(1))[1].size for share in (0, 0.74, 0.75, 1)]
    assert sides == [(32, 48), (32, 48), (100, 150), (100, 150)]
