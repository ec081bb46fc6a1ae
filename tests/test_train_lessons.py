from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engines.cards import NUMBERS
from engines.data.pairs import small_sizes
from engines.network.config import NEID_LIVE
from engines.network.neid import Neid
from engines.training import train as training
from engines.training.recipe import Recipe
from engines.training.steps import Lesson
from tests.training import CPU, recipe, sample


class Teacher(torch.nn.Module):
    """Stands for a network that makes the same bright grey of everything, at sides that it can take."""

    config = NEID_LIVE

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(level))

    def forward(self, small: torch.Tensor) -> torch.Tensor:
        count, channels, height, width = small.shape
        assert (height % NEID_LIVE.multiple, width % NEID_LIVE.multiple) == (0, 0)
        return self.level.expand(count, channels, 2 * height, 2 * width)


def test_a_lesson_draws_the_target_to_the_teacher_s_picture_by_its_share() -> None:
    truth = torch.full((2, 3, 42, 58), 0.2)
    target = Lesson(Teacher(0.6), 0.25).target(torch.rand(2, 3, 21, 29), truth)
    assert target.shape == truth.shape
    assert torch.allclose(target, torch.tensor(0.3))
    assert not target.requires_grad
    assert torch.allclose(Lesson(Teacher(1.5), 1.0).target(torch.rand(2, 3, 21, 29), truth), torch.tensor(1.0))


def test_each_kind_of_pairs_has_its_own_lesson(tmp_path: Path) -> None:
    training.store(Neid(NEID_LIVE), Recipe(), tmp_path, {})
    lessons = training.lessons(recipe(taught=(0.5, 0.25, 0.0)), tmp_path / NUMBERS, CPU)
    assert [lesson and lesson.share for lesson in lessons] == [0.5, 0.25, None]
    bright = sample()
    pairs = ([bright], [bright], [bright])
    told = []
    for mix in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        learning = recipe(mix=mix, batch=1)
        run = training.Run.begin(learning)
        steps = training.open_steps(learning, run, pairs, [Lesson(Teacher(0.9), 1.0), Lesson(Teacher(0.0), 1.0), None])
        random = np.random.default_rng(3)
        kind, chosen = training.choose(learning, [small_sizes(some) for some in pairs], 1.0, random)
        told.append(steps.take(kind, chosen, 1, 0.0, random)["huber"])
    assert len({round(loss, 4) for loss in told}) == 3, told


def test_what_is_learned_with_a_teacher_is_the_teacher_s_picture(tmp_path: Path) -> None:
    """The truth is bright; the teacher, whose last layer makes 0.1 of everything, is not."""
    teacher = Neid(NEID_LIVE)
    with torch.no_grad():
        teacher.light.subpixels.weight.zero_()
        teacher.light.subpixels.bias.copy_(torch.tensor(0.1))  # type: ignore[union-attr]
    training.store(teacher, Recipe(), tmp_path, {})
    network = training.train(
        recipe(taught=(1.0, 0.0, 0.0), ema=0.8, learning_rate=1e-3),
        ([sample()], [], []),
        training.Budget(steps=40),
        tmp_path / "c.pt",
        lambda *_: None,
        device=CPU,
        teacher=tmp_path / NUMBERS,
    )
    small = torch.from_numpy(sample().small.copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        assert network(small).mean().item() == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize("taught", [(0.5, 0.0, 0.0), (0.0, 0.0, 0.0)])
def test_a_teacher_is_given_where_there_are_lessons_and_nowhere_else(
    taught: tuple[float, float, float], tmp_path: Path
) -> None:
    training.store(Neid(NEID_LIVE), Recipe(), tmp_path, {})
    with pytest.raises(ValueError, match="a teacher must be given where the recipe has lessons"):
        training.train(
            recipe(taught=taught),
            ([sample()], [], []),
            training.Budget(steps=1),
            tmp_path / "c.pt",
            lambda *_: None,
            teacher=None if any(taught) else tmp_path / NUMBERS,
        )
