"""A gradient that is not finite must not spoil a network, and must not go unnoticed."""

from __future__ import annotations

import logging
from pathlib import Path
from unittest import mock

import pytest
import torch

from engines.errors import EngineError
from engines.training import guard as guarding
from engines.training import steps as stepping
from engines.training import train as training
from engines.training.guard import Guard
from tests.training import CPU, recipe, sample

PAIRS = ([sample()], [], [])
LOSS = stepping.loss_parts


def spoiled(*steps: int, value: float = float("nan")) -> mock.mock._patch[mock.Mock]:
    """Losses that are not finite in these steps, counted from 1; in all steps without any."""
    taken = 0

    def loss(*given: object) -> dict[str, torch.Tensor]:
        nonlocal taken
        taken += 1
        parts = LOSS(*given)  # type: ignore[arg-type]
        return {name: part * value for name, part in parts.items()} if taken in steps or not steps else parts

    return mock.patch.object(stepping, "loss_parts", side_effect=loss)


def one_number(value: float, *, fused: bool) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    number = torch.nn.Parameter(torch.tensor([value]))
    return number, torch.optim.AdamW([number], lr=0.1, weight_decay=0.1, fused=fused)


@pytest.mark.parametrize("fused", [False, True], ids=["as on the CPU", "as in a CUDA graph"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_whose_gradient_is_not_finite_changes_neither_numbers_nor_optimiser(bad: float, fused: bool) -> None:
    (number, optimiser), guard = one_number(1.0, fused=fused), Guard(CPU)
    (expected, same), usual = one_number(1.0, fused=fused), Guard(CPU)
    for gradient in (0.5, bad, -0.25, bad, bad):
        number.grad = torch.tensor([gradient])
        guard.step(optimiser, number.grad.norm())
        if gradient is not bad:
            expected.grad = torch.tensor([gradient])
            usual.step(same, expected.grad.norm())
    assert expected.item() != 1.0
    assert torch.equal(number, expected)
    for name, value in same.state[expected].items():
        assert torch.equal(optimiser.state[number][name], value), name
    assert guard.counts.tolist() == [2, 3]
    assert usual.counts.tolist() == [0, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_training_goes_on_past_a_spoiled_step_with_a_finite_network_and_tells_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: float
) -> None:
    budget = training.Budget(steps=5)
    with spoiled(3, value=value):
        network = training.train(recipe(), PAIRS, budget, tmp_path / "c.pt", lambda *_: None, device=CPU)
    assert all(number.isfinite().all() for number in network.state_dict().values())
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    assert all(number.isfinite().all() for number in state["network"].values())
    assert state["unfit"].tolist() == [0, 1]
    assert caplog.record_tuples == [
        (guarding.__name__, logging.WARNING, "step 3: the gradient is not finite; 1 steps changed nothing so far")
    ]


def test_training_that_finds_no_finite_gradient_ends_by_the_step_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    checkpoint, told = tmp_path / "c.pt", list[int]()
    training.train(recipe(), PAIRS, training.Budget(steps=2), checkpoint, lambda *_: None, device=CPU)
    before = checkpoint.read_bytes()
    with (
        spoiled(),
        mock.patch.object(guarding, "MOST_IN_A_ROW", 4),
        pytest.raises(EngineError, match="ended at step 6: the gradient was not finite in the last 4 steps; the check"),
    ):
        training.train(
            recipe(), PAIRS, training.Budget(steps=50), checkpoint, lambda step, *_: told.append(step), device=CPU
        )
    assert told == [3, 4, 5]
    assert checkpoint.read_bytes() == before


def test_a_spoiled_step_now_and_then_does_not_end_training(tmp_path: Path) -> None:
    with spoiled(1, 3, 5, 7), mock.patch.object(guarding, "MOST_IN_A_ROW", 2):
        training.train(recipe(), PAIRS, training.Budget(steps=8), tmp_path / "c.pt", lambda *_: None, device=CPU)
    assert torch.load(tmp_path / "c.pt", weights_only=True)["unfit"].tolist() == [0, 4]


def test_a_run_that_is_interrupted_among_spoiled_steps_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    """Four in a row, two of them before the pause."""

    def interrupt(step: int, _share: float, _parts: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    def sit(name: str, *bad: int, report: training.Report = lambda *_: None) -> None:
        limits = mock.patch.object(guarding, "MOST_IN_A_ROW", 4), mock.patch.dict(training.SAVE_EVERY, cpu=2)
        with spoiled(*bad), limits[0], limits[1]:
            training.train(recipe(), PAIRS, training.Budget(steps=9), tmp_path / name, report, device=CPU)

    with pytest.raises(EngineError, match=r"ended at step 5: .* in the last 4 steps"):
        sit("whole.pt", 2, 3, 4, 5)
    with pytest.raises(KeyboardInterrupt):
        sit("cut.pt", 2, 3, report=interrupt)
    with pytest.raises(EngineError, match=r"ended at step 5: .* in the last 4 steps"):
        sit("cut.pt", 1, 2, 3)
