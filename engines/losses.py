"""What training minimises: pure functions of (prediction, target), each (N, 3, H, W) RGB in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]
"""(prediction, target) to a scalar."""

HUBER_DELTA = 0.1
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5


def huber(prediction: Tensor, target: Tensor) -> Tensor:
    """Equations 1 and 2 with delta 0.1: at 1.0 it would be plain MSE on such pictures."""
    return functional.huber_loss(prediction, target, delta=HUBER_DELTA)


def detail_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Equation 3: the detail branch against the full-size dark picture."""
    return functional.mse_loss(prediction, target)


def chroma(prediction: Tensor, target: Tensor) -> Tensor:
    """Equations 4 to 6 as one cosine distance of the chroma vectors S (cos 2piH, sin 2piH).

    Taken literally, the cosine of hue angles is mostly noise: a quarter of real pixels is nearly grey and red wraps.
    """
    a, b = _chroma_vectors(prediction), _chroma_vectors(target)
    product = (a * b).sum((1, 2, 3))
    norms = (a.square().sum((1, 2, 3)) * b.square().sum((1, 2, 3))).clamp_min(1e-8).sqrt()
    return (1 - product / norms).mean()


def _chroma_vectors(picture: Tensor) -> Tensor:
    """Hexagonal hue-saturation vectors, (N, 2, H, W); clamped where the divisor would blow the gradient up."""
    red, green, blue = picture.clamp(0, 1).unbind(1)
    largest = picture.clamp(0.05, 1).amax(1)
    x = (red - 0.5 * (green + blue)) / largest
    y = (3**0.5 / 2) * (green - blue) / largest
    return torch.stack((x, y), dim=1)


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean structural similarity: Gaussian 11x11 window of sigma 1.5, each channel, valid region."""
    channels = prediction.shape[1]
    window = gaussian_window().to(prediction)

    def blur(x: Tensor) -> Tensor:
        x = functional.conv2d(x, window.view(1, 1, -1, 1).expand(x.shape[1], 1, -1, 1), groups=x.shape[1])
        return functional.conv2d(x, window.view(1, 1, 1, -1).expand(x.shape[1], 1, 1, -1), groups=x.shape[1])

    moments = torch.cat((prediction, target, prediction**2, target**2, prediction * target), dim=1)  # (N, 5C, H, W)
    p, t, pp, tt, pt = torch.split(blur(moments), channels, dim=1)
    c1, c2 = 0.01**2, 0.03**2
    covariance = pt - p * t
    variances = (pp - p * p) + (tt - t * t)
    similarity = ((2 * p * t + c1) * (2 * covariance + c2)) / ((p * p + t * t + c1) * (variances + c2))
    return similarity.mean()


def gaussian_window() -> Tensor:
    """(11,) weights that sum to 1."""
    distance = torch.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = torch.exp(-(distance**2) / (2 * SSIM_SIGMA**2))
    return weights / weights.sum()
