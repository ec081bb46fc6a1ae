from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engines.network.config import CONFIGS, NEID, NEID_LIVE, NetworkConfig, Part
from engines.network.neid import STARTS, Neid, initialise

SEED = torch.Generator().manual_seed(3)


def random_network(config: NetworkConfig, *, with_reconstruction: bool = False) -> Neid:
    network = Neid(config, with_reconstruction=with_reconstruction)
    initialise(network, torch.Generator().manual_seed(1))
    return network.eval()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_picture_comes_out_twice_as_large(config: NetworkConfig) -> None:
    network = random_network(config)
    side = 2 * config.multiple
    with torch.no_grad():
        assert network(torch.rand(2, 3, side, 3 * side)).shape == (2, 3, 2 * side, 6 * side)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_removing_the_reconstruction_changes_no_bit_of_the_enhanced_picture(config: NetworkConfig) -> None:
    trained = random_network(config, with_reconstruction=True)
    shipped = Neid(config).eval()
    left_over = shipped.load_state_dict(trained.state_dict(), strict=False)
    assert not left_over.missing_keys
    assert {key.split(".")[0] for key in left_over.unexpected_keys} == {"reconstruction"}
    picture = torch.rand(1, 3, config.multiple, config.multiple)
    with torch.no_grad():
        assert torch.equal(trained.forward_both(picture)[0], shipped(picture))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_parameter_gets_a_gradient(config: NetworkConfig) -> None:
    network = random_network(config, with_reconstruction=True)
    bright, dark = network.forward_both(torch.rand(1, 3, 2 * config.multiple, 2 * config.multiple))
    (bright.square().mean() + dark.square().mean()).backward()
    without = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []


ROWS: list[tuple[Part, ...]] = [(), ("subpixels",), ("subpixels", "detail"), ("subpixels", "detail", "fusing")]


@pytest.mark.parametrize("parts", ROWS, ids=["unet", "le", "le-dr", "le-dr-ff"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_row_of_table_2_doubles_and_trains_all_of_its_parameters(
    config: NetworkConfig, parts: tuple[Part, ...]
) -> None:
    network = random_network(replace(config, parts=parts), with_reconstruction=True)
    picture = torch.rand(1, 3, 2 * config.multiple, config.multiple)
    bright = network(picture)
    assert bright.shape == (1, 3, 4 * config.multiple, 2 * config.multiple)
    loss = bright.square().mean()
    if "detail" in parts:
        loss = loss + network.forward_both(picture)[1].square().mean()
    loss.backward()
    assert [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_a_u_net_without_sub_pixels_is_doubled_by_interpolation() -> None:
    picture = random_network(replace(NEID_LIVE, parts=()))(torch.rand(1, 3, 32, 32))
    halved = torch.nn.functional.avg_pool2d(picture, 2)
    again = torch.nn.functional.interpolate(halved, scale_factor=2, mode="bicubic")
    assert picture.sub(again).abs().max() < 0.5 * picture.sub(picture.mean()).abs().max()


def test_without_fusing_the_detail_branch_does_not_touch_the_picture() -> None:
    network = random_network(replace(NEID_LIVE, parts=("subpixels", "detail")))
    picture = torch.rand(1, 3, 32, 32)
    before = network(picture)
    for value in network.detail.parameters():  # type: ignore[union-attr]
        value.data.zero_()
    assert torch.equal(before, network(picture))


def test_the_paper_s_start_is_gaussian_with_a_deviation_of_0_02_and_no_bias() -> None:
    network = Neid(NEID, with_reconstruction=True)
    STARTS["paper"](network, torch.Generator().manual_seed(1))
    for name, value in network.named_parameters():
        if name.endswith("bias"):
            assert not value.any()
        elif value.numel() > 10_000:
            assert value.mean().abs() < 1e-3
            assert value.std().item() == pytest.approx(0.02, rel=0.05)


def test_neid_has_the_levels_and_widths_of_the_paper() -> None:
    assert NEID.widths == (32, 64, 128, 256, 512)
    assert NEID.multiple == 16
    assert NEID_LIVE.multiple == 16


def test_detail_features_decide_how_light_and_detail_are_mixed() -> None:
    fusing = random_network(NEID_LIVE).fusing
    light, detail = torch.rand(1, 256, 4, 4), torch.rand(1, 256, 4, 4)
    mixed = fusing(light, detail, fusing.weights(detail))
    low, high = torch.minimum(light, detail), torch.maximum(light, detail)
    assert ((mixed >= low - 1e-6) & (mixed <= high + 1e-6)).all()
    other = detail.flip(1)
    assert not torch.allclose(mixed, fusing(light, other, fusing.weights(other)).flip(1))


def test_reconstruction_is_refused_by_a_network_built_without_it() -> None:
    with pytest.raises(ValueError, match="without its reconstruction"):
        random_network(NEID_LIVE).forward_both(torch.rand(1, 3, 16, 16))
