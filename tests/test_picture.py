from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from engines.cards import NUMBERS, find_weights
from engines.checkpoint import load_network
from engines.colour import CENTRE, Colour
from engines.network.config import CONFIGS, NEID_LIVE, NetworkConfig
from engines.network.neid import Neid, initialise
from engines.padding import MARGIN, padding, past_shapes
from engines.picture import PictureGraph

COLOURS = [Colour("bt601"), Colour("bt601", full_range=True), Colour("bt709"), Colour("bt601", grey=True)]


def network_of(config: NetworkConfig) -> Neid:
    network = Neid(config)
    initialise(network, torch.Generator().manual_seed(1))
    return network.eval()


def nothing(config: NetworkConfig, width: int, height: int, count: int = 1) -> tuple[torch.Tensor, ...]:
    """Memory, keep and past of pictures without a past."""
    past = [
        torch.full((count, *shape), -1000, dtype=torch.float16) for shape in past_shapes(config, width, height).values()
    ]
    return torch.zeros(count, config.memory_size), torch.zeros(count, 1), *past


def plainly(network: Neid, y: torch.Tensor, uv: torch.Tensor, colour: Colour) -> tuple[torch.Tensor, torch.Tensor]:
    """What the graph should compute, written for full-size RGB planes without any folding."""
    height, width = y.shape[-2:]
    decode, encode = torch.from_numpy(colour.coefficients().astype(np.float64))
    yuv = torch.cat((y, functional.interpolate(uv.double(), scale_factor=2)[..., :height, :width]), dim=1).double()
    left, right, top, bottom = padding(height, width, network.config.multiple)
    yuv = yuv - torch.from_numpy(CENTRE).view(1, 3, 1, 1)
    yuv = functional.pad(yuv, (left, right, top, bottom), mode="replicate")
    rgb = torch.einsum("ck,nkhw->nchw", decode[:, :3], yuv) + decode[:, 3].view(1, 3, 1, 1)
    bright = network.double()(rgb.clamp(0, 1)).clamp(0, 1)
    out = torch.einsum("ck,nkhw->nchw", encode[:, :3], bright) + encode[:, 3].view(1, 3, 1, 1)
    chroma = functional.avg_pool2d(out[:, 1:], 2)[..., top : top + height, left : left + width]
    return out[:, :1, 2 * top : 2 * (top + height), 2 * left : 2 * (left + width)], chroma


@pytest.mark.parametrize("colour", COLOURS, ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("size", [(32, 48), (38, 50)], ids=str)
def test_the_graph_equals_the_plain_computation_on_rgb(
    config: NetworkConfig, colour: Colour, size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(5)
    height, width = size
    y = torch.randint(0, 256, (2, 1, height, width), dtype=torch.uint8, generator=generator)
    uv = torch.randint(0, 256, (2, 2, height // 2, width // 2), dtype=torch.uint8, generator=generator)
    coefficients = torch.from_numpy(colour.coefficients())[None].expand(2, -1, -1, -1)
    with torch.no_grad():
        y_out, uv_out, *_ = PictureGraph(network_of(config))(y, uv, coefficients, *nothing(config, width, height, 2))
        y_plain, uv_plain = plainly(network_of(config), y, uv, colour)
    assert y_out.dtype == uv_out.dtype == torch.uint8
    assert y_out.shape == (2, 1, 2 * height, 2 * width)
    assert uv_out.shape == (2, 2, height, width)
    assert (y_out.double() - y_plain.clamp(0, 255)).abs().max() <= 0.51
    assert (uv_out.double() - uv_plain.clamp(0, 255)).abs().max() <= 0.51


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_graph_makes_whatever_it_needs_on_the_device_of_its_inputs(config: NetworkConfig) -> None:
    meta = torch.device("meta")  # which mixes with no other, as a GPU does not
    y, uv = torch.empty(2, 1, 48, 64, dtype=torch.uint8, device=meta), torch.empty(2, 2, 24, 32, device=meta)
    state = [part.to(meta) for part in nothing(config, 64, 48, 2)]
    made = PictureGraph(network_of(config)).to(meta)(y, uv, torch.empty(2, 2, 3, 4, device=meta), *state)
    assert [part.shape[1:] for part in made[:3]] == [(1, 96, 128), (2, 48, 64), (config.memory_size,)]
    assert [part.shape for part in made[3:]] == [part.shape for part in state[2:]]


def test_a_grey_picture_stays_grey_whatever_its_chroma_planes_hold() -> None:
    y = torch.randint(0, 256, (1, 1, 32, 32), dtype=torch.uint8)
    uv = torch.randint(0, 256, (1, 2, 16, 16), dtype=torch.uint8)
    coefficients = torch.from_numpy(Colour(grey=True).coefficients())[None]
    with torch.no_grad():
        _, uv_out, *_ = PictureGraph(network_of(NEID_LIVE))(y, uv, coefficients, *nothing(NEID_LIVE, 32, 32))
    assert (uv_out == 128).all()


@pytest.mark.parametrize("side", [16, 17, 100, 288, 361])
def test_every_border_is_continued_and_the_whole_is_a_multiple(side: int) -> None:
    left, right, top, bottom = padding(side, 2 * side, 16)
    assert min(left, right, top, bottom) >= MARGIN
    assert (top + side + bottom) % 16 == (left + 2 * side + right) % 16 == 0
    assert max(left, right, top, bottom) < MARGIN + 16


def test_a_flat_picture_has_no_dark_border() -> None:
    y = torch.full((1, 1, 48, 64), 90, dtype=torch.uint8)
    uv = torch.full((1, 2, 24, 32), 128, dtype=torch.uint8)
    coefficients = torch.from_numpy(Colour().coefficients())[None]
    network = load_network(find_weights("field").file(NUMBERS))
    with torch.no_grad():
        bright, *_ = PictureGraph(network)(y, uv, coefficients, *nothing(NEID_LIVE, 64, 48))
    middle = bright[..., 40:56, 50:78].float().mean()
    border = torch.cat((bright[..., :2, :].flatten(), bright[..., -2:, :].flatten())).float().mean()
    assert (border - middle).abs() < 6
