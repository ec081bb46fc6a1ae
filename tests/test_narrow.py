from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engines.network.config import NEID, NEID_LITE, NEID_LIVE, NetworkConfig
from engines.network.neid import Neid, initialise
from engines.training.narrow import fits, narrowed

WIDE = NetworkConfig(name="wide", widths=(8, 16, 16), unshuffle=2, reduction=4)
NARROW = replace(WIDE, name="narrow", widths=(4, 8, 8))


def random_network(config: NetworkConfig) -> Neid:
    network = Neid(config)
    initialise(network, torch.Generator().manual_seed(3))
    return network.eval()


def test_channels_that_do_nothing_are_those_that_go() -> None:
    wide = random_network(WIDE)
    numbers = wide.state_dict()
    numbers["light.subpixels.weight"] *= 100  # else they would hardly be seen
    for name, value in numbers.items():
        if not name.startswith("light.subpixels"):
            makes = 1 if ".ups." in name and value.ndim > 1 else 0
            value.transpose(0, makes)[::2] = 0  # every other channel
    picture = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = wide(picture)
        torch.testing.assert_close(narrowed(wide, NARROW)(picture), expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.1


def test_of_two_channels_the_one_that_is_read_more_stays() -> None:
    wide = random_network(WIDE)
    numbers = wide.state_dict()
    numbers["encoder.levels.0.2.weight"][:, 5] *= 100
    stayed = numbers["encoder.levels.0.0.bias"]
    stayed[5] = 7.0
    assert 7.0 in narrowed(wide, NARROW).state_dict()["encoder.levels.0.0.bias"]


@pytest.mark.parametrize("parts", [(), ("subpixels",), ("subpixels", "detail"), ("subpixels", "detail", "fusing")])
def test_a_network_as_wide_as_before_is_the_same(parts: tuple[str, ...]) -> None:
    wide = random_network(replace(WIDE, parts=parts))  # type: ignore[arg-type]
    same = narrowed(wide, WIDE)
    assert same.config.parts == parts
    assert same.state_dict().keys() == wide.state_dict().keys()
    assert all(torch.equal(same.state_dict()[name], value) for name, value in wide.state_dict().items())


def test_only_a_narrower_network_of_the_same_shape_can_begin_with_another() -> None:
    assert fits(NEID_LIVE, NEID_LITE)
    assert fits(NEID_LIVE, NEID_LIVE)
    assert not fits(NEID_LITE, NEID_LIVE)
    assert not fits(NEID, NEID_LIVE)
    assert not fits(replace(NEID_LIVE, unshuffle=1), NEID_LITE)
