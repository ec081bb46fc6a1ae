from __future__ import annotations

import torch

from engines.door import kept_after
from engines.network.memory import remember

KEEP = torch.full((1, 1), kept_after(1 / 25))


def weights(level: float) -> torch.Tensor:
    return torch.linspace(0.2, 0.6, 32)[None] + level


def used(levels: list[float]) -> torch.Tensor:
    """The mean weight that is used for each of some pictures of a feed whose own weights are shifted by `levels`."""
    memory, means = torch.zeros(1, 32), []
    for level in levels:
        memory = remember(weights(level), memory, KEEP)
        means.append(memory.mean())
    return torch.stack(means)


def test_the_first_picture_of_a_feed_uses_its_own_weights() -> None:
    torch.testing.assert_close(remember(weights(0), torch.zeros(1, 32), KEEP), weights(0))


def test_nothing_is_kept_where_nothing_should_be() -> None:
    torch.testing.assert_close(remember(weights(0), weights(0.01), torch.zeros(1, 1)), weights(0))


def test_a_little_noise_is_smoothed_with_the_time_constant() -> None:
    expected = weights(0) + kept_after(1 / 25) * 0.01
    torch.testing.assert_close(remember(weights(0), weights(0.01), KEEP), expected)


def test_an_injected_pumping_is_removed() -> None:
    pumping = used([0.004 * (-1) ** number for number in range(200)])
    assert pumping[100:].std() < 0.004 / 15


def test_a_cut_is_followed_at_once_and_exactly() -> None:
    after = used([0.0] * 50 + [0.1] * 3)[50:]
    torch.testing.assert_close(after, weights(0.1).mean().expand(3))


def test_a_slow_change_is_followed_within_the_tolerance_of_one_scene() -> None:
    dusk = torch.linspace(0.2, 0.0, 500)
    late = used(dusk.tolist()) - (weights(0).mean() + dusk)
    assert late.abs().max() < 0.005


def test_every_feed_of_a_batch_keeps_its_own() -> None:
    own = torch.cat((weights(0), weights(0.1)))
    memory = torch.cat((weights(0.01), weights(0.5)))
    both = remember(own, memory, KEEP.expand(2, 1))
    torch.testing.assert_close(both[:1], remember(own[:1], memory[:1], KEEP))
    torch.testing.assert_close(both[1:], weights(0.1))


def test_halves_are_smoothed_in_float32() -> None:
    made = remember(weights(0).half(), weights(0.002), KEEP)
    assert made.dtype == torch.float32
    assert (made - weights(0)).mean() > 0.0015
