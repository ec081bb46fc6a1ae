from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engines.data.pairs import batch, draw, shared_region, small_sizes
from engines.network.config import NEID_LIVE
from engines.training import train as training
from engines.training.steps import detail_target, half_window, loss_parts, train_step
from tests.training import CPU, STEADY, recipe, sample


class Lamp:
    """Stands for a network, and tells whether it is asked to compute in bfloat16."""

    config = NEID_LIVE

    def __call__(self, small: torch.Tensor) -> torch.Tensor:
        self.bfloat16 = torch.is_autocast_enabled("cpu")
        return torch.nn.functional.interpolate(small, scale_factor=2.0)


@pytest.mark.parametrize(("processor", "bfloat16"), [("AVX2", False), ("AVX512", True)])
def test_a_processor_without_avx512_does_not_imitate_bfloat16(
    processor: str, bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: processor)
    network = Lamp()
    small, large = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 32, 32)
    loss_parts(recipe(), network, small, large, None, (slice(32), slice(32)))
    assert network.bfloat16 is bfloat16


@pytest.mark.parametrize("changes", [{}, STEADY], ids=["plain", "steady"])
def test_one_tiny_pair_is_learned(tmp_path: Path, changes: dict[str, float]) -> None:
    losses: list[float] = []
    network = training.train(
        recipe(whole=0.0, ema=0.8, learning_rate=1e-3, **changes),
        ([sample()], [], []),
        training.Budget(steps=60),
        tmp_path / "checkpoint.pt",
        lambda _step, _share, parts: losses.append(parts["huber"]),
        device=CPU,
    )
    assert losses[-1] < losses[0] / 4
    assert training.validate(network, [sample()]) > 16


def test_every_number_of_the_network_learns_from_twins() -> None:
    learning = recipe(**{**STEADY, "twins": 1.0})
    run = training.Run.begin(learning)
    _, chosen = training.choose(learning, [small_sizes([sample()]), [], []], 0.0, np.random.default_rng(1))
    region = shared_region(chosen.places, chosen)
    window = (slice(0, 24), slice(0, 24))
    parts = train_step(learning, run.network, run.optimiser, run.guard, batch([sample()], chosen), window, True, region)
    assert parts.keys() == learning.weights().keys()
    assert parts["steady"] > 0
    for name, parameter in run.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_steady_part_pulls_twins_together() -> None:
    learning = recipe(**{**STEADY, "twins": 1.0})
    network = training.Run.begin(learning).network
    _, chosen = training.choose(learning, [small_sizes([sample()]), [], []], 0.0, np.random.default_rng(1))
    small, large, _ = batch([sample()], chosen)
    region, window = shared_region(chosen.places, chosen), (slice(0, 24), slice(0, 24))

    def apart() -> torch.Tensor:
        return loss_parts(learning, network, small, large, None, window, region)["steady"]

    before = apart()
    before.backward()
    for parameter in network.light.parameters():
        assert parameter.grad is not None
        parameter.data -= 0.1 * parameter.grad
    assert 0 < apart().item() < 0.9 * before.item()


@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
def test_every_row_and_column_can_be_in_the_window_of_ssim(size: tuple[int, int]) -> None:
    large = torch.zeros(1, 3, *size)
    for seed in range(200):
        large[(..., *half_window(large, np.random.default_rng(seed)))] += 1
    assert large.min() > 0


def test_the_average_follows_the_network_by_its_decay_and_faster_at_the_beginning() -> None:
    run = training.Run.begin(recipe())
    average = {name: value.clone().double() for name, value in run.average.items()}
    for step, kept in ((1, 2 / 11), (2, 3 / 12), (3, 0.3), (4, 0.3)):  # (1 + step) / (10 + step), 0.3 at most
        for parameter in run.network.parameters():
            parameter.data.fill_(10.0 * step)
        run.follow(0.3)
        average = {name: kept * value + (1 - kept) * 10 * step for name, value in average.items()}
        for name, value in average.items():
            assert torch.allclose(run.average[name].double(), value, atol=1e-4), name
    assert run.step == 4


def test_the_network_learns_from_pictures_as_video_carries_them() -> None:
    """Red and blue stripes of a pixel each, which 4:2:0 makes one purple: the network never sees them apart."""
    seen: list[torch.Tensor] = []
    stripes = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]).T.view(1, 3, 1, 2).repeat(1, 1, 32, 16)
    for subsampled in (True, False):
        run = training.Run.begin(recipe(subsampled=subsampled))
        run.network.register_forward_pre_hook(lambda _network, given: seen.append(given[0]))
        window = (slice(0, 24), slice(0, 24))
        pictures = [stripes, *[stripes] * 2]
        train_step(recipe(subsampled=subsampled), run.network, run.optimiser, run.guard, pictures, window, False)
    colours = [(picture[:, 0] - picture[:, 2]).abs().max().item() for picture in seen]
    assert colours[0] < 0.2 < colours[1]


def test_no_step_is_longer_than_the_clip_allows() -> None:
    norms = []
    for clip in (1e-3, 1e9):
        learning = recipe(clip=clip)
        run = training.Run.begin(learning)
        window = (slice(0, 24), slice(0, 24))
        whole = batch([sample()], draw([(32, 48)], (32, 48), 1, np.random.default_rng(1)))
        train_step(learning, run.network, run.optimiser, run.guard, whole, window, True)
        gradients = [parameter.grad for parameter in run.network.parameters() if parameter.grad is not None]
        norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
    assert norms[0] == pytest.approx(1e-3, rel=1e-2)
    assert norms[1] > 0.1


def test_the_detail_branch_is_shown_the_dark_picture_bright_enough_to_learn_from() -> None:
    dark = torch.full((2, 3, 8, 8), 0.05)
    assert detail_target(recipe(), dark).mean().item() == pytest.approx(0.4)
    assert torch.equal(detail_target(recipe(detail_target="dark"), dark), dark)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("changes", [{}, STEADY], ids=["plain", "steady"])
def test_captured_steps_learn_and_can_be_resumed_on_the_cpu(tmp_path: Path, changes: dict[str, float]) -> None:
    losses: list[float] = []
    pairs, checkpoint = ([sample()], [], []), tmp_path / "checkpoint.pt"
    learning = recipe(whole=0.0, ema=0.8, learning_rate=1e-3, **changes)
    network = training.train(
        learning, pairs, training.Budget(steps=300), checkpoint, lambda _s, _b, parts: losses.append(parts["huber"])
    )
    assert losses[-1] < losses[0] / 4
    assert training.validate(network, [sample()]) > 16
    training.train(learning, pairs, training.Budget(steps=302), checkpoint, lambda *_: None, device=CPU)
