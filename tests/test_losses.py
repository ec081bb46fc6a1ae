from __future__ import annotations

import colorsys

import pytest
import torch
from skimage.metrics import structural_similarity

from engines.training import losses

LOSSES = [
    losses.huber,
    losses.detail_mse,
    losses.chroma,
    losses.hue_saturation,
    losses.steady,
    lambda a, b: losses.huber(losses.scale_to_mean(a, b), b),
    lambda a, b: 1 - losses.ssim(a, b),
]
NAMES = ["huber", "detail_mse", "chroma", "hue_saturation", "steady", "structure", "ssim"]


def picture(seed: int = 1) -> torch.Tensor:
    return torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_equal_pictures_cost_nothing(loss: losses.Loss) -> None:
    assert loss(picture(), picture()).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_equal_black_grey_and_white_pictures_cost_nothing(loss: losses.Loss, level: float) -> None:
    flat = torch.full((2, 3, 16, 16), level)
    assert loss(flat, flat).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("loss", [losses.chroma, losses.hue_saturation], ids=["chroma", "hue_saturation"])
def test_the_pull_of_colour_is_bounded_where_there_is_hardly_any(loss: losses.Loss) -> None:
    slopes = []
    for much in (1e-3, 1e-6):
        prediction = (0.3 + much * picture(3)).requires_grad_()
        loss(prediction, picture()).backward()
        assert prediction.grad is not None
        slopes.append(prediction.grad.norm().item())
    assert slopes[1] < 5 * slopes[0]


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_flat_black_grey_and_white_give_finite_gradients(loss: losses.Loss, level: float) -> None:
    prediction = torch.full((1, 3, 16, 16), level, requires_grad=True)
    loss(prediction, picture()[:1, :, :16, :16]).backward()
    assert prediction.grad is not None
    assert prediction.grad.isfinite().all()


def test_huber_is_square_inside_its_delta_and_linear_outside() -> None:
    target = torch.zeros(1, 3, 4, 4)
    assert losses.huber(target + 0.05, target).item() == pytest.approx(0.5 * 0.05**2)
    assert losses.huber(target + 0.6, target).item() == pytest.approx(0.1 * 0.6 - 0.5 * 0.1**2)


def test_steady_pulls_as_much_at_one_code_value_as_at_many() -> None:
    slopes = []
    for difference in (1 / 255, 100 / 255):
        one = torch.full((1, 3, 4, 4), 0.5 + difference, requires_grad=True)
        losses.steady(one, torch.full((1, 3, 4, 4), 0.5)).backward()
        assert one.grad is not None
        slopes.append(one.grad.sum().item())
    assert slopes == pytest.approx([1, 1])


def test_chroma_sees_a_wrong_hue_and_not_a_wrong_brightness() -> None:
    red = torch.tensor([0.8, 0.2, 0.2]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    green = red[:, [1, 0, 2]]
    assert losses.chroma(red / 2, red).item() == pytest.approx(0, abs=1e-3)
    assert losses.chroma(green, red).item() > 1


def test_chroma_vectors_are_nearly_those_of_hue_and_saturation() -> None:
    codes = torch.linspace(0.1, 1, 10)
    colours = torch.cartesian_prod(codes, codes, codes)
    x, y = losses._chroma_vectors(colours.T.view(1, 3, 1, -1)).flatten(2)[0]
    hues, saturations, _ = torch.tensor([colorsys.rgb_to_hsv(*colour) for colour in colours.tolist()]).T
    coloured = saturations > 0.01
    shorter = (torch.hypot(x, y) / saturations)[coloured]
    assert shorter.min() > 1 - 0.134
    assert shorter.max() < 1 + 1e-4
    off = torch.rad2deg(torch.atan2(y, x)) - 360 * hues
    assert (off[coloured].add(180).remainder(360) - 180).abs().max() < 1.2
    assert torch.hypot(x, y)[~coloured].max() < 1e-6


def test_hue_and_saturation_are_those_of_hsv() -> None:
    colours = torch.tensor([[0.8, 0.2, 0.1], [0.1, 0.7, 0.3], [0.2, 0.1, 0.9], [0.9, 0.1, 0.8]])
    pixels = colours.T.view(1, 3, 1, -1)
    hsv = torch.tensor([colorsys.rgb_to_hsv(*colour) for colour in colours.tolist()])
    assert torch.allclose(losses._hue(pixels).flatten(), hsv[:, 0], atol=1e-5)
    assert torch.allclose(losses._saturation(pixels).flatten(), hsv[:, 1], atol=1e-5)


def test_hue_saturation_is_the_cosine_of_the_channels() -> None:
    a, b = picture(1)[:1] * 0.5 + 0.25, picture(2)[:1] * 0.5 + 0.25
    distances = [
        1 - torch.cosine_similarity(f(a).flatten(), f(b).flatten(), 0) for f in (losses._hue, losses._saturation)
    ]
    assert losses.hue_saturation(a, b).item() == pytest.approx(sum(distances).item(), abs=1e-4)


def test_equal_grey_pictures_have_equal_colours() -> None:
    grey = torch.full((1, 3, 8, 8), 0.5)
    assert losses.hue_saturation(grey, grey).item() == pytest.approx(0, abs=1e-6)


def test_scaling_to_the_mean_hides_exposure_and_shows_structure() -> None:
    target = 0.2 + 0.6 * picture()
    prediction = (0.5 * target).requires_grad_()
    assert losses.huber(losses.scale_to_mean(prediction, target), target).item() == pytest.approx(0, abs=1e-9)
    noisy = (0.5 * target + 0.05 * picture(5)).detach().requires_grad_()
    loss = losses.huber(losses.scale_to_mean(noisy, target), target)
    loss.backward()
    assert loss.item() > 1e-4
    assert noisy.grad is not None
    pull = (noisy.grad * noisy).sum((1, 2, 3)).abs()  # along a change of exposure
    assert (pull < 1e-3 * (noisy.grad * noisy).abs().sum((1, 2, 3))).all()


def test_ssim_agrees_with_an_independent_implementation() -> None:
    a, b = picture(1)[0], picture(2)[0]
    _, theirs = structural_similarity(
        a.numpy().astype("float64"),
        b.numpy().astype("float64"),
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        full=True,
    )
    assert losses.ssim(a[None], b[None]).item() == pytest.approx(theirs[:, 5:-5, 5:-5].mean(), abs=1e-4)
