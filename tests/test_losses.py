from __future__ import annotations

import pytest
import torch
from skimage.metrics import structural_similarity

from engines import losses

LOSSES = [losses.huber, losses.detail_mse, losses.chroma, lambda a, b: 1 - losses.ssim(a, b)]
NAMES = ["huber", "detail_mse", "chroma", "ssim"]


def picture(seed: int = 1) -> torch.Tensor:
    return torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("loss", LOSSES, ids=NAMES)
def test_equal_pictures_cost_nothing(loss: losses.Loss) -> None:
    assert loss(picture(), picture()).item() == pytest.approx(0, abs=1e-5)


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


def test_chroma_sees_a_wrong_hue_and_not_a_wrong_brightness() -> None:
    red = torch.tensor([0.8, 0.2, 0.2]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    green = red[:, [1, 0, 2]]
    assert losses.chroma(red / 2, red).item() == pytest.approx(0, abs=1e-3)
    assert losses.chroma(green, red).item() > 1


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
