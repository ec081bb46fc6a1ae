"""Channels made equally strong, without any change of what the network computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from engines.data.lol import Picture
from engines.int8.equalise import channels_of, equalised, measure
from engines.network.config import PARTS
from engines.network.neid import Neid, initialise
from tests.identity import SMALL


def pictures() -> list[Picture]:
    """One in the dark and one by day."""
    random = np.random.default_rng(1)
    made = [(random.integers(0, 256, (24, 32, 3)) * light).astype(np.uint8) for light in (0.1, 1.0)]
    for picture in made:
        picture.setflags(write=False)  # as they are read from files
    return made


def uneven(parts: int = len(PARTS)) -> Neid:
    """A network with its first so many parts, whose channels differ tenfold in strength."""
    network = Neid(replace(SMALL, parts=PARTS[:parts])).eval()
    generator = torch.Generator().manual_seed(1)
    initialise(network, generator)
    with torch.no_grad():
        for channels in channels_of(network):
            channels.scale(10 ** (torch.rand(channels.count, generator=generator) - 0.5))
    return network


@pytest.mark.parametrize("parts", range(len(PARTS) + 1))
def test_an_equalised_network_computes_the_same(parts: int) -> None:
    network = uneven(parts)
    picture = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        torch.testing.assert_close(equalised(network, pictures())(picture), network(picture), rtol=1e-4, atol=1e-5)


def test_every_channel_of_an_equalised_network_is_equally_strong() -> None:
    network = equalised(uneven(), pictures())
    with torch.inference_mode():
        strengths = measure(network, list(channels_of(network)), pictures())
    for strength in strengths:
        torch.testing.assert_close(strength, torch.ones_like(strength), rtol=1e-3, atol=0)


def test_a_channel_that_is_never_lit_stays_finite() -> None:
    network = uneven()
    dead = next(channels_of(network)).makers[0]
    for parameter in dead.parameters():
        parameter.data[3] = 0
    for value in equalised(network, pictures()).state_dict().values():
        assert torch.isfinite(value).all()


def test_equalising_leaves_the_network_as_it_was() -> None:
    network = uneven()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    equalised(network, pictures())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_equalising_without_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="no pictures to equalise the channels with"):
        equalised(uneven(), [])
